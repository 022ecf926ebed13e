package ingest

import (
	"context"
	"slices"
	"testing"

	"coffer/dedup"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// movingView is a view whose chunks, each in a frame of its own, are moved into another container now and then.
type movingView struct {
	View
	home   container.ID
	moveAt map[int]bool // by the number of the read
	reads  int
}

func (v *movingView) Plan(_ context.Context, ds []digest.Digest) ([]dedup.PlanItem, error) {
	var plan []dedup.PlanItem
	for i, d := range ds {
		plan = append(plan, dedup.PlanItem{Loc: dedup.Loc{Container: v.home, Frame: uint32(d[0])}, Want: []int{i}})
	}
	slices.SortFunc(plan, func(a, b dedup.PlanItem) int { return a.Loc.Compare(b.Loc) })
	return plan, nil
}

func (v *movingView) Frame(_ context.Context, loc dedup.Loc, _ *dedup.FrameBuffer) (frame.Frame, error) {
	v.reads++
	if v.moveAt[v.reads] {
		v.home++
	}
	if loc.Container != v.home {
		return frame.Frame{}, &dedup.Error{Kind: dedup.NotFound, Op: "read frame"}
	}
	return frame.Frame{Refs: []frame.Ref{{Digest: digest.Digest{byte(loc.Frame)}, Length: 1}}}, nil
}

// A container that goes in the middle of a request costs a new plan; each chunk is still sent once.
func TestChunksMoveDuringFetch(t *testing.T) {
	wanted := []digest.Digest{{5}, {3}, {9}, {1}, {7}}
	for name, c := range map[string]struct {
		moveAt []int
		fails  bool
	}{
		"never": {}, "before the first": {moveAt: []int{1}}, "in the middle": {moveAt: []int{3}}, "last": {moveAt: []int{5}},
		"twice": {moveAt: []int{2, 5}}, "before each": {moveAt: []int{1, 2, 3, 4, 5, 6, 7}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			v := &movingView{home: 1, moveAt: make(map[int]bool)}
			for _, n := range c.moveAt {
				v.moveAt[n] = true
			}
			sender := &chunkSender{run: &Run{opts: RunOptions{View: v}, srv: &Server{}}}
			frames := make(chan frameOrError, 10)
			sender.read(t.Context(), wanted, frames)
			var got []int
			var err error
			for f := range frames {
				if err = f.err; err == nil {
					got = append(got, f.want...)
					if f.frame.Refs[0].Digest != wanted[f.want[0]] {
						t.Errorf("chunk %d is %v", f.want[0], f.frame.Refs[0].Digest)
					}
				}
			}
			slices.Sort(got)
			if c.fails {
				if dedup.KindOf(err) != dedup.NotFound {
					t.Errorf("error %v", err)
				}
			} else if err != nil || !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}
