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

// Plan tells in which frames chunks lie, in storage order (container, then frame); each frame once. Kinds NotFound and
// Damaged name the first chunk that is missing or cannot be read.
func (v *View) Plan(ctx context.Context, ds []digest.Digest) ([]PlanItem, error) {
	if err := v.alive(); err != nil {
		return nil, err
	}
	places, err := v.s.locate(ctx, ds)
	if err != nil {
		return nil, err
	}
	items := make(map[Loc]*PlanItem)
	for i, at := range places {
		if at.dir == nil || at.dir.Kind() != container.Data || at.dir.Domain() != v.manifest.Domain {
			return nil, at.missing("plan", ds[i])
		}
		loc := at.loc()
		it, ok := items[loc]
		if !ok {
			f := at.dir.Frame(loc.Frame)
			it = &PlanItem{Loc: loc, StoredBytes: f.Size, PlainBytes: f.Plain}
			items[loc] = it
		}
		it.Want = append(it.Want, i)
	}
	out := make([]PlanItem, 0, len(items))
	for _, it := range items {
		out = append(out, *it)
	}
	slices.SortFunc(out, func(a, b PlanItem) int { return a.Loc.Compare(b.Loc) })
	return out, nil
}

func (at found) loc() Loc {
	return Loc{Container: at.dir.ID(), Frame: at.dir.Row(at.slot).Frame}
}
