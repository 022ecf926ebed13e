package dedup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"coffer/dedup/blob"
)

// copyPrefix begins the blob names of second copies. Part of the format.
const copyPrefix = "copies/"

// copyName is the blob name of an object's second copy; empty for objects that have none. Those without which a saveset, or
// the store, could not be read have one.
//
// INVARIANT: a copy is written after its object is durable, and goes before its object. So it says what the object says, or
// said until something was lost; it is read only in the place of an object that does not open.
func copyName(name string) string {
	switch familyOf(name).kind {
	case domainKind, manifestKind, stateKind:
		return copyPrefix + strings.ReplaceAll(name, "/", "-")
	}
	return ""
}

// putCopy writes an object's second copy, whose bytes are those of a form of it. What keeps it from that costs nothing but the
// copy: the next check makes it. It needs s.sealing held.
func (s *Store) putCopy(ctx context.Context, name string, sealed []byte) {
	to := copyName(name)
	if to == "" {
		return
	}
	ctx = context.WithoutCancel(ctx)
	err := s.checkSpace(ctx, maxMeta)
	if err == nil {
		err = s.deleteForms(ctx, []string{to})
	}
	if err == nil {
		err = s.blob.Put(ctx, to, bytes.NewReader(sealed), int64(len(sealed)))
	}
	if err != nil {
		s.log.Warn("an object has no second copy until the next check", "object", name, "err", err)
	}
}

// dropCopy removes an object's second copy. It needs s.sealing held for writing.
func (s *Store) dropCopy(ctx context.Context, name string) error {
	to := copyName(name)
	if to == "" {
		return nil
	}
	return s.deleteForms(ctx, []string{to})
}

// recopy makes the copy of an object anew from a form of it. It needs s.sealing held for writing.
func (s *Store) recopy(ctx context.Context, name, form string) error {
	if copyName(name) == "" {
		return nil
	}
	sealed, err := readWhole(ctx, s.blob, form)
	if err != nil {
		return wrap("copy object", name, err)
	}
	if err := s.dropCopy(ctx, name); err != nil {
		return err
	}
	s.putCopy(ctx, name, sealed)
	return nil
}

// openCopy returns the content of an object whose forms do not open, from its second copy, and puts those on the damage list.
func (s *Store) openCopy(ctx context.Context, kind string, o object, why error) ([]byte, bool) {
	from := copyName(o.name)
	if from == "" || ctx.Err() != nil || KindOf(why) == NotFound {
		return nil, false
	}
	plain, err := s.openForm(ctx, kind, o.name, from)
	if err != nil {
		return nil, false
	}
	s.log.Warn("an object is read from its second copy", "object", o.name, "err", why)
	for _, form := range o.blobs {
		if _, err := s.openForm(ctx, kind, o.name, form); err != nil && KindOf(err) != NotFound {
			s.noteObject(form, savesetOf(form), err)
		}
	}
	return plain, true
}

// hasCopy reports whether the store knows an object from its second copy, or could.
func (s *Store) hasCopy(ctx context.Context, form string) bool {
	name := parseForm(form)
	from := copyName(name)
	if from == "" || !s.known(name) {
		return false
	}
	_, err := s.openForm(ctx, familyOf(name).kind, name, from)
	return err == nil
}

// checkCopy holds the second copy of an object against a form of it that is whole, and makes it where there is none, or one
// of other bytes. One that does not open is damage, and left to a healing.
func (c *check) checkCopy(ctx context.Context, kind, name, form string) error {
	to, s := copyName(name), c.s
	if to == "" {
		return nil
	}
	copied, err := readWhole(ctx, s.blob, to)
	if !errors.Is(err, blob.ErrNotExist) {
		if whole, err := c.smallObject(ctx, kind, name, to); err != nil || !whole {
			return err
		}
	}
	s.sealing.Lock()
	defer s.sealing.Unlock()
	sealed, err := readWhole(ctx, s.blob, form)
	if errors.Is(err, blob.ErrNotExist) || bytes.Equal(sealed, copied) {
		return nil // the object went, or all is well
	}
	return s.recopy(ctx, name, form)
}

// healCopy makes the damaged copy of an object anew. Kind Damaged: the object does not open either.
func (s *Store) healCopy(ctx context.Context, to string) error {
	name := strings.ReplaceAll(strings.TrimPrefix(to, copyPrefix), "-", "/")
	s.sealing.Lock()
	defer s.sealing.Unlock()
	o := s.formsThere(ctx, name)
	for _, form := range o.blobs {
		if _, err := s.openForm(ctx, familyOf(name).kind, name, form); err == nil {
			return s.recopy(ctx, name, form)
		}
	}
	if len(o.blobs) > 0 {
		return &Error{Kind: Damaged, Op: "heal object", Object: to}
	}
	return s.deleteForms(ctx, []string{to})
}

// healFromCopy puts an object back from its second copy. Kind Damaged: there is none that opens.
func (s *Store) healFromCopy(ctx context.Context, kind, name, bad string) error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	plain, err := s.openForm(ctx, kind, name, copyName(name))
	if err != nil {
		return &Error{Kind: Damaged, Op: "heal object", Object: name, Err: err}
	}
	return s.replaceForm(ctx, kind, name, bad, plain)
}

// replaceForm puts the content of an object beside a form that is damaged, and then removes that. It needs s.sealing held for
// writing.
func (s *Store) replaceForm(ctx context.Context, kind, name, bad string, plain []byte) error {
	form := formName(name, s.ring.Current())
	if form == bad {
		form = name
	}
	if err := s.putForm(ctx, kind, name, form, plain); err != nil {
		return err
	}
	return s.deleteForms(ctx, []string{bad})
}

// rewriteObject is replaceForm with what the store has in memory.
func (s *Store) rewriteObject(ctx context.Context, kind, name, bad string, v any) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return wrap("encode "+kind, name, err)
	}
	s.sealing.Lock()
	defer s.sealing.Unlock()
	return s.replaceForm(ctx, kind, name, bad, plain)
}

// dropOldCopies removes copies that do not name the current key: of objects that are gone, or that have none.
func (s *Store) dropOldCopies(ctx context.Context) error {
	for info, err := range s.blob.List(ctx, copyPrefix, "") {
		if err != nil {
			return wrap("list copies", "", err)
		}
		if err := stopped(ctx); err != nil {
			return err
		}
		key, err := s.namedKey(ctx, info.Name)
		if k := kindFromBelow(err); err == nil && key == s.ring.Current() || k == NotFound {
			continue
		} else if err != nil && k != Damaged {
			return wrap("read copy", info.Name, err)
		}
		if err := s.deleteForms(ctx, []string{info.Name}); err != nil {
			return err
		}
	}
	return nil
}
