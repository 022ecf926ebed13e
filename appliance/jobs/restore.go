package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// RestoreRequest starts a restore at once. Order holds what the agent is told; RunID, Token, SavesetID and TaskType of it
// are filled in here.
type RestoreRequest struct {
	Saveset string // whole id
	Client  string // to restore to; empty: the saveset's own
	User    string
	Order   sms.RestoreOrder
	// Request is kept in the run's record and not read.
	Request json.RawMessage
}

// StartRestore queues a restore and returns its run. Restores wait for no other run.
func (m *Manager) StartRestore(ctx context.Context, req RestoreRequest) (Info, error) {
	s, err := m.opts.Catalog.Saveset(ctx, req.Saveset)
	if catalog.KindOf(err) == catalog.KindNotFound || err == nil && !s.DeletedAt.IsZero() {
		return Info{}, refuse(KindNotFound, "see: coffer saveset list", "there is no saveset %q", req.Saveset)
	}
	if err != nil {
		return Info{}, err
	}
	if req.Client == "" {
		req.Client = s.Client
	}
	if len(req.Order.Command) > 0 && s.TaskType != catalog.TaskStream {
		return Info{}, refuse(KindInvalid, "", "saveset %s is not a stream: it cannot be piped into a command", s.ID)
	}
	if s.TaskType == catalog.TaskStream && len(req.Order.Command) == 0 && req.Order.Target == "" {
		return Info{}, refuse(KindInvalid, "name a target directory or a command", "saveset %s is a stream: it has no original place", s.ID)
	}
	if s.TaskType == catalog.TaskLibvirt && req.Order.Target == "" {
		return Info{}, refuse(KindInvalid, "name a directory to restore its files into", "saveset %s is a virtual machine: its files have no original place", s.ID)
	}
	if err := m.admit(ctx, req.Client); err != nil {
		return Info{}, err
	}
	if _, err := m.openStore(); err != nil {
		return Info{}, err
	}
	rec := catalog.Run{Kind: catalog.RunRestore, Client: req.Client, Task: s.Task, User: req.User, Saveset: s.ID, Request: req.Request}
	return m.launch(ctx, rec, "", func(r *run) ending { return m.restore(r, s, req) })
}

// restore is one restore run.
type restore struct{ *run }

var _ ingest.Sink = restore{}

// Commit implements ingest.Sink: a restore makes no saveset.
func (restore) Commit(context.Context, sms.Commit) (sms.CommitResult, error) {
	return sms.CommitResult{}, errors.New("a restore cannot make a saveset")
}

func (m *Manager) restore(r *run, s catalog.Saveset, req RestoreRequest) ending {
	store, err := m.openStore()
	if err != nil {
		return r.fail(err)
	}
	id, err := dedup.ParseSavesetID(s.ID)
	if err != nil {
		return r.fail(err)
	}
	view, err := store.View(r.ctx, id)
	if err != nil {
		return r.fail(fmt.Errorf("open saveset %s: %w", s.ID, err))
	}
	defer func() {
		if err := view.Close(); err != nil {
			m.log.Warn("saveset not closed cleanly", "run", r.id, "error", err)
		}
	}()
	if err := r.activateRestore(s); err != nil {
		return r.fail(err)
	}
	if len(req.Order.Paths) == 0 && s.TaskType == catalog.TaskPath {
		if req.Order.Paths, err = sourcePaths(r.ctx, view); err != nil {
			return r.fail(fmt.Errorf("find the sources of saveset %s: %w", s.ID, err))
		}
	}
	d, err := store.DomainByID(view.Manifest().Domain)
	if err != nil {
		return r.fail(fmt.Errorf("dedup domain of saveset %s: %w", s.ID, err))
	}
	res, err := m.order(r, ingest.RunOptions{ID: r.id, Client: req.Client, Token: sms.NewToken(), Sink: restore{r}, Domain: d.ID, Key: d.Key,
		Chunking: d.Chunking, Root: view.Manifest().Root, View: timedView{view, &r.watch}},
		func(token sms.Token) sms.Order {
			o := req.Order
			o.RunID, o.Token, o.SavesetID, o.TaskType = r.id, token, s.ID, s.TaskType
			o.Seal = m.unsealing(r, view.Manifest())
			for _, source := range s.Sources {
				o.Sources = append(o.Sources, sms.Path(source))
			}
			return sms.Order{ID: r.id, Kind: sms.OrderRestore, Restore: &o}
		})
	if err != nil {
		return r.fail(err)
	}
	e := r.endingOf(res)
	if e.state == catalog.RunSuccess && e.outcome.Different > 0 {
		e.state, e.reason = catalog.RunWarning, differs(e.outcome.Different)
	}
	return e
}

// sourcePaths returns the task's sources that the saveset has: they are what a restore of everything restores. The
// directories above them are in the saveset only to lead there: others live in them, so that an existing /var is neither
// changed nor compared because of a source below it. No paths mean everything.
func sourcePaths(ctx context.Context, view StoreView) ([]sms.Path, error) {
	m := view.Manifest()
	extra, err := metaOf(m)
	if err != nil {
		return nil, err
	}
	var out []sms.Path
	for _, path := range extra.SourcePaths {
		if !m.SealedBy.IsZero() { // nobody here can look; a run whose source was missing made no saveset
			out = append(out, sms.Path(path))
			continue
		}
		there, err := has(ctx, view, m.Root.Digest, string(path))
		if err != nil {
			return nil, err
		}
		if there {
			out = append(out, sms.Path(path))
		}
	}
	return out, nil
}

// has says whether the tree below a directory's node has the path.
func has(ctx context.Context, src recipe.Source, dir digest.Digest, path string) (bool, error) {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if dir.IsZero() {
			return false, nil
		}
		e, _, err := recipe.Lookup(ctx, src, dir, name)
		if errors.Is(err, recipe.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		dir = digest.Digest{}
		if e.IsDir() {
			dir = e.Content.Digest
		}
	}
	return true, nil
}

// activateRestore records that the run works now.
func (r *run) activateRestore(s catalog.Saveset) error {
	now := r.change(func(i *Info) {
		i.State, i.Started = catalog.RunActive, r.m.now()
		i.Progress.TotalEntries, i.Progress.TotalBytes = uint64(s.Entries), uint64(s.Logical)
	})
	if err := r.m.opts.Catalog.UpdateRun(r.ctx, now.Run); err != nil {
		return err
	}
	r.m.publish(Event{Kind: EventState, RunID: r.id, Run: now})
	r.m.log.Info("restore started", "run", r.id, "client", now.Client, "saveset", s.ID)
	return nil
}
