package dedup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"coffer/dedup/container"
)

// tombstones are the dead slots by container, as the newest object says.
type tombstones struct {
	mu     sync.Mutex
	number uint32   // guarded by mu: highest in use
	newest uint32   // guarded by mu: of the object that counts; 0: there is none
	dead   graves   // guarded by mu; never changed
	lost   bool     // guarded by mu: the newest object cannot be read
	doubt  bool     // guarded by mu: there may be a newer object, whose writing failed
	names  []string // guarded by mu: objects that are there, or may be
	limit  int      // of an object's bytes
}

// loadTombstones reads the newest object. One that is damaged makes the dead nodes unknown: see enterAgain.
func (s *Store) loadTombstones(ctx context.Context) error {
	t := &s.tombstones
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = maxObject
	newest, err := s.listTombstones(ctx)
	if t.newest = newest; err != nil || newest == 0 {
		return err
	}
	name := tombstoneName(newest)
	t.dead, err = s.readTombstones(ctx, name, newest)
	if KindOf(err) == Damaged || KindOf(err) == NotFound {
		s.log.Error("tombstones are damaged: no node is had from a container that has to be indexed anew", "object", name, "err", err)
		s.damaged.Add(1)
		t.lost, t.dead = true, nil
		return nil
	}
	return err
}

// listTombstones learns which objects there are, and returns the number of the newest; 0: none. Parts of a number that has
// no object are what a crash left. It needs s.tombstones.mu held.
func (s *Store) listTombstones(ctx context.Context) (newest uint32, err error) {
	t := &s.tombstones
	for _, prefix := range []string{tombstonePrefix, tombstonePartPrefix} {
		for o, err := range s.objects(ctx, prefix) {
			if err != nil {
				return 0, wrap("list tombstones", "", err)
			}
			number, _, _ := strings.Cut(strings.TrimPrefix(o.name, prefix), "-")
			n, ok := parseNumber(number)
			if !ok {
				continue // not ours
			}
			t.number = max(t.number, n)
			t.names = append(t.names, o.name)
			if prefix == tombstonePrefix {
				newest = max(newest, n)
			}
		}
	}
	return newest, nil
}

// readTombstones reads an object with its parts. Kinds Damaged, and NotFound for a part that is missing.
func (s *Store) readTombstones(ctx context.Context, name string, number uint32) (graves, error) {
	damaged := func(name string, err error) error {
		return &Error{Kind: Damaged, Op: "read tombstones", Object: name, Err: err}
	}
	var o tombstonesObject
	if err := s.getObject(ctx, tombstoneKind, name, &o); err != nil {
		return nil, err
	}
	if o.Number != number {
		return nil, damaged(name, errors.New("it is another one's"))
	}
	if err := o.check(); err != nil {
		return nil, damaged(name, err)
	}
	dead := make(graves, len(o.Containers))
	last, err := dead.add(o.Containers, 0)
	if err != nil {
		return nil, damaged(name, err)
	}
	for i := range o.Parts {
		var p tombstonePart
		name := tombstonePartName(number, i)
		if err := s.getObject(ctx, tombstonePartKind, name, &p); err != nil {
			return nil, err
		}
		if p.Number != number || p.Part != i {
			return nil, damaged(name, errors.New("it is another one's"))
		}
		if last, err = dead.add(p.Containers, last); err != nil {
			return nil, damaged(name, err)
		}
	}
	return dead, nil
}

// buried returns the dead slots of a container. lost: nobody knows which they are.
func (t *tombstones) buried(id container.ID) (dead grave, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dead[id], t.lost
}

// lacks reports whether there are no tombstones of this number, or later ones. Where there are none at all they may have been
// lost, and count as that.
func (t *tombstones) lacks(number uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number <= t.newest {
		return false
	}
	t.lost = t.lost || t.newest == 0
	t.number = max(t.number, number) // the next ones count for an index that knows of these
	return true
}

// noteDead has the index know which tombstones it obeys from now on. INVARIANT: so an index that has lost the entries of dead
// nodes is not used for a store in which they live.
func (s *Store) noteDead(ctx context.Context) error {
	s.tombstones.mu.Lock()
	n := s.tombstones.newest
	s.tombstones.mu.Unlock()
	return wrap("note tombstones", tombstoneName(n), s.index.NoteDead(ctx, n))
}

// noteLostDead has an index that is made anew know that tombstones were lost, so that the next Open knows it, too. It ends with
// the next tombstones: they have a higher number.
func (s *Store) noteLostDead(ctx context.Context) error {
	s.tombstones.mu.Lock()
	n, lost := s.tombstones.number, s.tombstones.lost && s.tombstones.newest == 0
	s.tombstones.mu.Unlock()
	if !lost {
		return nil
	}
	return wrap("note tombstones", tombstoneName(n), s.index.NoteDead(ctx, n))
}

// all returns the dead slots of all containers.
func (t *tombstones) all() graves {
	t.mu.Lock()
	defer t.mu.Unlock()
	dead := make(graves, len(t.dead))
	maps.Copy(dead, t.dead)
	return dead
}

// unsure reports whether the newest object may say something else than what is in memory.
func (t *tombstones) unsure() (doubt, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.doubt, t.lost
}

// bury makes the dead slots of all containers durable, in place of what was known before. It may use the reserve: it is what
// makes space. When it fails, and an object may be there all the same, the tombstones are in doubt until the next bury:
// nobody may rely on what they would name.
//
// INVARIANT: the parts are durable before the object that counts them, and what went before stays until that is.
func (s *Store) bury(ctx context.Context, dead graves) error {
	t := &s.tombstones
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++ // a number is never used twice, whatever comes of it
	names, err := s.putTombstones(ctx, t.number, dead)
	if err != nil {
		left := s.dropTombstones(context.WithoutCancel(ctx), names)
		t.doubt = t.doubt || len(left) > 0 && left[0] == tombstoneName(t.number)
		t.names = append(t.names, left...)
		return err
	}
	old := t.names
	t.names, t.newest, t.dead, t.lost, t.doubt = names, t.number, dead, false, false
	t.names = append(t.names, s.dropTombstones(ctx, old)...)
	return nil
}

// putTombstones writes tombstones, and returns the names of all objects that there may be, in the order in which they go:
// the one that counts first.
func (s *Store) putTombstones(ctx context.Context, n uint32, dead graves) (names []string, err error) {
	o, parts := newTombstones(n, s.opts.Now(), dead, s.tombstones.limit)
	if len(parts) > maxTombstoneParts {
		return nil, &Error{Kind: Invalid, Op: "put tombstones", Object: tombstoneName(n), Err: fmt.Errorf("%d parts, limit %d", len(parts), maxTombstoneParts)}
	}
	for _, p := range parts {
		name := tombstonePartName(n, p.Part)
		names = append(names, name)
		if err := s.putObject(ctx, tombstonePartKind, name, p); err != nil {
			return names, err
		}
	}
	names = append([]string{tombstoneName(n)}, names...)
	return names, s.putObject(ctx, tombstoneKind, tombstoneName(n), o)
}

// dropTombstones removes objects in their order, and returns those that may still be there.
func (s *Store) dropTombstones(ctx context.Context, names []string) (left []string) {
	for i, name := range names {
		if err := s.deleteObject(ctx, name); err != nil {
			s.log.Warn("tombstones that do not count stay", "object", name, "err", err)
			return names[i:]
		}
	}
	return nil
}

// forgetTombstones drops what is said of containers that are gone for good.
func (s *Store) forgetTombstones(ctx context.Context) error {
	dead := s.tombstones.all()
	n := len(dead)
	maps.DeleteFunc(dead, func(id container.ID, _ grave) bool { return !s.containers.has(id) })
	if len(dead) == n {
		return nil
	}
	return s.bury(ctx, dead)
}

// rebury writes the tombstones anew as they are in memory. Kind Damaged: they could not be read.
func (s *Store) rebury(ctx context.Context, name string) error {
	if _, lost := s.tombstones.unsure(); lost {
		return &Error{Kind: Damaged, Op: "heal object", Object: name}
	}
	return s.bury(ctx, s.tombstones.all())
}
