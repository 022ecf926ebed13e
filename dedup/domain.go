package dedup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"coffer/dedup/chunk"
	"coffer/dedup/digest"
)

// Domain is what an agent needs to cut and hash for this store. Key is a secret.
type Domain struct {
	ID       digest.DomainID
	Key      digest.DomainKey
	Keys     digest.Keys
	Chunking chunk.Params
}

// domainObject is the stored form of a Domain.
type domainObject struct {
	Version  int             `json:"version"`
	ID       digest.DomainID `json:"id"`
	Key      string          `json:"key"` // hex
	Chunking chunk.Params    `json:"chunking"`
	// Primary: runs that name no domain write into this one.
	Primary bool `json:"primary"`
}

// newDomain makes a domain with random id, key and polynomial.
func newDomain() (Domain, error) {
	var d Domain
	rand.Read(d.ID[:])
	rand.Read(d.Key[:])
	p, err := chunk.NewParams(rand.Reader)
	if err != nil {
		return Domain{}, wrap("make domain", "", err)
	}
	d.Chunking = p
	d.Keys = digest.Derive(d.Key)
	return d, nil
}

// derived returns the domain with the keys that follow from its own.
func (d Domain) derived() Domain {
	d.Keys = digest.Derive(d.Key)
	return d
}

func (d Domain) object() domainObject {
	return domainObject{Version: objectVersion, ID: d.ID, Key: hex.EncodeToString(d.Key[:]), Chunking: d.Chunking, Primary: true}
}

func (o domainObject) domain() (Domain, error) {
	d := Domain{ID: o.ID, Chunking: o.Chunking}
	key, err := hex.DecodeString(o.Key)
	if err != nil || len(key) != len(d.Key) || o.ID.IsZero() {
		return Domain{}, errors.New("id or key is malformed")
	}
	copy(d.Key[:], key)
	if err := o.Chunking.Validate(); err != nil {
		return Domain{}, err
	}
	d.Keys = digest.Derive(d.Key)
	return d, nil
}

// loadDomain reads all domains and returns the primary one. Kind NotFound when the store has none. A damaged domain costs
// its own savesets, not the store.
func (s *Store) loadDomain(ctx context.Context) (Domain, error) {
	var primary Domain
	var damage error
	for obj, err := range s.objects(ctx, domainPrefix) {
		if err != nil {
			return Domain{}, wrap("list domains", "", err)
		}
		d, isPrimary, err := s.readDomain(ctx, obj)
		switch {
		case KindOf(err) == Damaged:
			s.log.Error("domain is damaged: its savesets cannot be read", "domain", obj.name, "err", err)
			damage = err
		case err != nil:
			return Domain{}, err
		case isPrimary:
			primary = d
		}
		if err == nil {
			s.domains.add(d)
		}
	}
	if primary.ID.IsZero() && damage != nil {
		return Domain{}, damage
	}
	if primary.ID.IsZero() {
		return Domain{}, &Error{Kind: NotFound, Op: "load domain"}
	}
	return primary, nil
}

func (s *Store) readDomain(ctx context.Context, obj object) (d Domain, primary bool, err error) {
	var o domainObject
	if err := s.readObject(ctx, domainKind, obj, &o); err != nil {
		return d, false, err
	}
	damaged := func(err error) error { return &Error{Kind: Damaged, Op: "load domain", Object: obj.name, Err: err} }
	if obj.name != domainPrefix+o.ID.String() {
		return d, false, damaged(fmt.Errorf("it is that of %v", o.ID))
	}
	if d, err = o.domain(); err != nil {
		return d, false, damaged(err)
	}
	return d, o.Primary, nil
}
