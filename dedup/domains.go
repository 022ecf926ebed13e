package dedup

import (
	"context"
	"sync"

	"coffer/dedup/digest"
)

// domainSet is the domains of a store whose keys it has.
type domainSet struct {
	mu sync.RWMutex
	m  map[digest.DomainID]Domain // guarded by mu
}

func (t *domainSet) add(d Domain) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[digest.DomainID]Domain)
	}
	t.m[d.ID] = d
}

func (t *domainSet) get(id digest.DomainID) (Domain, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d, ok := t.m[id]
	return d, ok
}

// DomainByID returns a domain of the store. Kind NotFound.
func (s *Store) DomainByID(id digest.DomainID) (Domain, error) {
	if d, ok := s.domains.get(id); ok {
		return d, nil
	}
	return Domain{}, &Error{Kind: NotFound, Op: "find domain", Object: id.String()}
}

// AddDomain makes another domain, with a random id, key and polynomial, for runs that name it (RunOptions.Domain): what
// they store is shared with no run of another domain. maxChunk, if not 0, is the longest chunk that its agents cut.
func (s *Store) AddDomain(ctx context.Context, maxChunk int) (Domain, error) {
	if err := s.alive(); err != nil {
		return Domain{}, err
	}
	d, err := newDomain()
	if err != nil {
		return Domain{}, err
	}
	if maxChunk > 0 {
		d.Chunking.Max = min(d.Chunking.Max, maxChunk)
	}
	if err := d.Chunking.Validate(); err != nil {
		return Domain{}, &Error{Kind: Invalid, Op: "add domain", Err: err}
	}
	if err := s.checkSpace(ctx, maxMeta); err != nil {
		return Domain{}, err
	}
	o := d.object()
	o.Primary = false
	if err := s.putObject(ctx, domainKind, domainPrefix+d.ID.String(), o); err != nil {
		return Domain{}, err
	}
	s.domains.add(d)
	return d, nil
}

// runDomain returns the domain that a run writes into. Kinds NotFound; Invalid for sealed nodes in the domain of all, where
// they could be had by runs that cannot read them.
func (s *Store) runDomain(opts RunOptions) (Domain, error) {
	if opts.Domain.IsZero() || opts.Domain == s.domain.ID {
		if !opts.SealedBy.IsZero() {
			return Domain{}, &Error{Kind: Invalid, Op: "begin run", Object: opts.ID, Err: errSealedForAll}
		}
		return s.domain, nil
	}
	return s.DomainByID(opts.Domain)
}
