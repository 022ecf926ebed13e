package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// badRow reports whether the place that the index names is one that nobody may rely on.
func (s *Store) badRow(ctx context.Context, at index.Loc) bool {
	bad, doubt := s.badEntry(ctx, at)
	if doubt {
		_, err := s.directory(ctx, at.Container) // it goes onto the list
		bad = err == nil
	}
	return bad
}

// badEntry is badRow for who holds the index: doubt is true of a container that does not read and is not on the list yet.
func (s *Store) badEntry(ctx context.Context, at index.Loc) (bad, doubt bool) {
	if !s.damage.any.Load() {
		return false, false
	}
	if !s.containers.readable(at.Container) {
		return true, false
	}
	dir, err := s.dirs.load(ctx, at.Container)
	switch k := kindFromBelow(err); {
	case err != nil && (k == Damaged || k == NotFound):
		there := s.containers.has(at.Container)
		return !there, there
	case err != nil:
		return false, false
	}
	return int64(at.Slot) >= int64(dir.Rows()) || s.damage.badPlace(Loc{at.Container, dir.Row(at.Slot).Frame}), false
}

// healBy takes what a container brought off the damage list, after it was read back from where it lies. The index names it
// by now: what is on the list gives way.
func (s *Store) healBy(ctx context.Context, dir *container.Directory) error {
	if !s.damage.any.Load() {
		return nil
	}
	frames := make(map[uint32]bool)
	for slot := range uint32(dir.Rows()) {
		if s.damage.has(dir.Digest(slot)) {
			frames[dir.Row(slot).Frame] = false
		}
	}
	if len(frames) == 0 {
		return nil
	}
	healthy := make(map[digest.Digest]struct{})
	for i := range frames {
		if _, err := s.decode(ctx, dir, i); err != nil {
			if KindOf(err) == Damaged {
				continue
			}
			return err
		}
		f := dir.Frame(i)
		for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
			healthy[dir.Digest(slot)] = struct{}{}
		}
	}
	if err := s.onlyNamed(ctx, dir, healthy); err != nil {
		return err
	}
	if n := s.damage.heal(func(d digest.Digest) bool { _, ok := healthy[d]; return ok }); n > 0 {
		s.log.Info("damage healed", "digests", n, "container", dir.ID().String())
		s.keeper.kick()
	}
	return nil
}

// onlyNamed leaves those digests that the index has in the container.
func (s *Store) onlyNamed(ctx context.Context, dir *container.Directory, ds map[digest.Digest]struct{}) error {
	list := make([]digest.Digest, 0, len(ds))
	for d := range ds {
		list = append(list, d)
	}
	locs, ok := make([]index.Loc, len(list)), make([]bool, len(list))
	if err := s.index.Lookup(ctx, list, locs, ok); err != nil {
		return wrap("look up index", dir.ID().String(), err)
	}
	for i, d := range list {
		if !ok[i] || locs[i].Container != dir.ID() {
			delete(ds, d)
		}
	}
	return nil
}
