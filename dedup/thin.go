package dedup

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

const (
	// thinShare: a frame of which a saveset has less than one part in so many is thin. Data of which a twentieth changes from
	// one saveset to the next has frames of half its chunks after 13 of them: by then to store those anew costs a twentieth of it
	// each time, and a reader decodes one and a half times what it needs instead of three times.
	thinShare = 2
	// maxThinCounted bounds the frames that are counted, and with them the memory (some 64 MiB): the first 256 GiB of a
	// saveset, where nearly all of each frame is its own.
	maxThinCounted = 1 << 20
	// thinStep is how many chunks are looked up at a time, and thinAtOnce how many before runs are given way to: a short run shall
	// know its thin frames early, and so many take some tenths of a second.
	thinStep   = 512
	thinAtOnce = 1 << 16
)

// thinFrames are those that a reader of a saveset decodes for little.
type thinFrames map[Loc]struct{}

// frameUse is how much of a frame a saveset has, in bytes; a chunk that it has twice counts twice.
type frameUse struct{ given, plain uint32 }

// lookBack begins to walk over the saveset that the run is likely to be like. It ends with the run, and keeps nobody from
// deleting the saveset meanwhile.
func (r *Run) lookBack(id SavesetID) {
	if !r.opts.Rewrite || id.IsZero() || !r.opts.SealedBy.IsZero() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.endLookBack = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		if v, ok := r.s.look(id); ok && v.Manifest().Domain == r.domain.ID {
			r.findThin(ctx, v)
		}
	}()
}

// findThin tells the layout which frames are worth to be stored anew. It gives way to all runs, this one too: a run that is over
// before has nothing stored anew by it.
func (r *Run) findThin(ctx context.Context, v *View) {
	select {
	case r.s.thinking <- struct{}{}:
		defer func() { <-r.s.thinking }()
	case <-ctx.Done():
		return
	}
	frames, err := r.s.countFrames(ctx, v)
	if err != nil {
		if _, there := r.s.look(v.Manifest().ID); there && ctx.Err() == nil {
			r.log.Warn("how a saveset lies was not found out; nothing is lost by that", "saveset", v.Manifest().ID, "err", err)
		}
		return
	}
	r.layout.setThin(thinOf(frames))
}

// thinOf picks the thinnest frames, as many as may be stored anew.
func thinOf(frames map[Loc]frameUse) thinFrames {
	type one struct {
		Loc
		frameUse
	}
	var all []one
	total := uint64(0)
	for loc, u := range frames {
		total += uint64(u.given)
		if u.given*thinShare < u.plain {
			all = append(all, one{loc, u})
		}
	}
	slices.SortFunc(all, func(a, b one) int {
		return cmp.Or(cmp.Compare(uint64(a.given)*uint64(b.plain), uint64(b.given)*uint64(a.plain)),
			cmp.Compare(a.Container, b.Container), cmp.Compare(a.Frame, b.Frame))
	})
	thin, sum := make(thinFrames), uint64(0)
	for _, f := range all {
		if sum += uint64(f.given); sum > total/rewriteShare {
			break
		}
		thin[f.Loc] = struct{}{}
	}
	return thin
}

// countFrames tells how much of each data frame a saveset has.
func (s *Store) countFrames(ctx context.Context, v *View) (map[Loc]frameUse, error) {
	c := frameCounter{s: s, frames: make(map[Loc]frameUse)}
	m := v.Manifest()
	err := recipe.Walk(ctx, v, m.Root.Digest, m.Side.Digest, func(_ string, st recipe.Step) error {
		if !st.Entry.IsRegular() {
			return nil
		}
		return c.file(ctx, recipe.NewStreamIter(v, st.Entry.Content, st.Entry.Size))
	})
	if err == nil {
		err = c.count(ctx)
	}
	if errors.Is(err, errAllCounted) {
		err = nil
	}
	return c.frames, err
}

// errAllCounted ends a count that has reached its bound.
var errAllCounted = errors.New("enough frames")

type frameCounter struct {
	s      *Store
	next   []digest.Digest
	looked int // chunks that were looked up
	frames map[Loc]frameUse
}

func (c *frameCounter) file(ctx context.Context, it *recipe.StreamIter) error {
	for {
		x, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if x.Hole {
			continue
		}
		if c.next = append(c.next, x.Digest); len(c.next) == thinStep {
			if err := c.count(ctx); err != nil {
				return err
			}
		}
	}
}

// count looks up what has come together.
func (c *frameCounter) count(ctx context.Context) error {
	c.looked += len(c.next)
	if c.looked < thinAtOnce {
		return errors.Join(c.lookUp(ctx), stopped(ctx))
	}
	return c.s.givingWay(ctx, func() error { return c.lookUp(ctx) })
}

func (c *frameCounter) lookUp(ctx context.Context) error {
	places, err := c.s.locate(ctx, c.next)
	c.next = c.next[:0]
	for _, at := range places {
		if at.dir != nil && at.dir.Kind() == container.Data {
			c.add(at)
		}
	}
	if err == nil && len(c.frames) >= maxThinCounted {
		err = errAllCounted
	}
	return err
}

func (c *frameCounter) add(at found) {
	loc := at.loc()
	u, seen := c.frames[loc]
	if !seen {
		u.plain = at.dir.Frame(loc.Frame).Plain
	}
	u.given = min(u.given+at.dir.Row(at.slot).Length, u.plain)
	c.frames[loc] = u
}
