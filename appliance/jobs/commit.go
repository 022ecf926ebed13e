package jobs

import (
	"context"
	"fmt"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// ReasonOverlay is the level reason of a saveset that was made of an export's overlay.
const ReasonOverlay Reason = "overlay_commit"

// CommitRequest makes a saveset in the appliance itself, without an agent: COPY, of the client and task of the saveset that
// it is made from.
type CommitRequest struct {
	Base  dedup.SavesetID
	Cause string // what it is made of, for people: "export 1a2b3c"
	User  string
	// Doubt, where not empty, makes the run end with a warning that says so.
	Doubt string
	// Bytes is how many bytes Build will read, about.
	Bytes int64
	// Build writes what the store lacks and returns the root; keys are those of the base's domain. done is told how many bytes
	// were read so far.
	Build func(ctx context.Context, to *CommitSink, keys digest.Keys, done func(int64)) (recipe.Ref, error)
	// Ended is called once, when the run has ended or did not start.
	Ended func()
}

// CommitSink is what Build writes to, from one goroutine.
type CommitSink struct {
	run  StoreRun
	lane ingest.Lane // nil before the first frame
}

// Have fills out: true means present and pinned for the run.
func (s *CommitSink) Have(ctx context.Context, ds []digest.Digest, out []bool) error {
	return s.run.Have(ctx, ds, out)
}

// PutFrame stores chunks.
func (s *CommitSink) PutFrame(ctx context.Context, f frame.Frame) (err error) {
	if s.lane == nil {
		if s.lane, err = s.run.Lane(func(uint64) {}); err != nil {
			return err
		}
	}
	_, err = s.lane.PutFrame(ctx, f)
	return err
}

// PutNodes stores nodes, children before parents.
func (s *CommitSink) PutNodes(ctx context.Context, f frame.Frame) error {
	return s.run.PutNodes(ctx, f)
}

// StartCommit records the run, as a backup, and starts it. It waits for no other run.
func (m *Manager) StartCommit(ctx context.Context, req CommitRequest) (Info, error) {
	i, err := m.startCommit(ctx, req)
	if err != nil {
		req.Ended()
	}
	return i, err
}

func (m *Manager) startCommit(ctx context.Context, req CommitRequest) (Info, error) {
	base, err := m.opts.Catalog.Saveset(ctx, req.Base.String())
	if catalog.KindOf(err) == catalog.KindNotFound {
		return Info{}, refuse(KindNotFound, "see: coffer saveset list", "there is no saveset %q", req.Base)
	}
	if err != nil {
		return Info{}, err
	}
	rec := catalog.Run{Kind: catalog.RunBackup, Client: base.Client, Task: base.Task, User: req.User, LevelRequested: string(Copy)}
	return m.launch(ctx, rec, "", func(r *run) ending { return m.commitOverlay(r, req) }, req.Ended)
}

// overlayCommit is one such run.
type overlayCommit struct {
	*run
	req   CommitRequest
	store Store
	base  StoreView
	into  StoreRun
}

func (m *Manager) commitOverlay(r *run, req CommitRequest) ending {
	store, err := m.openStore()
	if err != nil {
		return r.fail(err)
	}
	base, err := store.View(r.ctx, req.Base)
	if err != nil {
		return r.fail(fmt.Errorf("open saveset %s: %w", req.Base, err))
	}
	defer func() {
		if err := base.Close(); err != nil {
			m.log.Warn("saveset not closed cleanly", "run", r.id, "error", err)
		}
	}()
	mf := base.Manifest()
	into, err := store.Begin(r.ctx, dedup.RunOptions{ID: r.id, Parents: []dedup.SavesetID{req.Base}, Domain: mf.Domain, SealedBy: mf.SealedBy})
	if err != nil {
		return r.fail(err)
	}
	c := overlayCommit{run: r, req: req, store: store, base: base, into: into}
	defer func() {
		// After a commit the abort does nothing. Not the run's context: what was written is sealed, for the next try.
		if err := into.Abort(m.ctx, "the run ended without a saveset"); err != nil {
			m.log.Warn("store run not closed cleanly", "run", r.id, "error", err)
		}
	}()
	if err := c.work(); err != nil {
		return r.fail(err)
	}
	return ending{state: successOr(req.Doubt != "")}
}

func (c overlayCommit) work() error {
	if err := c.activate(); err != nil {
		return err
	}
	started := c.m.now()
	d, err := c.store.DomainByID(c.base.Manifest().Domain)
	if err != nil {
		return err
	}
	root, err := c.req.Build(c.ctx, &CommitSink{run: c.into}, d.Keys, c.done)
	if err != nil {
		return fmt.Errorf("read what was written: %w", err)
	}
	draft, err := c.draft(root, started)
	if err != nil {
		return err
	}
	c.flushNotices(1)
	manifest, err := c.into.Commit(c.ctx, draft)
	if err != nil {
		return fmt.Errorf("make the saveset: %w", err)
	}
	// The saveset is there: a cancel comes too late.
	if err := (&backup{run: c.run, store: c.store}).record(context.WithoutCancel(c.ctx), manifest); err != nil {
		return err
	}
	c.change(func(i *Info) {
		i.Saveset = manifest.ID.String()
		i.Progress.BytesNew, i.Progress.Stored, i.Progress.Logical = manifest.New, manifest.Stored, manifest.Logical
		i.Progress.Entries, i.Progress.TotalEntries = manifest.Entries, manifest.Entries
		c.stored = nil
	})
	return nil
}

// activate records that the run works now.
func (c overlayCommit) activate() error {
	now := c.change(func(i *Info) {
		i.State, i.Started = catalog.RunActive, c.m.now()
		i.Level, i.LevelReason = string(Copy), string(ReasonOverlay)
		i.Progress.TotalBytes = uint64(c.req.Bytes)
		c.stored = func() uint64 { return c.into.Stats().StoredBytes }
	})
	if err := c.m.opts.Catalog.UpdateRun(c.ctx, now.Run); err != nil {
		return err
	}
	c.m.publish(Event{Kind: EventState, RunID: c.id, Run: now})
	c.m.log.Info("commit of an overlay started", "run", c.id, "of", c.req.Cause, "saveset", c.req.Base)
	c.note(sms.SeverityInfo, "overlay_commit", fmt.Sprintf("made of %s, over saveset %s", c.req.Cause, c.req.Base))
	if c.req.Doubt != "" {
		c.note(sms.SeverityWarning, "unclean", c.req.Doubt)
	}
	return nil
}

// done tells watchers how far the run is.
func (c overlayCommit) done(n int64) {
	now := c.change(func(i *Info) { i.Progress.BytesRead = uint64(n) })
	c.m.publish(Event{Kind: EventProgress, RunID: c.id, Run: now})
}

// draft is that of the base, with what is new.
func (c overlayCommit) draft(root recipe.Ref, started time.Time) (dedup.Draft, error) {
	mf := c.base.Manifest()
	extra, err := metaOf(mf)
	if err != nil {
		return dedup.Draft{}, err
	}
	pool, err := c.m.opts.Catalog.Pool(c.ctx, extra.Pool)
	if catalog.KindOf(err) == catalog.KindNotFound {
		pool, err = c.m.opts.Catalog.Pool(c.ctx, catalog.DefaultPool)
	}
	if err != nil {
		return dedup.Draft{}, err
	}
	return dedup.Draft{Root: root, Client: mf.Client, Task: mf.Task, TaskType: mf.TaskType, RequestedLevel: string(Copy), Level: string(Copy),
		Reason: string(ReasonOverlay), Started: started, Finished: c.m.now(), Sources: mf.Sources, Warnings: uint64(c.snapshot().Warnings),
		Meta: mf.Meta, State: dedup.State{EOL: c.m.opts.Trusted().Add(pool.Retention()),
			Cause: fmt.Sprintf("pool %s: %d days; made of %s", pool.Name, pool.RetentionDays, c.req.Cause)}}, nil
}
