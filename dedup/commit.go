package dedup

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// Commit seals and syncs all that the run wrote, then writes the manifest; when it returns, the saveset is durable. No
// other call may be running or follow. On error the run is over, too, and there is no saveset.
//
// INVARIANT: containers sealed and synced → index → manifest durable → return.
func (r *Run) Commit(ctx context.Context, d Draft) (Manifest, error) {
	r.end.Lock()
	defer r.end.Unlock()
	if err := r.alive(); err != nil {
		return Manifest{}, r.leaveBy(ctx, err, true)
	}
	m, err := r.commit(ctx, d)
	failed := !r.failure.CompareAndSwap(nil, r.over("committed"))
	if err != nil {
		return Manifest{}, r.leaveBy(ctx, err, failed)
	}
	r.release()
	return m, nil
}

func (r *Run) commit(ctx context.Context, d Draft) (Manifest, error) {
	if err := r.checkDraft(d); err != nil {
		return Manifest{}, err
	}
	if err := r.sealAll(ctx); err != nil {
		return Manifest{}, err
	}
	if err := r.checkRoot(ctx, d.Root, recipe.DirLeaf); err != nil {
		return Manifest{}, err
	}
	if !d.Side.Digest.IsZero() {
		if err := r.checkRoot(ctx, d.Side, recipe.SideLeaf); err != nil {
			return Manifest{}, err
		}
	}
	if err := r.s.checkEpoch(ctx); err != nil {
		return Manifest{}, err
	}
	m := r.manifest(d)
	if err := r.s.checkSpace(ctx, maxMeta); err != nil {
		return Manifest{}, err
	}
	if err := r.s.putObject(ctx, manifestKind, manifestName(m.ID), m.object()); err != nil {
		if errors.Is(err, errLoose) {
			r.pins.keep()
		}
		return Manifest{}, err
	}
	r.s.sets.add(m, 0)
	return m, nil
}

func (r *Run) checkDraft(d Draft) error {
	var errs []error
	if d.Root.Digest.IsZero() {
		errs = append(errs, errors.New("no root"))
	}
	if len(d.Meta) > maxMeta {
		errs = append(errs, fmt.Errorf("%d bytes of meta, limit %d", len(d.Meta), maxMeta))
	}
	if len(errs) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Op: "commit", Object: r.opts.ID, Err: errors.Join(errs...)}
}

// sealAll makes all that arrived durable and found: the lanes side by side, then the nodes.
func (r *Run) sealAll(ctx context.Context) error {
	var g errgroup.Group
	for _, l := range r.lanes.all() {
		g.Go(func() error { return l.seal(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return r.nodes.finish(ctx)
}

// checkRoot holds a root against the store: present, pinned, a node of the right tree, and its totals are those that the
// draft says. All nodes of the run are in the index by now.
func (r *Run) checkRoot(ctx context.Context, root recipe.Ref, tree recipe.Kind) error {
	var at found
	missing, err := r.pinReferences(ctx, []digest.Digest{root.Digest}, func(_ int, f found) bool {
		at = f
		return f.dir.Kind() == container.Node && !r.s.damage.barred(f, r.damage)
	})
	if err != nil {
		return err
	}
	if missing >= 0 {
		return &Error{Kind: UnknownChild, Op: "commit", Object: root.Digest.String()}
	}
	rec, err := r.s.read(ctx, at)
	if err != nil {
		return err
	}
	node, err := recipe.ParseClear(rec)
	if err != nil {
		return wrap("commit", root.Digest.String(), err)
	}
	if family(node.Kind) != tree || node.Totals != root.Totals || node.SealedBy != r.opts.SealedBy {
		return &Error{Kind: BadNode, Op: "commit", Object: root.Digest.String(), Err: fmt.Errorf("a %v with %+v is no root with %+v", node.Kind, node.Totals, root.Totals)}
	}
	return nil
}

func (r *Run) manifest(d Draft) Manifest {
	now := r.s.opts.Now().UTC()
	c := &r.counts
	m := Manifest{
		ID: newSavesetID(now), Domain: r.domain.ID, SealedBy: r.opts.SealedBy, Run: r.opts.ID, Root: d.Root, Side: d.Side,
		Client: d.Client, Task: d.Task, TaskType: d.TaskType,
		RequestedLevel: d.RequestedLevel, Level: d.Level, Reason: d.Reason, Parent: d.Parent,
		Started: d.Started.UTC().Round(0), Finished: d.Finished.UTC().Round(0), Committed: now.Round(0),
		Sources: d.Sources, Warnings: d.Warnings,
		Entries: d.Root.Totals.Entries, Logical: d.Root.Totals.Bytes,
		New: c.newBytes.Load() + c.nodeBytes.Load(), Stored: c.stored.Load(), Meta: d.Meta, State: d.State,
	}
	m.Switches = r.layout.total(m.Logical, r.s.switchRate(d.Parent))
	m.State.Number, m.State.Time = 0, now
	m.State = m.State.normal()
	return m
}

// Abort ends the run without a saveset; what arrived is sealed where possible, so that the next run finds it. Calls after
// the first, or after Commit, do nothing. Other calls that are running fail with Closed.
func (r *Run) Abort(ctx context.Context, reason string) error {
	failed := !r.failure.CompareAndSwap(nil, r.over("aborted: "+reason))
	r.s.containers.wake() // a call of this run may wait there
	r.end.Lock()
	defer r.end.Unlock()
	if r.ended {
		return nil
	}
	r.log.Info("run aborted", "reason", reason)
	return r.leave(ctx, failed)
}

func (r *Run) over(why string) *Error {
	return &Error{Kind: Closed, Op: "use run", Object: r.opts.ID, Err: errors.New(why)}
}

// leaveBy ends a run because of an error, and returns it; what leaving it met besides is said only where it is another one.
func (r *Run) leaveBy(ctx context.Context, err error, failed bool) error {
	if other := r.leave(ctx, failed); other != nil && other.Error() != err.Error() {
		return errors.Join(err, other)
	}
	return err
}

// leave ends a run that has no saveset. It needs end held.
func (r *Run) leave(ctx context.Context, failed bool) error {
	if r.ended {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // what arrived is worth more than the caller's hurry, and there is little of it
	var err error
	if !failed {
		err = r.sealAll(ctx)
		failed = err != nil
	}
	r.nodes.abandon() // first: a PutNodes that is running may seal nodes yet, and what they refer to must not be dropped before
	for _, l := range r.lanes.all() {
		if e := l.abandon(); e != nil && !failed {
			err = errors.Join(err, e)
		}
	}
	r.release()
	return err
}

// release gives pins and leases back. It needs end held.
func (r *Run) release() {
	r.ended = true
	r.endLookBack()
	r.pins.release()
	r.s.releaseLeases(r.opts.Parents)
	r.s.mu.Lock()
	delete(r.s.runs, r)
	r.s.mu.Unlock()
	if r.s.damage.any.Load() {
		r.s.keeper.kick() // what it stored may have healed something
	}
}
