package dedup

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// Loc is the place of one frame.
type Loc struct {
	Container container.ID
	Frame     uint32
}

func (l Loc) String() string { return fmt.Sprintf("%v frame %d", l.Container, l.Frame) }

// Compare orders places as they are stored.
func (l Loc) Compare(o Loc) int {
	return cmp.Or(cmp.Compare(l.Container, o.Container), cmp.Compare(l.Frame, o.Frame))
}

// PlanItem is one frame and which of the wanted chunks it holds.
type PlanItem struct {
	Loc Loc
	// Want are indexes into the list given to Plan, ascending.
	Want []int
	// StoredBytes (of its record) and PlainBytes of the whole frame.
	StoredBytes, PlainBytes uint32
}

// maxPrefetch bounds the stored bytes that Plan has the disk begin to read.
const maxPrefetch = 64 << 20

// Plan tells in which frames chunks lie, in storage order (container, then frame); each frame once. It has the disk begin
// to read them: call it for what is read next. Kinds NotFound and Damaged name the first chunk that is missing or cannot be
// read.
func (v *View) Plan(ctx context.Context, ds []digest.Digest) ([]PlanItem, error) {
	if err := v.alive(); err != nil {
		return nil, err
	}
	places, err := v.s.locate(ctx, ds)
	if err != nil {
		return nil, err
	}
	items, dirs := make(map[Loc]*PlanItem), make(map[container.ID]*container.Directory)
	for i, at := range places {
		if at.dir == nil || at.dir.Kind() != container.Data || at.dir.Domain() != v.manifest.Domain {
			return nil, at.missing("plan", ds[i])
		}
		loc := at.loc()
		it, ok := items[loc]
		if !ok {
			f := at.dir.Frame(loc.Frame)
			it = &PlanItem{Loc: loc, StoredBytes: f.Size, PlainBytes: f.Plain}
			items[loc], dirs[loc.Container] = it, at.dir
		}
		it.Want = append(it.Want, i)
	}
	out := make([]PlanItem, 0, len(items))
	for _, it := range items {
		out = append(out, *it)
	}
	slices.SortFunc(out, func(a, b PlanItem) int { return a.Loc.Compare(b.Loc) })
	v.s.prefetchPlan(out, dirs)
	return out, nil
}

func (s *Store) prefetchPlan(items []PlanItem, dirs map[container.ID]*container.Directory) {
	pre := s.prefetch()
	defer pre.flush()
	bytes := 0
	for _, it := range items {
		if bytes += int(it.StoredBytes); bytes > maxPrefetch {
			return
		}
		pre.add(dirs[it.Loc.Container], it.Loc.Frame)
	}
}

func (at found) loc() Loc {
	return Loc{Container: at.dir.ID(), Frame: at.dir.Row(at.slot).Frame}
}
