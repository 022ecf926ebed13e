package dedup

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// judged is what a collection knows of one container: what it is, and by the marks what of it is needed.
type judged struct {
	kind     container.Kind
	domain   digest.DomainID
	created  int64
	size     int64
	damaged  bool // it does not read: nothing is decided on it
	outdated bool // under an old store key
	gone     bool // deleted by this collection
	pinned   bool // it was to go, and a run had it pinned
	broken   bool // it has remains, or what they need

	rows, live, remains, dead uint32
	needed                    int64 // stored bytes of live rows and remains
}

// judgedMem is what a judged container takes in memory, its key and its place in the list included.
const judgedMem = 160

// empty reports whether nothing of a container is needed.
func (j *judged) empty() bool { return !j.damaged && j.live == 0 && j.remains == 0 }

// young reports whether what nobody reaches may be the remains of a run that broke a short while ago.
func (c *collection) young(dir *container.Directory) bool {
	return c.now.Sub(time.Unix(dir.Created(), 0)) < remainsAge
}

// judgeAll looks at every container; a walk through remains follows, which may mark more.
func (c *collection) judgeAll(ctx context.Context) error {
	remains := c.remainsWalk()
	var g errgroup.Group
	g.SetLimit(walkWorkers)
	verdicts := make([]*judged, len(c.ids))
	for i, id := range c.ids {
		if stopped(ctx) != nil {
			break
		}
		g.Go(func() error {
			return c.s.givingWay(ctx, func() (err error) {
				verdicts[i], err = c.judge(ctx, id, remains)
				c.meter.add(1)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := stopped(ctx); err != nil {
		return err
	}
	for i, id := range c.ids {
		c.old[id] = verdicts[i]
	}
	if err := remains.run(ctx); err != nil {
		return err
	}
	c.noteMemory(remains)
	if err := c.judgeDirty(ctx); err != nil {
		return err
	}
	c.settle()
	return nil
}

// settle notes the data containers in which every chunk is reached. When this collection has taken dead nodes out and
// ends before it comes to the chunks below them, nothing reaches those any more, and the next one is to know that no
// broken run left them.
func (c *collection) settle() {
	for _, id := range c.ids {
		if j := c.old[id]; j.kind == container.Data && !j.damaged && !j.broken {
			c.s.containers.settle(id)
		}
	}
}

// judgeDirty looks again at containers that were marked since. What is not judged is compared with its marks all the same.
func (c *collection) judgeDirty(ctx context.Context) error {
	for {
		ids := c.marks.dirtyOnes()
		if len(ids) == 0 {
			return nil
		}
		remains := c.remainsWalk()
		for _, id := range ids {
			if err := c.judgeAgain(ctx, id, remains); err != nil {
				return err
			}
		}
		if err := remains.run(ctx); err != nil {
			return err
		}
	}
}

func (c *collection) judgeAgain(ctx context.Context, id container.ID, remains *walk) error {
	if !c.s.containers.has(id) {
		c.marks.forget(id)
		return nil
	}
	j, err := c.judge(ctx, id, remains)
	if err != nil {
		return err
	}
	if old := c.old[id]; old != nil {
		j.gone, j.pinned, j.broken = old.gone, old.pinned, old.broken || j.broken
		*old = *j
	}
	return nil
}

// judge looks at one container. Nodes that count as remains are added to the walk.
func (c *collection) judge(ctx context.Context, id container.ID, remains *walk) (*judged, error) {
	j := &judged{size: c.s.containers.size(id)}
	dir, err := c.open(ctx, id)
	if err != nil {
		return nil, err
	}
	if dir == nil {
		j.damaged = true
		if c.marks.marked(id) || c.s.containers.reliedOn(id) {
			return nil, &Error{Kind: Damaged, Op: "collect", Object: id.String(), Err: errUnreadable}
		}
		return j, nil
	}
	if !c.marks.agrees(dir) {
		c.s.index.Suspect()
		return nil, &Error{Kind: Damaged, Op: "collect", Object: id.String(), Err: errIndexLies}
	}
	j.kind, j.domain, j.created = dir.Kind(), dir.Domain(), dir.Created()
	j.outdated, j.rows = c.s.outdated(dir), uint32(dir.Rows())
	if dir.Kind() == container.Data {
		return j, c.judgeChunks(ctx, dir, j)
	}
	return j, c.judgeNodes(ctx, dir, j, remains)
}

// open reads a directory, past all caches; nil when the container is gone or damaged.
func (c *collection) open(ctx context.Context, id container.ID) (*container.Directory, error) {
	if !c.s.containers.readable(id) {
		return nil, nil
	}
	dir, err := container.OpenDirectory(ctx, c.s.blob, id, c.s.ring)
	if err != nil {
		return c.s.unreadable(ctx, id, err)
	}
	return dir, nil
}

// judgeChunks counts the rows of a data container.
func (c *collection) judgeChunks(ctx context.Context, dir *container.Directory, j *judged) error {
	live, err := c.needed(ctx, dir)
	if err != nil {
		return err
	}
	_, gone := c.marks.snapshot(dir.ID())
	young := c.young(dir) && !c.s.containers.isSettled(dir.ID())
	j.count(dir, func(slot uint32) rowState {
		switch {
		case live.has(slot):
			return rowLive
		case young && !gone.has(slot):
			return rowRemains
		}
		return rowDead
	})
	return nil
}

// needed returns the slots of a data container that are marked, and those that hold another copy of a chunk that is marked
// and damaged, or that a saveset needs and the index does not have.
func (c *collection) needed(ctx context.Context, dir *container.Directory) (slotBits, error) {
	live, _ := c.marks.snapshot(dir.ID())
	var spare slotBits
	for slot := range uint32(dir.Rows()) {
		d := dir.Digest(slot)
		if _, ok := c.missing[d]; ok {
			live = live.with(slot, 0)
		} else if !live.has(slot) && c.s.damage.has(d) {
			spare = spare.with(slot, 0)
		}
	}
	if spare == nil {
		return live, nil
	}
	err := c.eachEntry(ctx, dir, spare, func(slot uint32, at index.Loc, ok bool) {
		if ok && c.marks.isLive(place{at.Container, at.Slot, at.Kind}) {
			live = live.with(slot, 0)
		}
	})
	return live, err
}

// rowState is what the marks make of a row.
type rowState uint8

const (
	rowDead      rowState = iota // the index names it, or will at the next Open, and nothing needs it
	rowLive                      // marked
	rowRemains                   // not reached, and young
	rowElsewhere                 // a node that the index names in another place
	rowBuried                    // a node that a tombstone names
)

// count fills the figures of a container.
func (j *judged) count(dir *container.Directory, state func(slot uint32) rowState) {
	j.live, j.remains, j.dead, j.needed = 0, 0, 0, 0
	for i := range uint32(dir.Frames()) {
		f := dir.Frame(i)
		needed := uint64(0)
		for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
			switch state(slot) {
			case rowLive:
				j.live++
				needed += uint64(dir.Row(slot).Length)
			case rowRemains:
				j.remains++
				needed += uint64(dir.Row(slot).Length)
			case rowDead:
				j.dead++
			}
		}
		j.needed += int64(uint64(f.Size) * needed / uint64(f.Plain))
	}
	j.broken = j.broken || j.remains > 0
}

// judgeNodes counts the rows of a node container, and adds those that are remains to a walk.
func (c *collection) judgeNodes(ctx context.Context, dir *container.Directory, j *judged, remains *walk) error {
	states, err := c.nodeStates(ctx, dir)
	if err != nil {
		return err
	}
	j.count(dir, func(slot uint32) rowState { return states[slot].rowState })
	for slot := range uint32(len(states)) {
		if states[slot].rowState == rowRemains {
			c.root(remains, place{dir.ID(), slot, container.Node}, dir.Digest(slot))
		}
	}
	return nil
}

// nodeState is the state of a node's row.
type nodeState struct {
	rowState
	stray bool  // the index names it nowhere; it would after the index was lost
	at    place // where the index names it, of rowElsewhere
}

// nodeStates tells what each row of a node container is.
func (c *collection) nodeStates(ctx context.Context, dir *container.Directory) ([]nodeState, error) {
	id, n := dir.ID(), dir.Rows()
	ds, locs, ok := make([]digest.Digest, n), make([]index.Loc, n), make([]bool, n)
	for slot := range ds {
		ds[slot] = dir.Digest(uint32(slot))
	}
	if err := c.s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return nil, wrap("look up index", "", err)
	}
	buried, lost := c.s.tombstones.buried(id)
	live, gone := c.marks.snapshot(id)
	young := c.young(dir) && !c.s.containers.isBarred(id)
	states := make([]nodeState, n)
	for i := range states {
		slot, st := uint32(i), &states[i]
		here := ok[i] && locs[i].Container == id && locs[i].Slot == slot
		st.stray = !ok[i]
		switch {
		case live.has(slot):
			st.rowState = rowLive
		case buried.has(slot) && !here:
			st.rowState = rowBuried
		case ok[i] && !here:
			st.rowState, st.at = rowElsewhere, place{locs[i].Container, locs[i].Slot, locs[i].Kind}
		case st.stray && lost && id.Epoch() != c.s.epoch:
			st.rowState = rowDead // most likely a tombstone named it
		case young && !gone.has(slot):
			st.rowState = rowRemains
		}
	}
	return states, nil
}
