package dedup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"coffer/dedup/blob"
)

// Blob names of the small objects, and what they are sealed as. Part of the format; FORMAT.md has the contents.
const (
	domainPrefix   = "domains/"
	epochPrefix    = "epochs/"
	manifestPrefix = "manifests/"
	statePrefix    = "states/"

	domainKind   = "domain"
	epochKind    = "epoch"
	manifestKind = "manifest"
	stateKind    = "state"

	// objectVersion is the version of every small object but those below. A reader refuses a higher one by name.
	objectVersion = 1
	// manifestSwitches is the version of a manifest that tells its container switches; one that does not is of version 1.
	manifestSwitches = 2
	// manifestSealed is the version of a manifest whose saveset is sealed by a task key.
	manifestSealed = 3
	// maxObject is the most bytes of a small object: nobody reads more than that into memory.
	maxObject = 4 << 20
	// maxMeta is the most bytes of a manifest's Meta.
	maxMeta = 1 << 20
)

// objectFamily is the objects of one kind.
type objectFamily struct{ prefix, kind string }

// objectFamilies are all small objects of a store: what is not listed here would not be sealed again when the store's key
// changes. The domain comes first: a keyring that does not open it is not this store's. Within a family no name is
// another's beginning. Second copies are none of them: see copyName.
var objectFamilies = [...]objectFamily{
	{domainPrefix, domainKind},
	{epochPrefix, epochKind},
	{manifestPrefix, manifestKind},
	{statePrefix, stateKind},
	{tombstonePrefix, tombstoneKind},
	{tombstonePartPrefix, tombstonePartKind},
	{damagePrefix, damageKind},
	{checkPrefix, checkKind},
}

// familyOf returns the family that an object's name is of.
func familyOf(name string) objectFamily {
	for _, f := range objectFamilies {
		if strings.HasPrefix(name, f.prefix) {
			return f
		}
	}
	return objectFamily{}
}

func epochName(n uint32) string        { return fmt.Sprintf("%s%08x", epochPrefix, n) }
func manifestName(id SavesetID) string { return manifestPrefix + id.String() }
func stateName(id SavesetID, n uint32) string {
	return fmt.Sprintf("%s%s/%08x", statePrefix, id, n)
}

// newestVersion is the highest version of a kind of object that this program knows.
func newestVersion(kind string) int {
	switch kind {
	case manifestKind:
		return manifestSealed
	case tombstoneKind:
		return tombstonesInParts
	}
	return objectVersion
}

// putObject seals v as JSON and puts it under a name that must be free.
func (s *Store) putObject(ctx context.Context, kind, name string, v any) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return wrap("encode "+kind, name, err)
	}
	if len(plain) > maxObject {
		return &Error{Kind: Invalid, Op: "put " + kind, Object: name, Err: fmt.Errorf("%d bytes, limit %d", len(plain), maxObject)}
	}
	if familyOf(name).kind != kind {
		return &Error{Kind: Invalid, Op: "put " + kind, Object: name, Err: errors.New("no family of objects has such names")}
	}
	s.sealing.RLock()
	defer s.sealing.RUnlock()
	sealed, err := s.ring.Seal(kind, name, plain)
	if err != nil {
		return wrap("seal "+kind, name, err)
	}
	if err := s.checkNoForm(ctx, name); err != nil {
		return wrap("put "+kind, name, err)
	}
	if err := s.putSealed(ctx, kind, name, sealed); err != nil {
		return err
	}
	s.putCopy(ctx, name, sealed)
	return nil
}

// putSealed puts a sealed object under a blob name that must be free.
func (s *Store) putSealed(ctx context.Context, kind, name string, sealed []byte) error {
	if err := ctx.Err(); err != nil {
		return wrap("put "+kind, name, err)
	}
	ctx = context.WithoutCancel(ctx) // from here on it is there or not, and nobody's hurry makes that a question
	err := s.blob.Put(ctx, name, bytes.NewReader(sealed), int64(len(sealed)))
	if err != nil && !errors.Is(err, blob.ErrExists) && !s.takeBack(ctx, name) {
		err = fmt.Errorf("%w: %w", errLoose, err)
	}
	return wrap("put "+kind, name, err)
}

// errLoose is in the error of a Put that may appear at the next Open all the same.
var errLoose = errors.New("it may be there all the same")

// takeBack removes what a failed Put may have left: what was reported as failed must not appear at the next Open. It reports
// whether it is gone for good.
func (s *Store) takeBack(ctx context.Context, name string) bool {
	err := s.blob.Delete(ctx, name)
	if err != nil && !errors.Is(err, blob.ErrNotExist) {
		s.log.Warn("an object whose writing failed may be there", "blob", name, "err", err)
		return false
	}
	return true
}

// getObject reads what putObject put. Errors as those of readObject.
func (s *Store) getObject(ctx context.Context, kind, name string, v any) error {
	return s.readObject(ctx, kind, s.forms(name), v)
}

// readWhole reads a small blob.
func readWhole(ctx context.Context, b blob.Store, name string) ([]byte, error) {
	n, err := b.Size(ctx, name)
	if err != nil {
		return nil, err
	}
	if n > 2*maxObject {
		return nil, &Error{Kind: Damaged, Op: "read", Object: name, Err: fmt.Errorf("%d bytes, limit %d", n, maxObject)}
	}
	p := make([]byte, n)
	return p, b.ReadRange(ctx, name, p, 0)
}

// decodeObject reads the JSON of a small object. Unknown fields are refused: a field that an older program ignores might
// be the one that forbids a deletion.
func decodeObject(kind, name string, plain []byte, v any) error {
	var head struct {
		Version int `json:"version"`
	}
	damaged := func(err error) error { return &Error{Kind: Damaged, Op: "decode " + kind, Object: name, Err: err} }
	if err := json.Unmarshal(plain, &head); err != nil {
		return damaged(err)
	}
	if newest := newestVersion(kind); head.Version > newest {
		return &Error{Kind: NewerFormat, Op: "decode " + kind, Object: name, Err: fmt.Errorf("version %d, this program knows %d", head.Version, newest)}
	}
	if head.Version < 1 {
		return damaged(fmt.Errorf("version %d", head.Version))
	}
	dec := json.NewDecoder(bytes.NewReader(plain))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return damaged(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return damaged(errors.New("bytes after the object"))
	}
	return nil
}
