package dedup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// remainsAge is how long the containers of a broken run are kept, so that the next run finds what it had sent.
const remainsAge = 3 * 24 * time.Hour

// collection is one garbage collection. One goroutine drives it.
type collection struct {
	s      *Store
	opts   CollectOptions
	report CollectReport
	meter  *meter
	pace   *pacer
	begun  time.Time // by the machine's clock
	now    time.Time // by the store's clock

	marks *marks
	find  *placeFinder
	// old are the containers that were there when the mark began. INVARIANT: only they are judged: into others, chunks may
	// have moved since they were marked.
	old map[container.ID]*judged
	// ids are those of old, ascending.
	ids []container.ID
	// marked are the savesets whose trees were walked; those that come later are walked before each decision.
	marked map[SavesetID]struct{}
	// unlisted are manifests that the store does not know: of runs that commit at this moment, or mended.
	unlisted []Manifest
	// deleted are the savesets that were deleted when the mark began.
	deleted []Manifest
	// missing are the chunks that a saveset needs and the index does not have: no copy of them goes, wherever it lies.
	missing map[digest.Digest]struct{}
	// unmarked are the containers that were condemned and reprieved: the index has to enter them again.
	unmarked map[container.ID]struct{}
	// pinnedDead is set when dead nodes had to stay, because a run had their container pinned.
	pinnedDead bool
}

// maxMissing bounds the list of missing chunks.
const maxMissing = 1 << 20

// errEnough ends a collection whose budget is used up.
var errEnough = errors.New("the budget is used up")

func newCollection(s *Store, o CollectOptions) *collection {
	if o.Sparse == 0 {
		o.Sparse = DefaultSparse
	}
	return &collection{s: s, opts: o, meter: newMeter(o.Progress), pace: &pacer{rate: o.Rate}, begun: time.Now(), now: s.opts.Now(),
		marks: newMarks(), find: newPlaceFinder(s), old: make(map[container.ID]*judged), marked: make(map[SavesetID]struct{}),
		missing: make(map[digest.Digest]struct{}), unmarked: make(map[container.ID]struct{})}
}

// run does the whole of it. Whatever ends it, nothing stays condemned.
func (c *collection) run(ctx context.Context) error {
	c.s.containers.watch(true)
	defer c.s.containers.watch(false)
	defer c.reenter(ctx)
	if err := c.s.settle(ctx); err != nil {
		return err
	}
	if err := c.mark(ctx); err != nil {
		return err
	}
	c.report.MarkTime = time.Since(c.begun)
	start := time.Now()
	defer func() { c.report.SweepTime = time.Since(start) }()
	if err := c.sweepNodes(ctx); err != nil {
		return err
	}
	err := c.sweep(ctx)
	c.count()
	if err != nil {
		return err
	}
	return c.finish(ctx)
}

// settle makes sure that what is gone stays so.
//
// INVARIANT G8: a container whose removal was not synced, by a collection or in the place of a run's that failed, would come
// back and have nodes whose deaths since then it is not named for; a manifest, without the state that deleted it.
func (s *Store) settle(ctx context.Context) error {
	b, ok := s.blob.(blob.Settler)
	if !ok {
		return nil
	}
	for _, prefix := range []string{container.Prefix, manifestPrefix} {
		if err := b.Settle(ctx, prefix); err != nil {
			return wrap("settle removals", "", err)
		}
	}
	return nil
}

// enough ends the collection, between two steps, when its budget is used up.
func (c *collection) enough(ctx context.Context) error {
	if err := stopped(ctx); err != nil {
		return err
	}
	if c.opts.Budget > 0 && time.Since(c.begun) > c.opts.Budget {
		return errEnough
	}
	return nil
}

// mark sets the marks of all savesets and of remains, and holds them against the containers.
func (c *collection) mark(ctx context.Context) error {
	c.ids = c.s.containers.without(nil)
	if err := c.knowsAll(ctx); err != nil {
		return err
	}
	live, gone := c.s.sets.all()
	c.report.Savesets, c.deleted = len(live), gone
	c.meter.phase("mark", "savesets", int64(len(live)))
	if err := c.markLive(ctx, append(live, c.unlisted...)); err != nil {
		return err
	}
	if err := c.markGone(ctx, gone); err != nil {
		return err
	}
	c.meter.phase("judge", "containers", int64(len(c.ids)))
	return c.judgeAll(ctx)
}

// knowsAll refuses to collect while a manifest cannot be read: its saveset may be healed. One that could not be read when the
// store opened, and can be now, counts as a saveset until the store opens anew.
func (c *collection) knowsAll(ctx context.Context) error {
	for o, err := range c.s.objects(ctx, manifestPrefix) {
		if err != nil {
			return wrap("list manifests", "", err)
		}
		id, err := ParseSavesetID(o.name[len(manifestPrefix):])
		if err != nil {
			continue // not ours
		}
		if _, ok := c.s.sets.get(id); ok {
			continue
		}
		m, err := c.s.readManifest(ctx, o)
		if err != nil {
			return &Error{Kind: Damaged, Op: "collect", Object: o.name, Err: fmt.Errorf("what its saveset needs is not known; put it back from a copy, or give it up (dismiss): %w", err)}
		}
		c.unlisted = append(c.unlisted, m)
	}
	return nil
}

// markLive walks savesets that are not deleted.
func (c *collection) markLive(ctx context.Context, sets []Manifest) error {
	w := c.liveWalk()
	for _, m := range sets {
		roots := []digest.Digest{m.Root.Digest}
		if !m.Side.Digest.IsZero() {
			roots = append(roots, m.Side.Digest)
		}
		if err := w.from(ctx, roots); err != nil {
			return err
		}
		if err := w.run(ctx); err != nil {
			return err
		}
		c.marked[m.ID] = struct{}{}
		c.meter.add(1)
		c.noteMemory(w)
	}
	return nil
}

// liveWalk is a walk whose nodes nobody may lose.
func (c *collection) liveWalk() *walk {
	w := &walk{find: c.find, reach: func(p place, d *digest.Digest) bool {
		c.marks.mu.Lock()
		defer c.marks.mu.Unlock()
		return c.marks.setLive(p, d)
	}}
	w.lost = func(d digest.Digest, node bool, cause error) error {
		if !node {
			return c.miss(d)
		}
		return &Error{Kind: Damaged, Op: "collect", Object: d.String(),
			Err: errors.Join(errors.New("a node that a saveset needs cannot be read, and what is below it is not known"), cause)}
	}
	return w
}

// remainsWalk is a walk through what no saveset reaches: what is there of it stays.
func (c *collection) remainsWalk() *walk {
	w := c.liveWalk()
	w.lost = func(d digest.Digest, node bool, _ error) error {
		if node {
			return nil
		}
		return c.miss(d)
	}
	return w
}

func (c *collection) miss(d digest.Digest) error {
	if len(c.missing) >= maxMissing {
		return &Error{Kind: Damaged, Op: "collect", Err: fmt.Errorf("more than %d chunks that savesets need are missing", maxMissing)}
	}
	c.missing[d] = struct{}{}
	return nil
}

// markGone walks savesets that are deleted, through what is still there of them.
func (c *collection) markGone(ctx context.Context, sets []Manifest) error {
	w := &walk{find: c.find, lost: func(digest.Digest, bool, error) error { return nil }}
	w.reach = func(p place, d *digest.Digest) bool {
		c.marks.mu.Lock()
		defer c.marks.mu.Unlock()
		return c.marks.setGone(p, d)
	}
	for _, m := range sets {
		if err := w.from(ctx, []digest.Digest{m.Root.Digest, m.Side.Digest}); err != nil {
			return err
		}
		if err := w.run(ctx); err != nil {
			return err
		}
		c.noteMemory(w)
	}
	return nil
}

// update brings the marks up to date with what came since the last look.
//
// INVARIANT G1: after this, marks are final for every container that was condemned before.
func (c *collection) update(ctx context.Context) error {
	if err := c.walkNodes(ctx, c.s.containers.arrivals()); err != nil {
		return err
	}
	var fresh []Manifest
	live, _ := c.s.sets.all()
	for _, m := range live {
		if _, ok := c.marked[m.ID]; !ok {
			fresh = append(fresh, m)
		}
	}
	if err := c.markLive(ctx, fresh); err != nil {
		return err
	}
	return c.judgeDirty(ctx)
}

// walkNodes takes every node of new containers as a root, in the index or not: at the next Open it would be.
func (c *collection) walkNodes(ctx context.Context, ids []container.ID) error {
	w := c.remainsWalk()
	for _, id := range ids {
		dir, err := c.find.directory(ctx, id)
		if err != nil {
			return err
		}
		if dir == nil && c.s.containers.reliedOn(id) {
			return &Error{Kind: Damaged, Op: "collect", Object: id.String(), Err: errUnreadable}
		}
		if dir == nil {
			continue
		}
		for slot := range uint32(dir.Rows()) {
			c.root(w, place{id, slot, container.Node}, dir.Digest(slot))
		}
	}
	return w.run(ctx)
}

// root adds a node to a walk, whatever the index says of it.
func (c *collection) root(w *walk, p place, d digest.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reach(p, &d) {
		w.pending = append(w.pending, nodePlace{p, d})
	}
}

func (c *collection) noteMemory(w *walk) {
	n := c.marks.memory() + c.find.memory() + w.memory() + int64(len(c.old))*judgedMem + int64(len(c.missing))*48
	c.report.Memory = max(c.report.Memory, n)
}

// finish ends a complete collection: what the deleted savesets left besides chunks goes, too.
func (c *collection) finish(ctx context.Context) error {
	if err := c.s.forgetTombstones(ctx); err != nil {
		return err
	}
	if !c.pinnedDead {
		if err := c.removeDeleted(ctx); err != nil {
			return err
		}
	}
	return c.s.removeOrphanStates(ctx)
}
