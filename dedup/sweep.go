package dedup

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
)

const (
	// emptyBatch is how many empty containers are condemned at a time: as many share a sync of the index.
	emptyBatch = 64
	// mergeFactor is the ratio between the sizes of two classes of small containers, and how many of a class are merged into
	// one of the next: so each chunk is copied a few times at most, and few small containers stay.
	mergeFactor = 8
	// Bounds of what is condemned and copied at a time: its chunks count as missing for runs meanwhile.
	copyBytes      = 8 // containers of full size
	copyRows       = 512 << 10
	copyContainers = 256
)

// sweep deletes containers that are empty and copies others forward. Nodes go first: what is freed of data then is final.
func (c *collection) sweep(ctx context.Context) error {
	for _, kind := range []container.Kind{container.Node, container.Data} {
		if err := c.sweepEmpty(ctx, kind); err != nil {
			return err
		}
	}
	for _, kind := range []container.Kind{container.Node, container.Data} {
		if err := c.copyForward(ctx, kind); err != nil {
			return err
		}
	}
	return nil
}

// pick returns the old containers that a function wants, oldest first.
func (c *collection) pick(want func(id container.ID, j *judged) bool) []container.ID {
	var ids []container.ID
	for _, id := range c.ids {
		if j := c.old[id]; !j.damaged && !j.gone && want(id, j) {
			ids = append(ids, id)
		}
	}
	return ids
}

// sweepEmpty deletes the containers of a kind of which nothing is needed.
func (c *collection) sweepEmpty(ctx context.Context, kind container.Kind) error {
	ids := c.pick(func(_ container.ID, j *judged) bool { return j.kind == kind && j.empty() })
	c.meter.phase("sweep", "containers", int64(len(ids)))
	for batch := range slices.Chunk(ids, emptyBatch) {
		if err := c.enoughDone(ctx); err != nil {
			return err
		}
		if err := c.sweepBatch(ctx, batch, func(taken []container.ID) error { return c.deleteEmpty(ctx, taken) }); err != nil {
			return err
		}
		c.meter.add(int64(len(batch)))
	}
	return nil
}

func (c *collection) deleteEmpty(ctx context.Context, ids []container.ID) error {
	if err := c.dropMarks(ctx, ids); err != nil {
		return err
	}
	for _, id := range ids {
		if err := c.s.givingWay(ctx, func() error { return c.remove(ctx, id) }); err != nil {
			return err
		}
		c.report.Deleted++
	}
	return nil
}

// dropMarks has the index not miss condemned containers that hold nothing of need any more.
func (c *collection) dropMarks(ctx context.Context, ids []container.ID) error {
	return wrap("remove marks", "", c.s.index.RemoveContainer(context.WithoutCancel(ctx), ids...))
}

// sweepBatch condemns containers, brings the marks up to date and hands over those that may go as before. Whatever comes
// of it, what is still there afterwards is reprieved.
func (c *collection) sweepBatch(ctx context.Context, ids []container.ID, do func(taken []container.ID) error) error {
	before := make(map[container.ID]judged, len(ids))
	for _, id := range ids {
		before[id] = *c.old[id]
	}
	condemned, err := c.s.condemnAll(ctx, ids)
	defer c.reprieve(condemned)
	c.unmark(ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.Contains(condemned, id) {
			c.old[id].pinned = true
		}
	}
	if err := c.update(ctx); err != nil {
		return err
	}
	taken := slices.DeleteFunc(slices.Clone(condemned), func(id container.ID) bool {
		now, was := c.old[id], before[id]
		return now.damaged || now.empty() != was.empty() || now.remains > 0
	})
	if len(taken) == 0 {
		return nil
	}
	return do(taken)
}

// enoughDone is enough, but for a collection that has not done anything yet: each gets on, however long its mark took.
func (c *collection) enoughDone(ctx context.Context) error {
	err := c.enough(ctx)
	if errors.Is(err, errEnough) && c.report.Deleted+c.report.Copied == 0 {
		return nil
	}
	return err
}

// remove deletes a condemned container. Its mark is gone.
//
// INVARIANT G5: the entries of its rows are gone, synced, and nobody finds it, before its blob goes.
func (c *collection) remove(ctx context.Context, id container.ID) error {
	ctx = context.WithoutCancel(ctx)
	dir, err := c.open(ctx, id)
	if err != nil || dir == nil {
		return err
	}
	if err := c.s.dropRows(ctx, dir, func(uint32) bool { return true }); err != nil {
		return err
	}
	size := c.s.containers.size(id)
	c.s.containers.remove(id)
	c.s.dirs.forget(id)
	c.find.dirs.forget(id)
	if err := c.s.blob.Delete(ctx, id.Name()); err != nil && !errors.Is(err, blob.ErrNotExist) {
		if _, gone := c.s.blob.Size(ctx, id.Name()); !errors.Is(gone, blob.ErrNotExist) {
			c.s.containers.restore(id, size)
		}
		return wrap("delete container", id.String(), err)
	}
	c.s.damage.drop(func(r *damageRow) bool { return r.Container == id && r.sort != damagedReference }) // nothing needs it
	c.marks.forget(id)
	c.old[id].gone = true
	delete(c.unmarked, id)
	c.report.FreedBytes += size
	return nil
}

// copyForward copies what is needed of sparse, outdated and small containers of a kind.
func (c *collection) copyForward(ctx context.Context, kind container.Kind) error {
	ids := c.worthCopying(kind)
	c.meter.phase("copy", "containers", int64(len(ids)))
	for len(ids) > 0 {
		round := c.round(ids)
		ids = ids[len(round):]
		order, err := c.ranks(ctx, kind, round)
		if err != nil {
			return err
		}
		for _, batch := range c.batches(order, round) {
			if err := c.enoughDone(ctx); err != nil {
				return err
			}
			if err := c.s.checkSpace(ctx, c.s.opts.ContainerSize); err != nil {
				return err
			}
			if err := c.sweepBatch(ctx, batch, func(taken []container.ID) error {
				return c.copyAway(ctx, kind, taken, order)
			}); err != nil {
				return err
			}
			c.meter.add(int64(len(batch)))
		}
	}
	return nil
}

// worthCopying chooses containers: those under an old key, oldest first; then sparse ones, that which frees the most
// first; then small ones, of a class of which there are enough. One with remains is left until they are too old: so a
// copy never holds any.
func (c *collection) worthCopying(kind container.Kind) []container.ID {
	may := func(j *judged) bool { return j.kind == kind && !j.empty() && !j.broken }
	sparse := func(j *judged) bool { return float64(j.needed) < c.opts.Sparse*float64(j.size-c.overhead(j)) }
	outdated := c.pick(func(_ container.ID, j *judged) bool { return may(j) && j.outdated })
	thin := c.pick(func(_ container.ID, j *judged) bool { return may(j) && !j.outdated && sparse(j) })
	slices.SortStableFunc(thin, func(a, b container.ID) int {
		x, y := c.old[a], c.old[b]
		return cmp.Compare(float64(x.needed)/float64(x.size), float64(y.needed)/float64(y.size))
	})
	classes := make(map[[2]int][]container.ID)
	domains := make(map[digest.DomainID]int)
	for _, id := range c.pick(func(_ container.ID, j *judged) bool { return may(j) && !j.outdated && !sparse(j) }) {
		j := c.old[id]
		if n := c.class(j.size); n >= 0 {
			if _, ok := domains[j.domain]; !ok {
				domains[j.domain] = len(domains)
			}
			at := [2]int{domains[j.domain], n}
			classes[at] = append(classes[at], id)
		}
	}
	ids := append(outdated, thin...)
	for _, small := range classes {
		if len(small) >= mergeFactor {
			ids = append(ids, small...)
		}
	}
	return ids
}

// overhead is what a container takes beside its frames: it does not count when the share of what is needed is asked for.
func (c *collection) overhead(j *judged) int64 {
	return int64(j.rows)*minRow + 512
}

// class returns the class of a small container's size, from 0 for the largest; -1 for one that is not small.
func (c *collection) class(size int64) int {
	limit := c.s.opts.ContainerSize / 2
	if size >= limit {
		return -1
	}
	n := 0
	for limit /= mergeFactor; size < limit; limit /= mergeFactor {
		n++
	}
	return n
}

// round takes as many containers as the order of their chunks can be kept in memory for.
func (c *collection) round(ids []container.ID) []container.ID {
	rows, n := 0, 0
	for n < len(ids) && (n == 0 || rows+int(c.old[ids[n]].rows) <= maxRanked) {
		rows += int(c.old[ids[n]].rows)
		n++
	}
	return ids[:n]
}

// batches cuts a round into what is condemned at a time: containers whose chunks come together in the recipes, of one
// domain.
func (c *collection) batches(order *ranking, ids []container.ID) [][]container.ID {
	ids = slices.Clone(ids)
	slices.SortStableFunc(ids, func(a, b container.ID) int {
		return cmp.Or(slices.Compare(c.old[a].domain[:], c.old[b].domain[:]), cmp.Compare(order.first[a], order.first[b]))
	})
	var out [][]container.ID
	bytes, rows, from := int64(0), 0, 0
	for i, id := range ids {
		j := c.old[id]
		full := bytes+j.needed > copyBytes*c.s.opts.ContainerSize || rows+int(j.rows) > copyRows || i-from >= copyContainers
		if i > from && (full || c.old[ids[from]].domain != j.domain) {
			out = append(out, ids[from:i])
			bytes, rows, from = 0, 0, i
		}
		bytes += j.needed
		rows += int(j.rows)
	}
	return append(out, ids[from:])
}

// count fills the report's figures that are known at the end of a sweep.
func (c *collection) count() {
	r := &c.report
	for _, id := range c.ids {
		switch j := c.old[id]; {
		case j.gone:
		case j.damaged:
			r.Damaged++
		default:
			r.Kept++
			if j.broken {
				r.Remains++
			}
			if j.pinned {
				r.Skipped++
			}
			r.Dead += uint64(j.dead)
		}
	}
	c.marks.mu.Lock()
	defer c.marks.mu.Unlock()
	r.Marked = c.marks.live
}
