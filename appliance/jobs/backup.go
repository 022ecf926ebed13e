package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// BackupRequest starts a backup at once.
type BackupRequest struct {
	Task  string
	Level Level
	User  string
}

// StartBackup queues a backup and returns its run. It refuses at once when the task does not exist or its client cannot
// work now.
func (m *Manager) StartBackup(ctx context.Context, req BackupRequest) (Info, error) {
	task, err := m.opts.Catalog.Task(ctx, req.Task)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return Info{}, refuse(KindNotFound, "see: coffer task list", "there is no task %q", req.Task)
	}
	if err != nil {
		return Info{}, err
	}
	if err := m.admit(ctx, task.Worker()); err != nil {
		return Info{}, err
	}
	if _, err := m.openStore(); err != nil {
		return Info{}, err
	}
	rec := catalog.Run{Kind: catalog.RunBackup, Client: task.Client, Task: task.Name, User: req.User, LevelRequested: string(req.Level)}
	return m.launch(ctx, rec, task.Name, func(r *run) ending { return m.backup(r, task, req.Level) })
}

// backup is one backup run, from its turn to its end.
type backup struct {
	*run
	task     catalog.Task
	pool     catalog.Pool
	key      string // SourceKey
	decision Decision
	chain    chainRuns
	previous dedup.SavesetID // the task's last saveset in the pool; zero: there is none
	sealing  sealing
	store    Store
	into     StoreRun
	view     StoreView // of the parent; nil where everything is read
}

var _ ingest.Sink = (*backup)(nil)

func (m *Manager) backup(r *run, task catalog.Task, requested Level) ending {
	b := &backup{run: r, task: task}
	if err := b.prepare(requested); err != nil {
		return b.fail(err)
	}
	defer b.release()
	if err := b.activate(); err != nil {
		return b.fail(err)
	}
	res, err := m.order(r, b.runOptions(), b.order)
	if err != nil {
		return b.fail(err)
	}
	return r.endingOf(res)
}

// fail is the ending of a run whose error came from this side; a cancelled run ends cancelled whatever broke by that.
func (r *run) fail(err error) ending {
	if reason, ok := r.cancelReason(); ok {
		return ending{state: catalog.RunCancelled, reason: reason}
	}
	return failure(err)
}

// prepare decides the level and opens the store's run with the parent. What it opened is released where it fails.
func (b *backup) prepare(requested Level) (err error) {
	if b.store, err = b.m.openStore(); err != nil {
		return err
	}
	if b.pool, err = b.m.opts.Catalog.Pool(b.ctx, b.task.Pool); err != nil {
		return err
	}
	if b.key, err = SourceKey(b.task); err != nil {
		return err
	}
	if b.sealing, err = sealingOf(b.store, b.task); err != nil {
		return err
	}
	sets, err := b.m.opts.Catalog.Savesets(b.ctx, catalog.SavesetFilter{Client: b.task.Client, Task: b.task.Name, Pool: b.pool.Name})
	if err != nil {
		return err
	}
	harmed, err := b.harmed()
	if err != nil {
		return err
	}
	b.decision = Decide(b.task.Type, requested, b.key, sets, harmed)
	b.chain = chainOf(sets)
	if len(sets) > 0 {
		if b.previous, err = dedup.ParseSavesetID(sets[0].ID); err != nil {
			return err
		}
	}
	if b.decision.Reason == ReasonChainBroken && len(harmed) > 0 {
		b.note(sms.SeverityInfo, "chain_broken", "a saveset of the chain is damaged: everything is read and sent that is missed")
	}
	err = b.open()
	if b.decision.Parent != nil && (dedup.KindOf(err) == dedup.NotFound || dedup.KindOf(err) == dedup.Damaged) {
		b.note(sms.SeverityInfo, "chain_broken", fmt.Sprintf("saveset %s cannot be read: %v", b.decision.Parent.ID, err))
		b.decision = Decision{Level: Full, Reason: ReasonChainBroken}
		err = b.open()
	}
	return err
}

// harmed returns the ids of the savesets that cannot be read whole.
func (b *backup) harmed() (map[string]bool, error) {
	ids, err := b.store.Harmed(b.ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(ids))
	for id := range ids {
		out[id.String()] = true
	}
	return out, nil
}

// open begins the store's run and the view of the parent.
func (b *backup) open() error {
	// A run without a parent reads everything: it is the one that can mend how the saveset lies.
	opts := dedup.RunOptions{ID: b.id, Rewrite: b.decision.Parent == nil, Previous: b.previous, Domain: b.sealing.domain.ID, SealedBy: b.sealing.by}
	if p := b.decision.Parent; p != nil {
		id, err := dedup.ParseSavesetID(p.ID)
		if err != nil {
			return err
		}
		opts.Parents = []dedup.SavesetID{id}
		if b.view, err = b.store.View(b.ctx, id); err != nil {
			return err
		}
	}
	var err error
	if b.into, err = b.store.Begin(b.ctx, opts); err != nil {
		return errors.Join(err, b.closeView())
	}
	return nil
}

func (b *backup) closeView() error {
	if b.view == nil {
		return nil
	}
	err := b.view.Close()
	b.view = nil
	return err
}

// release gives back what the run holds in the store. After a commit the abort does nothing.
func (b *backup) release() {
	reason := "the run ended without a saveset"
	if text, ok := b.cancelReason(); ok {
		reason = text
	}
	// Not the run's context: a cancelled run seals what arrived, so that the next one reuses it.
	if err := errors.Join(b.into.Abort(b.m.ctx, reason), b.closeView()); err != nil {
		b.m.log.Warn("store run not closed cleanly", "run", b.id, "error", err)
	}
}

// activate records that the run works now, and with which level.
func (b *backup) activate() error {
	d := b.decision
	into := b.into
	now := b.change(func(i *Info) {
		i.State, i.Started = catalog.RunActive, b.m.now()
		i.Level, i.LevelReason = string(d.Level), string(d.Reason)
		if d.Parent != nil {
			i.Parent = d.Parent.ID
			i.Progress.TotalEntries, i.Progress.TotalBytes = uint64(d.Parent.Entries), uint64(d.Parent.Logical)
		}
		b.stored = func() uint64 { return into.Stats().StoredBytes }
	})
	if err := b.m.opts.Catalog.UpdateRun(b.ctx, now.Run); err != nil {
		return err
	}
	b.m.publish(Event{Kind: EventState, RunID: b.id, Run: now})
	b.m.log.Info("backup started", "run", b.id, "client", b.task.Client, "task", b.task.Name, "level", d.Level, "reason", d.Reason)
	if d.LongChain() {
		b.note(sms.SeverityWarning, "long_chain", fmt.Sprintf("%d INCR since the last FULL: consider a FULL", d.Incrs))
	}
	return nil
}

func (b *backup) runOptions() ingest.RunOptions {
	d := b.sealing.domain
	opts := ingest.RunOptions{ID: b.id, Client: b.task.Worker(), Token: sms.NewToken(), Sink: b, Domain: d.ID, Key: d.Key, Chunking: d.Chunking,
		Store: timedStore{b.into, &b.watch}}
	if b.view != nil {
		m := b.view.Manifest()
		opts.Parent = &ingest.Parent{Root: m.Root, Side: m.Side, Started: m.Started}
		opts.View = timedView{b.view, &b.watch}
	}
	return opts
}

func (b *backup) order(token sms.Token) sms.Order {
	o := b.task.Options
	order := &sms.BackupOrder{RunID: b.id, Token: token, Task: b.task.Name, TaskType: b.task.Type, Level: string(b.decision.Level),
		ReadAll: b.decision.Parent == nil, Excludes: o.Excludes, Images: o.Images, OneFileSystem: o.OneFileSystem, StreamName: o.StreamName,
		Command: o.Command, PreCommand: o.PreCommand, PostCommand: o.PostCommand}
	for _, path := range o.Sources {
		order.Sources = append(order.Sources, sms.Path(path))
	}
	order.Libvirt = b.machine()
	out := sms.Order{ID: b.id, Kind: sms.OrderBackup, Backup: order}
	orderSealed(&out, b.task)
	return out
}

// order registers the run with ingest, sends the order, and waits for the run's end.
func (m *Manager) order(r *run, opts ingest.RunOptions, make func(sms.Token) sms.Order) (ingest.Result, error) {
	agent, err := m.opts.Agents.StartRun(opts)
	if err != nil {
		return ingest.Result{}, fmt.Errorf("register run: %w", err)
	}
	r.mu.Lock()
	r.agent, r.worker = agent, opts.Client
	r.mu.Unlock()
	sending, sent := context.WithTimeout(r.ctx, m.opts.OrderTimeout)
	defer sent()
	if _, err := m.opts.Agents.Send(sending, opts.Client, make(agent.Token())); err != nil {
		if sending.Err() != nil && r.ctx.Err() == nil {
			err = fmt.Errorf("it did not answer within %v: %w", m.opts.OrderTimeout, err)
		}
		agent.Cancel("the agent did not accept the order")
		agent.Wait(m.ctx)
		return ingest.Result{}, fmt.Errorf("send the order to client %s: %w", opts.Client, err)
	}
	return agent.Wait(r.ctx), nil
}

// Commit implements ingest.Sink: it makes the saveset, in the order of DESIGN's "Manifest": manifest durable, catalog
// row, success reported.
func (b *backup) Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error) {
	if err := b.becomeFull(c.FullReason); err != nil {
		return sms.CommitResult{}, err
	}
	b.change(func(i *Info) { i.Progress.Counters = c.Counters })
	b.flushNotices(1)
	warnings := b.snapshot().Warnings
	draft, err := b.draft(c, uint64(warnings))
	if err != nil {
		return sms.CommitResult{}, err
	}
	manifest, err := b.commit(ctx, draft)
	if err != nil {
		return sms.CommitResult{}, fmt.Errorf("make the saveset: %w", err)
	}
	if err := b.record(ctx, manifest); err != nil {
		return sms.CommitResult{}, err
	}
	b.change(func(i *Info) {
		i.Saveset = manifest.ID.String()
		i.Progress.BytesNew, i.Progress.Stored, i.Progress.Logical = manifest.New, manifest.Stored, manifest.Logical
		i.Progress.Entries = manifest.Entries
		i.Progress.TotalEntries, i.Progress.TotalBytes = manifest.Entries, manifest.Logical
		b.stored = nil
	})
	return sms.CommitResult{SavesetID: manifest.ID.String(), Warning: warnings > 0, Stored: manifest.Stored}, nil
}

// commit is the store's commit, on the clock.
func (b *backup) commit(ctx context.Context, d dedup.Draft) (dedup.Manifest, error) {
	defer b.watch.since(time.Now())
	return b.into.Commit(ctx, d)
}

func (b *backup) draft(c sms.Commit, warnings uint64) (dedup.Draft, error) {
	extra, err := json.Marshal(meta{Version: metaVersion, Pool: b.pool.Name, StreamName: b.task.Options.StreamName,
		SourceKey: b.key, SourceID: c.SourceID, SourcePaths: b.task.Options.Sources})
	if err != nil {
		return dedup.Draft{}, fmt.Errorf("make the saveset: %w", err)
	}
	now := b.snapshot()
	d := dedup.Draft{Root: c.Root, Side: c.Side, Client: b.task.Client, Task: b.task.Name, TaskType: b.task.Type,
		RequestedLevel: now.LevelRequested, Level: now.Level, Reason: now.LevelReason,
		Started: c.Started, Finished: c.Finished, Warnings: warnings, Meta: extra,
		State: dedup.State{EOL: b.m.opts.Trusted().Add(b.pool.Retention()),
			Cause: fmt.Sprintf("pool %s: %d days", b.pool.Name, b.pool.RetentionDays)}}
	if b.decision.Parent != nil {
		if d.Parent, err = dedup.ParseSavesetID(b.decision.Parent.ID); err != nil {
			return d, err
		}
	}
	for _, path := range b.task.Options.Sources {
		d.Sources = append(d.Sources, readable(path))
	}
	return d, nil
}

// record takes the saveset into the catalog and raises the EOL of its chain. Where the catalog cannot take it, the
// saveset is deleted again: the run ends error and leaves none.
func (b *backup) record(ctx context.Context, manifest dedup.Manifest) error {
	s, err := row(manifest)
	if err == nil {
		err = b.m.opts.Catalog.PutSavesets(ctx, s)
	}
	if err != nil {
		_, derr := b.store.SetState(context.WithoutCancel(ctx), manifest.ID, func(st dedup.State) dedup.State {
			st.Deleted, st.Cause = true, "its run could not be recorded"
			return st
		})
		return errors.Join(fmt.Errorf("record saveset %s: %w", manifest.ID, err), derr)
	}
	if err := b.m.raiseChain(ctx, b.store, s); err != nil {
		// The saveset is whole and kept; the next start, or the next run of the task, raises what is missing.
		b.note(sms.SeverityInfo, "eol_not_raised", err.Error())
		b.m.log.Warn("EOL of the chain not raised", "run", b.id, "saveset", s.ID, "error", err)
	}
	return nil
}
