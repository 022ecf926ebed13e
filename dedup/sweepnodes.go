package dedup

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

var (
	errUnreadable = errors.New("the directory does not read: what it held counts as missing from now on")
	errIndexLies  = errors.New("the index names chunks in places where they are not: the store must be opened anew")
)

// sweepNodes takes dead nodes out, all together: condemn, mark again, name them durably, remove their entries. Containers
// are not deleted here.
func (c *collection) sweepNodes(ctx context.Context) error {
	if err := stopped(ctx); err != nil {
		return err
	}
	var want []container.ID
	for _, id := range c.ids {
		if j := c.old[id]; j.kind == container.Node && j.dead > 0 {
			want = append(want, id)
		}
	}
	condemned, err := c.s.condemnAll(ctx, want)
	defer c.reprieve(condemned)
	c.unmark(want)
	if err != nil {
		return err
	}
	if err := c.keepPinned(ctx, want, condemned); err != nil {
		return err
	}
	if err := c.update(ctx); err != nil {
		return err
	}
	return c.buryDead(ctx, condemned)
}

// keepPinned makes roots of what the index names in containers that could not be condemned.
//
// INVARIANT G2: so the nodes that leave the index have no parent that stays in it.
func (c *collection) keepPinned(ctx context.Context, want, condemned []container.ID) error {
	free := make(map[container.ID]struct{}, len(condemned))
	for _, id := range condemned {
		free[id] = struct{}{}
	}
	w := c.remainsWalk()
	for _, id := range want {
		if _, ok := free[id]; ok || !c.s.containers.has(id) {
			continue
		}
		dir, err := c.find.directory(ctx, id)
		if err != nil {
			return err
		}
		if dir == nil {
			return &Error{Kind: Damaged, Op: "collect", Object: id.String(), Err: errUnreadable} // a run relies on what is below it
		}
		states, err := c.nodeStates(ctx, dir)
		if err != nil {
			return err
		}
		for slot := range uint32(len(states)) {
			if st := states[slot]; st.rowState == rowDead && !st.stray {
				c.pinnedDead = true
				c.root(w, place{id, slot, container.Node}, dir.Digest(slot))
			}
		}
	}
	return w.run(ctx)
}

// buryDead names all dead nodes durably, then removes their entries. A node may lie in several containers, of which the
// index names one: each copy is named, for the index that is made anew would name another one.
func (c *collection) buryDead(ctx context.Context, condemned []container.ID) error {
	dead, err := c.deadNodes(ctx, condemned)
	if err != nil {
		return err
	}
	all, changed := c.s.tombstones.all(), false
	for _, id := range c.ids {
		g, more, err := c.graveOf(ctx, id, all[id], dead)
		if err != nil {
			return err
		}
		if more {
			all[id], changed = g, true
		}
	}
	if doubt, lost := c.s.tombstones.unsure(); changed || doubt || lost {
		if err := c.bury(ctx, condemned, all); err != nil {
			return err
		}
	}
	return c.dropBuried(ctx, condemned, all)
}

// bury makes tombstones durable. When it is in doubt whether they are, what they name must not be had: the containers are
// barred until a collection succeeds, or the store opens anew.
func (c *collection) bury(ctx context.Context, condemned []container.ID, dead graves) error {
	err := c.s.bury(ctx, dead)
	if doubt, _ := c.s.tombstones.unsure(); err != nil && doubt {
		c.bar(condemned)
	}
	return err
}

// bar keeps what is condemned from being had when it is reprieved.
func (c *collection) bar(condemned []container.ID) {
	for _, id := range condemned {
		c.s.containers.bar(id, true)
	}
}

// deadNodes returns the digests, eight bytes of each, of nodes that are dead where the index names them. What looks like one
// and is none loses a copy that does not count.
func (c *collection) deadNodes(ctx context.Context, condemned []container.ID) (map[uint64]struct{}, error) {
	dead := make(map[uint64]struct{})
	for _, id := range condemned {
		_, err := c.eachNode(ctx, id, func(_ uint32, d digest.Digest, st nodeState) {
			if st.rowState == rowDead {
				dead[nodeKey(&d)] = struct{}{}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return dead, nil
}

func nodeKey(d *digest.Digest) uint64 { return binary.LittleEndian.Uint64(d[:8]) }

// eachNode tells the state of each row of a container; false when that cannot be read.
func (c *collection) eachNode(ctx context.Context, id container.ID, f func(slot uint32, d digest.Digest, st nodeState)) (bool, error) {
	dir, err := c.find.directory(ctx, id)
	if err != nil || dir == nil {
		return false, err
	}
	states, err := c.nodeStates(ctx, dir)
	if err != nil {
		return false, err
	}
	for slot := range uint32(len(states)) {
		f(slot, dir.Digest(slot), states[slot])
	}
	return true, nil
}

// graveOf returns the slots of a container that are to be named as dead, and whether they are more than those that are.
//
// INVARIANT G3: a container that cannot be read now is named as a whole: nobody knows which nodes it has, and what is below
// them goes. It has none that a saveset needs.
func (c *collection) graveOf(ctx context.Context, id container.ID, known grave, dead map[uint64]struct{}) (g grave, more bool, err error) {
	if known.all || !c.s.containers.has(id) || c.old[id].kind == container.Data {
		return known, false, nil
	}
	bits := append(slotBits(nil), known.dead...)
	there, err := c.eachNode(ctx, id, func(slot uint32, d digest.Digest, st nodeState) {
		_, copied := dead[nodeKey(&d)]
		if st.rowState == rowDead || (st.rowState == rowElsewhere && copied) {
			bits, more = bits.with(slot, 0), true
		}
	})
	switch {
	case err != nil:
		return known, false, err
	case there || !c.s.containers.has(id):
		return grave{dead: bits}, more, nil
	case c.marks.marked(id) || c.s.containers.reliedOn(id):
		return known, false, &Error{Kind: Damaged, Op: "collect", Object: id.String(), Err: errUnreadable}
	}
	return grave{all: true}, true, nil
}

// dropBuried removes the entries of dead nodes. It is not to be interrupted: some gone and some not would leave a parent
// without its child. When it fails the containers are barred until a collection succeeds, or the store opens anew.
func (c *collection) dropBuried(ctx context.Context, condemned []container.ID, dead graves) error {
	c.bar(condemned)
	whole := context.WithoutCancel(ctx)
	if err := c.s.noteDead(whole); err != nil {
		return err
	}
	for _, id := range condemned {
		dir, err := c.find.directory(whole, id)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		if err := c.s.dropRows(whole, dir, dead[id].has); err != nil {
			return err
		}
	}
	for _, id := range c.ids {
		if c.s.containers.isBarred(id) {
			c.s.containers.bar(id, false)
			c.unmark([]container.ID{id})
		}
	}
	remains := c.remainsWalk()
	for _, id := range condemned {
		if err := c.judgeAgain(ctx, id, remains); err != nil {
			return err
		}
	}
	return nil
}

// unmark notes containers whose mark in the index is gone.
func (c *collection) unmark(ids []container.ID) {
	for _, id := range ids {
		c.unmarked[id] = struct{}{}
	}
}

func (c *collection) reprieve(ids []container.ID) {
	for _, id := range ids {
		c.s.containers.reprieve(id)
	}
}

// reenter gives the containers that were condemned and stay their marks back, so that the next Open need not enter them
// again. What ends it early costs just that.
func (c *collection) reenter(ctx context.Context) {
	for id := range maps.Keys(c.unmarked) {
		if stopped(ctx) != nil {
			return
		}
		if !c.s.containers.usable(id) {
			continue
		}
		dir, err := c.open(ctx, id)
		if err != nil || dir == nil {
			continue
		}
		c.s.dirs.forget(id)
		if err := c.s.enterAgain(ctx, dir); err != nil {
			c.s.log.Warn("container has to be entered again at the next start", "container", id.String(), "err", err)
		}
	}
}
