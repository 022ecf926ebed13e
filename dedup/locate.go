package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// indexed finds digests through the index, and holds each hint against the directory that it names. The place of a
// digest that is not found, or whose container is gone or damaged, has no dir. A container may go between the two looks,
// its chunks moved: then the index is asked once more.
func (s *Store) indexed(ctx context.Context, ds []digest.Digest) ([]found, error) {
	places, gone, err := s.hinted(ctx, ds)
	if err != nil || len(gone) == 0 {
		return places, err
	}
	sub := make([]digest.Digest, len(gone))
	for j, i := range gone {
		sub[j] = ds[i]
	}
	again, _, err := s.hinted(ctx, sub)
	if err != nil {
		return nil, err
	}
	for j, i := range gone {
		places[i] = again[j]
	}
	return places, nil
}

// hinted is indexed with one look; gone are those whose container is not there.
func (s *Store) hinted(ctx context.Context, ds []digest.Digest) (places []found, gone []int, err error) {
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return nil, nil, wrap("look up index", "", err)
	}
	places = make([]found, len(ds))
	var dir *container.Directory
	for i := range ds {
		if !ok[i] {
			continue
		}
		if dir == nil || dir.ID() != locs[i].Container {
			if dir, err = s.directory(ctx, locs[i].Container); err != nil {
				return nil, nil, err
			}
		}
		if dir != nil && int64(locs[i].Slot) < int64(dir.Rows()) && dir.Digest(locs[i].Slot) == ds[i] {
			places[i] = found{dir: dir, slot: locs[i].Slot, canonical: true}
		} else {
			places[i].damaged = dir == nil
		}
		if dir == nil && !s.containers.has(locs[i].Container) {
			gone = append(gone, i)
		}
	}
	return places, gone, nil
}

// directory returns a container's directory; nil when the container is gone or damaged. One that proves damaged is marked,
// so that what it held is stored again.
func (s *Store) directory(ctx context.Context, id container.ID) (*container.Directory, error) {
	if !s.containers.readable(id) {
		return nil, nil
	}
	dir, err := s.dirs.load(ctx, id)
	if err == nil {
		return dir, nil
	}
	return s.unreadable(ctx, id, err)
}

// unreadable judges why a directory did not load: no directory and no error when the container went, or is damaged, which
// marks it.
func (s *Store) unreadable(ctx context.Context, id container.ID, err error) (*container.Directory, error) {
	if k := kindFromBelow(err); k != Damaged && k != NotFound {
		return nil, wrap("load directory", id.String(), err)
	}
	if !s.containers.has(id) {
		return nil, nil // it went meanwhile
	}
	s.spoil(ctx, id, err)
	return nil, nil
}

// locate finds where digests are, for reading. Any copy will do, a damaged one if there is no other: whoever reads it will
// see. The place of one that is not there has no dir.
func (s *Store) locate(ctx context.Context, ds []digest.Digest) ([]found, error) {
	places := make([]found, len(ds))
	s.dirs.find(ds, places)
	var rest []int
	for i := range places {
		if places[i].dir != nil && !s.containers.has(places[i].dir.ID()) {
			s.dirs.forget(places[i].dir.ID()) // loaded while it went
			places[i] = found{}
		}
		if places[i].dir == nil || s.damage.badPlace(places[i].loc()) || s.stale(places[i]) {
			rest = append(rest, i)
		}
	}
	if len(rest) == 0 {
		return places, nil
	}
	sub := make([]digest.Digest, len(rest))
	for j, i := range rest {
		sub[j] = ds[i]
	}
	more, err := s.indexed(ctx, sub)
	if err != nil {
		return nil, err
	}
	for j, i := range rest {
		if more[j].dir != nil || places[i].dir == nil {
			places[i] = more[j]
		}
	}
	return places, nil
}

// stale reports whether another copy than this one may be the one that the index names: that lies better, or lives longer.
func (s *Store) stale(at found) bool {
	return at.dir.Kind() == container.Data && (!at.canonical || s.containers.overtaken(at.dir.ID()))
}

// missing is the error for a digest that has no place.
func (at found) missing(op string, d digest.Digest) error {
	e := &Error{Kind: NotFound, Op: op, Object: d.String()}
	if at.damaged {
		e.Kind = Damaged
	}
	return e
}
