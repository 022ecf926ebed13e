package dedup

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// worldClient does one thing after the other.
type worldClient struct {
	w *world
	r *mathrand.Rand
}

// act does something; an error is one that the world did not make.
func (c *worldClient) act(ctx context.Context) error {
	ops := [...]struct {
		weight int
		name   string
		do     func(context.Context) error
	}{
		{24, "backup", c.backup},
		{20, "read", c.read},
		{6, "abort", c.abort},
		{10, "delete", c.delete},
		{3, "purge", c.purge},
		{5, "state", c.state},
		{12, "collect", c.collect},
		{6, "check", c.check},
		{2, "heal", c.heal},
		{2, "usage", c.usage},
		{2, "rotate", c.rotate},
		{3, "reseal", c.reseal},
		{2, "destroy key", c.destroyKey},
		{2, "condemn", c.condemn},
		{2, "index full", c.indexFull},
		{4, "clock", c.moveClock},
	}
	total := 0
	for _, op := range ops {
		total += op.weight
	}
	n := c.r.IntN(total)
	for _, op := range ops {
		if n -= op.weight; n >= 0 {
			continue
		}
		err := op.do(ctx)
		if c.w.tolerable(err) {
			if err == nil {
				c.w.count(op.name)
			} else {
				c.w.count(op.name + " failed")
			}
			return nil
		}
		return fmt.Errorf("%s: %w", op.name, err)
	}
	return nil
}

// hurried gives a context that ends at some time, now and then.
func (c *worldClient) hurried(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.r.IntN(4) != 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, time.Duration(c.r.IntN(60))*time.Millisecond)
}

// backup stores a tree, with a parent now and then, that is held while the run is open and from which disks are taken over.
func (c *worldClient) backup(ctx context.Context) error {
	w := c.w
	if w.size() > 30 {
		return c.delete(ctx)
	}
	var parents []SavesetID
	var from base
	if id, p, ok := w.pick(c.r); ok && c.r.IntN(2) == 0 {
		parents, from = append(parents, id), base{id: id, tree: p.tree}
	}
	tree := w.nextTree(c.r, from.tree)
	name := w.run(tree)
	run, err := w.s.Begin(ctx, RunOptions{ID: name, Parents: parents, Rewrite: c.r.IntN(3) == 0})
	if err != nil {
		if KindOf(err) == NotFound && len(parents) > 0 && w.gone(parents[0]) {
			return nil
		}
		return err
	}
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	m, err := backupFrom(ctx, w.s, run, tree, 1+c.r.IntN(3), from)
	if err != nil {
		_ = run.Abort(context.Background(), err.Error())
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sets[m.ID] = &promised{tree: tree}
	return nil
}

// read compares a saveset.
func (c *worldClient) read(ctx context.Context) error {
	id, p, ok := c.w.pick(c.r)
	if !ok {
		return nil
	}
	return c.absent(id, compare(ctx, c.w.s, id, p.tree))
}

// absent forgives NotFound of a saveset itself that is not promised any more.
func (c *worldClient) absent(id SavesetID, err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == NotFound && e.Object == id.String() && c.w.gone(id) {
		return nil
	}
	return err
}

// abort sends a part of a tree, or all of it, and gives up, while it is being sent or afterwards.
func (c *worldClient) abort(ctx context.Context) error {
	w := c.w
	tree := w.nextTree(c.r, nil)
	run, err := w.s.Begin(ctx, RunOptions{ID: w.run(tree)})
	if err != nil {
		return err
	}
	a, err := newAgent(run, w.s, 1+c.r.IntN(3))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	whole := c.r.IntN(2) == 0
	go func() {
		if whole {
			_, _, err := a.backup(ctx, tree)
			done <- err
			return
		}
		done <- a.sendData(ctx, tree)
	}()
	if c.r.IntN(2) == 0 {
		err = <-done
		done <- err
	}
	aborted := run.Abort(ctx, "model")
	sent := <-done
	if KindOf(sent) == Closed {
		sent = nil
	}
	if aborted = ignore(Closed, aborted); !w.tolerable(aborted) {
		return aborted
	}
	return sent
}

// delete deletes a saveset.
func (c *worldClient) delete(ctx context.Context) error {
	if c.w.size() < 4 {
		return nil
	}
	id, p, ok := c.w.pick(c.r)
	if !ok {
		return nil
	}
	return c.drop(id, p, func() error { return c.w.s.Delete(ctx, id, "model") })
}

// drop takes a promise back, has the saveset deleted, and gives the promise again if that was refused.
func (c *worldClient) drop(id SavesetID, p promised, f func() error) error {
	w := c.w
	if !c.claim(id) {
		return nil
	}
	err := f()
	now := w.clock.now()
	switch k := KindOf(err); {
	case err == nil:
		if p.locked {
			return fmt.Errorf("saveset %v was locked and is deleted", id)
		}
		if now.Before(p.until) {
			return fmt.Errorf("saveset %v is immutable until %v, and was deleted at %v", id, p.until, now)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.sets, id)
		return nil
	case k == InUse, k == Retained && p.locked, k == Immutable && !p.until.IsZero():
		w.change(id, func(p *promised) { p.doubt = false })
		return nil
	}
	return err // the doubt stays: nobody knows whether it was written
}

// claim takes a saveset's promise into doubt, for one who is about to change its state.
func (c *worldClient) claim(id SavesetID) bool {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	p := c.w.sets[id]
	if p == nil || p.doubt {
		return false
	}
	p.doubt = true
	return true
}

// purge deletes one of two savesets.
func (c *worldClient) purge(ctx context.Context) error {
	if c.w.size() < 6 {
		return nil
	}
	first, p, ok := c.w.pick(c.r)
	second, _, ok2 := c.w.pick(c.r)
	if !ok || !ok2 || first == second {
		return nil
	}
	return c.drop(first, p, func() error {
		rep, err := c.w.s.Purge(ctx, PurgeOptions{IDs: []SavesetID{second, first}, Cause: "model", May: func(m Manifest) error {
			if m.ID == second {
				return &Error{Kind: Retained, Op: "purge", Object: "spared"}
			}
			return nil
		}})
		if err != nil {
			return err
		}
		if kept := rep.Kept[first]; kept != nil {
			return kept
		}
		if len(rep.Deleted) != 1 {
			return fmt.Errorf("purge: %+v", rep)
		}
		return nil
	})
}

// state locks or unlocks a saveset, or gives it a term.
func (c *worldClient) state(ctx context.Context) error {
	id, p, ok := c.w.pick(c.r)
	if !ok || !c.claim(id) {
		return nil
	}
	next := p
	if c.r.IntN(2) == 0 {
		next.locked = !p.locked
	} else {
		next.until = c.w.clock.now().Add(time.Duration(c.r.IntN(20)) * time.Hour).Round(0)
	}
	st, err := c.w.s.SetState(ctx, id, func(st State) State {
		st.Locked, st.ImmutableUntil = next.locked, next.until
		return st
	})
	switch {
	case err == nil:
		c.w.change(id, func(p *promised) { p.locked, p.until, p.doubt = st.Locked, st.ImmutableUntil, false })
	case KindOf(err) == Immutable && next.until.Before(p.until):
		c.w.change(id, func(p *promised) { p.doubt = false })
		return nil
	}
	return err
}

// busy forgives that another operation of maintenance runs.
func busy(err error) error { return ignore(InUse, err) }

// collect collects garbage, in whatever way.
func (c *worldClient) collect(ctx context.Context) error {
	c.w.condemning.Lock()
	defer c.w.condemning.Unlock()
	o := CollectOptions{Sparse: []float64{0, 0.3, 0.9, 1}[c.r.IntN(4)]}
	if c.r.IntN(4) == 0 {
		o.Budget = time.Duration(1+c.r.IntN(40)) * time.Millisecond
	}
	if c.r.IntN(6) == 0 {
		o.Rate = int64(1+c.r.IntN(20)) << 20
	}
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	rep, err := c.w.s.Collect(ctx, o)
	if rep.Damaged > 0 && !c.w.faulty.Load() {
		return fmt.Errorf("containers were kept as damaged: %+v, %w", rep, err)
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	t := &c.w.total
	t.Deleted += rep.Deleted
	t.Copied += rep.Copied
	t.Manifests += rep.Manifests
	t.Skipped += rep.Skipped
	t.CopiedBytes += rep.CopiedBytes
	t.FreedBytes += rep.FreedBytes
	return busy(err)
}

// check looks for damage: there is none.
func (c *worldClient) check(ctx context.Context) error {
	o := CheckOptions{Objects: c.r.IntN(2) == 0, Pages: c.r.IntN(2) == 0, Deep: c.r.IntN(3) == 0}
	if c.r.IntN(2) == 0 {
		o.Share = c.r.Float64()
	}
	if !o.Pages && !o.Deep {
		o.Objects = true
	}
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	rep, err := c.w.s.Check(ctx, o)
	if slices.ContainsFunc(rep.Found, func(d Damage) bool { return !refused(d) }) {
		return fmt.Errorf("damage where nothing was damaged: %+v", rep.Found)
	}
	return busy(err)
}

func (c *worldClient) heal(ctx context.Context) error {
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	_, err := c.w.s.Heal(ctx, nil, nil)
	return busy(ignore(Invalid, err))
}

func (c *worldClient) usage(ctx context.Context) error {
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	_, err := c.w.s.Usage(ctx, nil)
	return busy(err)
}

func (c *worldClient) rotate(ctx context.Context) error {
	_, err := c.w.s.RotateKey(ctx)
	return busy(err)
}

func (c *worldClient) reseal(ctx context.Context) error {
	ctx, cancel := c.hurried(ctx)
	defer cancel()
	rep, err := c.w.s.Reseal(ctx, nil)
	if err == nil && len(rep.Stuck) > 0 {
		err = fmt.Errorf("objects that do not open: %v", rep.Stuck)
	}
	return busy(err)
}

// destroyKey destroys the oldest key, if nothing names it any more.
func (c *worldClient) destroyKey(ctx context.Context) error {
	info, err := c.w.s.Keys(ctx)
	if err != nil || len(info.Keys) < 2 {
		return err
	}
	err = c.w.s.DestroyKey(ctx, info.Keys[0].Number)
	if err == nil {
		c.w.count("key destroyed")
	}
	return busy(ignore(NotFound, ignore(Invalid, err)))
}

// condemn condemns some containers for a moment, as a collection that changes its mind.
func (c *worldClient) condemn(ctx context.Context) error {
	if !c.w.condemning.TryLock() {
		return nil
	}
	defer c.w.condemning.Unlock()
	var ids []container.ID
	defer func() {
		for _, id := range ids {
			c.w.s.Reprieve(id)
		}
	}()
	for _, id := range c.w.s.containers.without(nil) {
		err := c.w.s.Condemn(ctx, id)
		if err == nil {
			ids = append(ids, id)
		} else if k := KindOf(err); k != InUse && k != NotFound {
			return err
		}
	}
	time.Sleep(time.Millisecond)
	return nil
}

// indexFull fills the disk of the index for a moment.
func (c *worldClient) indexFull(context.Context) error {
	if c.r.IntN(2) == 0 {
		c.w.wasFull.Store(true)
		c.w.full.Store(true)
		time.Sleep(time.Duration(c.r.IntN(10)) * time.Millisecond)
		c.w.full.Store(false)
	}
	return nil
}

func (c *worldClient) moveClock(context.Context) error {
	c.w.clock.advance(time.Duration(c.r.IntN(16)) * time.Hour)
	return nil
}

// collectDigests adds all that a tree reaches.
func collectDigests(ctx context.Context, s *Store, root digest.Digest, out map[digest.Digest]struct{}) error {
	if root.IsZero() {
		return nil
	}
	stack := []digest.Digest{root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := out[d]; ok {
			continue
		}
		out[d] = struct{}{}
		kids, err := childrenOf(ctx, s, d)
		if err != nil {
			return err
		}
		for _, k := range kids {
			if k.Node {
				stack = append(stack, k.Digest)
			} else {
				out[k.Digest] = struct{}{}
			}
		}
	}
	return nil
}

func childrenOf(ctx context.Context, s *Store, d digest.Digest) ([]recipe.Child, error) {
	places, err := s.locate(ctx, []digest.Digest{d})
	if err != nil {
		return nil, err
	}
	if places[0].dir == nil {
		return nil, places[0].missing("walk", d)
	}
	rec, err := s.read(ctx, places[0])
	if err != nil {
		return nil, err
	}
	node, err := recipe.ParseClear(rec)
	return node.Children, err
}

func ignore(k Kind, err error) error {
	if KindOf(err) == k {
		return nil
	}
	return err
}
