package dedup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"coffer/dedup/blob"
	"coffer/dedup/keys"
)

// formMark stands between an object's name and the number of the store key in the blob name of a form. Part of the format.
const formMark = ".k"

// formName is the blob name of an object's form that was sealed again under a store key.
func formName(name string, key uint32) string { return fmt.Sprintf("%s%s%08x", name, formMark, key) }

// parseForm returns the name of the object that a blob is a form of.
func parseForm(blobName string) (name string) {
	i := len(blobName) - len(formMark) - 8
	if i <= 0 || blobName[i:i+len(formMark)] != formMark {
		return blobName
	}
	if _, ok := parseNumber(blobName[i+len(formMark):]); !ok {
		return blobName
	}
	return blobName[:i]
}

// object is a small object of the store. Its name is what it is sealed as and what callers know. It lies under one blob
// name, or under two while it is being sealed under another key: its forms (FORMAT.md), which say the same.
type object struct {
	name  string
	blobs []string // the newest form first
}

// objects lists the small objects below a prefix by name, each once, however many forms it has. Use it, readObject and
// deleteObject wherever the store has small objects of several names: a blob's name is not the object's.
func (s *Store) objects(ctx context.Context, prefix string) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		for o, err := range listObjects(ctx, s.blob, prefix) {
			if len(o.blobs) > 1 { // what a Reseal left that was interrupted
				s.oldObjects.Store(true)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// listObjects yields objects in order of their names. The forms of one follow each other in the listing: no name goes on
// with a character before the mark's.
func listObjects(ctx context.Context, b blob.Store, prefix string) iter.Seq2[object, error] {
	return func(yield func(object, error) bool) {
		var o object
		for info, err := range b.List(ctx, prefix, "") {
			if err != nil {
				yield(object{}, err)
				return
			}
			name := parseForm(info.Name)
			if name != o.name && len(o.blobs) > 0 {
				if !yield(o, nil) {
					return
				}
				o = object{}
			}
			o.name, o.blobs = name, slices.Insert(o.blobs, 0, info.Name)
		}
		if len(o.blobs) > 0 {
			yield(o, nil)
		}
	}
}

// forms returns all blob names that an object may lie under, the newest form first.
func (s *Store) forms(name string) object {
	o := object{name: name}
	for _, k := range slices.Backward(s.ring.Keys()) {
		o.blobs = append(o.blobs, formName(name, k.Number))
	}
	o.blobs = append(o.blobs, name)
	return o
}

// readObject reads a listed object, whichever of its forms is whole. Kinds NotFound, Damaged, NewerFormat; WrongKey for
// the domain alone: a keyring that does not know the domain's key is not this store's, whereas one object that names an
// unknown key is damaged.
func (s *Store) readObject(ctx context.Context, kind string, o object, v any) error {
	plain, err := s.openForms(ctx, kind, o)
	if KindOf(err) == NotFound { // sealed again since it was listed
		plain, err = s.openForms(ctx, kind, s.forms(o.name))
	}
	if err != nil {
		return err
	}
	return decodeObject(kind, o.name, plain, v)
}

// openForms returns the content of the first form that opens, or of the second copy. The error is that of the newest form that
// is there.
func (s *Store) openForms(ctx context.Context, kind string, o object) ([]byte, error) {
	var first error
	for _, name := range o.blobs {
		plain, err := s.openForm(ctx, kind, o.name, name)
		if err == nil {
			return plain, nil
		}
		if first == nil || KindOf(first) == NotFound {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if plain, ok := s.openCopy(ctx, kind, o, first); ok {
		return plain, nil
	}
	return nil, first
}

func (s *Store) openForm(ctx context.Context, kind, name, blobName string) ([]byte, error) {
	sealed, err := readWhole(ctx, s.blob, blobName)
	if err != nil {
		return nil, wrap("read "+kind, name, err)
	}
	if key, err := keys.ObjectKey(sealed); err == nil && key != s.ring.Current() {
		s.oldObjects.Store(true)
	}
	plain, err := s.ring.Open(kind, name, sealed)
	if errors.Is(err, keys.ErrUnknownKey) && kind != domainKind {
		err = &Error{Kind: Damaged, Op: "open " + kind, Object: name, Err: err}
	}
	return plain, wrap("open "+kind, name, err)
}

// checkNoForm reports blob.ErrExists when an object of the name lies under one of its other names.
func (s *Store) checkNoForm(ctx context.Context, name string) error {
	for _, form := range s.forms(name).blobs {
		if form == name {
			continue // Put finds that out
		}
		switch _, err := s.blob.Size(ctx, form); {
		case err == nil:
			return fmt.Errorf("%s: %w", form, blob.ErrExists)
		case !errors.Is(err, blob.ErrNotExist):
			return err
		}
	}
	return nil
}

// deleteObject removes an object in all its forms, and its second copy before them. What is not there is deleted. It excludes Reseal, which would bring the
// object back.
func (s *Store) deleteObject(ctx context.Context, name string) error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	if err := s.dropCopy(ctx, name); err != nil {
		return err
	}
	return s.deleteForms(ctx, s.forms(name).blobs)
}

// deleteForms removes the older forms before the newer ones: what a crash leaves is an object as it was. It needs
// s.sealing held.
func (s *Store) deleteForms(ctx context.Context, forms []string) error {
	for _, form := range slices.Backward(forms) {
		if err := s.blob.Delete(ctx, form); err != nil && !errors.Is(err, blob.ErrNotExist) {
			return wrap("delete object", form, err)
		}
	}
	return nil
}

// namedKey returns the number of the store key that a blob of a small object names.
func (s *Store) namedKey(ctx context.Context, blobName string) (uint32, error) {
	var head [keys.ObjectHead]byte
	err := s.blob.ReadRange(ctx, blobName, head[:], 0)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", keys.ErrDamaged, err)
	}
	if err != nil {
		return 0, err
	}
	return keys.ObjectKey(head[:])
}

// ResealReport is what one Reseal did.
type ResealReport struct {
	// Resealed counts objects that name the current key now, and did not before.
	Resealed int
	// Stuck are objects that do not open, by name; they keep naming the key that they name.
	Stuck []string
	// Retired are store keys that opened something before, and open nothing any more.
	Retired []uint32
}

// Reseal seals all small objects that name an old key under the current one. It may be interrupted at any point and goes
// on the next time. Old keys that no object (no container) names any more open no objects (no containers) from then on.
// Runs, views and all other maintenance go on beside it. Kinds InUse (another change of keys runs), NoSpace.
func (s *Store) Reseal(ctx context.Context, progress func(Progress)) (ResealReport, error) {
	ctx, end, err := s.maintain(ctx, rekeying)
	if err != nil {
		return ResealReport{}, err
	}
	defer end()
	var rep ResealReport
	if s.objectsPending() {
		if err := s.resealAll(ctx, newMeter(progress), &rep); err != nil {
			return rep, wrap("reseal", "", err)
		}
	}
	return rep, wrap("reseal", "", s.retire(ctx, &rep))
}

// objectsPending reports whether an object may name a key that is not the current one.
func (s *Store) objectsPending() bool {
	return s.oldObjects.Load() || slices.ContainsFunc(s.oldKeys(), func(k keys.KeyState) bool { return !k.Encrypted && k.Objects })
}

func (s *Store) resealAll(ctx context.Context, m *meter, rep *ResealReport) error {
	s.barrier()
	m.phase("reseal", "objects", 0)
	for _, f := range objectFamilies {
		if err := s.resealFamily(ctx, f, m, rep); err != nil {
			return err
		}
	}
	s.oldObjects.Store(false) // what is stuck stays so
	return s.dropOldCopies(ctx)
}

// barrier returns when every object that is being put is there: what is put from now on names the current key.
func (s *Store) barrier() {
	s.sealing.Lock()
	defer s.sealing.Unlock() // nothing is guarded: it waits for who holds it
}

func (s *Store) resealFamily(ctx context.Context, f objectFamily, m *meter, rep *ResealReport) error {
	for o, err := range s.objects(ctx, f.prefix) {
		if err != nil {
			return wrap("list objects", f.prefix, err)
		}
		if err := stopped(ctx); err != nil {
			return err
		}
		if len(o.blobs) == 1 { // what is as it should be needs no lock
			if key, err := s.namedKey(ctx, o.blobs[0]); err == nil && key == s.ring.Current() {
				m.add(1)
				continue
			}
		}
		done, err := s.resealOne(ctx, f.kind, o)
		switch {
		case KindOf(err) == Damaged || KindOf(err) == WrongKey:
			s.log.Error("an object does not open and stays under its old key", "object", o.name, "err", err)
			rep.Stuck = append(rep.Stuck, o.name)
		case err != nil:
			return err
		case done:
			rep.Resealed++
		}
		m.add(1)
	}
	return nil
}

// resealOne brings one object to the current key; false when it is gone.
//
// INVARIANT: there is no moment without a whole form. The new form is durable, and was read back, before an old one goes.
// Nobody deletes the object meanwhile: it would come back.
func (s *Store) resealOne(ctx context.Context, kind string, o object) (bool, error) {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	o.blobs = s.present(ctx, o.blobs)
	if len(o.blobs) == 0 {
		return false, nil
	}
	current := s.ring.Current()
	for i, form := range o.blobs { // it may have got there, and been interrupted before the old form went
		if key, err := s.namedKey(ctx, form); err != nil || key != current {
			continue
		}
		if _, err := s.openForm(ctx, kind, o.name, form); err == nil {
			return true, s.resealed(ctx, o.name, form, slices.Delete(slices.Clone(o.blobs), i, i+1))
		}
	}
	plain, err := s.openForms(ctx, kind, o)
	if err != nil {
		return false, err
	}
	form := formName(o.name, current)
	if err := s.putForm(ctx, kind, o.name, form, plain); err != nil {
		return false, err
	}
	return true, s.resealed(ctx, o.name, form, slices.DeleteFunc(o.blobs, func(b string) bool { return b == form }))
}

// resealed removes what names an old key: the copy, which is made anew, and then the old forms.
func (s *Store) resealed(ctx context.Context, name, form string, old []string) error {
	if err := s.recopy(ctx, name, form); err != nil {
		return err
	}
	return s.deleteForms(ctx, old)
}

// present returns the blobs of a list that are there. What cannot be asked for counts as there.
func (s *Store) present(ctx context.Context, blobs []string) []string {
	return slices.DeleteFunc(slices.Clone(blobs), func(name string) bool {
		_, err := s.blob.Size(ctx, name)
		return errors.Is(err, blob.ErrNotExist)
	})
}

// putForm seals an object's content under the current key, puts it beside the other forms and reads it back. A form that
// does not open is in its way where an earlier one was damaged.
func (s *Store) putForm(ctx context.Context, kind, name, form string, plain []byte) error {
	if err := s.checkSpace(ctx, int64(len(plain))+maxMeta); err != nil {
		return err
	}
	sealed, err := s.ring.Seal(kind, name, plain)
	if err != nil {
		return wrap("seal "+kind, name, err)
	}
	if err := s.deleteForms(ctx, []string{form}); err != nil {
		return err
	}
	if err := s.putSealed(ctx, kind, form, sealed); err != nil {
		return err
	}
	back, err := s.openForm(ctx, kind, name, form)
	if err == nil && !bytes.Equal(back, plain) {
		err = &Error{Kind: Damaged, Op: "seal " + kind, Object: form, Err: errors.New("it does not read back")}
	}
	if err != nil {
		s.takeBack(ctx, form)
		return fmt.Errorf("read back: %w", err)
	}
	return nil
}

// parseNumber reads the 8 hex digits at the end of an epoch's, state's or form's name.
func parseNumber(s string) (uint32, bool) {
	if len(s) != 8 || strings.ToLower(s) != s {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return uint32(n), err == nil
}
