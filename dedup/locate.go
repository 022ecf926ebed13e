package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// indexed finds digests through the index, and holds each hint against the directory that it names. The place of a
// digest that is not found, or whose container is gone or damaged, has no dir.
func (s *Store) indexed(ctx context.Context, ds []digest.Digest) ([]found, error) {
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return nil, wrap("look up index", "", err)
	}
	places := make([]found, len(ds))
	var dir *container.Directory
	for i := range ds {
		if !ok[i] {
			continue
		}
		if dir == nil || dir.ID() != locs[i].Container {
			var err error
			if dir, err = s.directory(ctx, locs[i].Container); err != nil {
				return nil, err
			}
		}
		if dir != nil && int64(locs[i].Slot) < int64(dir.Rows()) && dir.Digest(locs[i].Slot) == ds[i] {
			places[i] = found{dir: dir, slot: locs[i].Slot, canonical: true}
		} else {
			places[i].damaged = dir == nil
		}
	}
	return places, nil
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
	if k := kindFromBelow(err); k != Damaged && k != NotFound {
		return nil, wrap("load directory", id.String(), err)
	}
	s.spoil(ctx, id, err)
	return nil, nil
}

// locate finds where digests are, for reading. Any copy will do. The place of one that is not there has no dir.
func (s *Store) locate(ctx context.Context, ds []digest.Digest) ([]found, error) {
	places := make([]found, len(ds))
	s.dirs.find(ds, places)
	var rest []int
	for i := range places {
		if places[i].dir == nil {
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
		places[i] = more[j]
	}
	return places, nil
}

// missing is the error for a digest that has no place.
func (at found) missing(op string, d digest.Digest) error {
	e := &Error{Kind: NotFound, Op: op, Object: d.String()}
	if at.damaged {
		e.Kind = Damaged
	}
	return e
}
