package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/jobs"
	"coffer/appliance/maintenance"
	"coffer/appliance/sms"
)

// runs implements server.Runs.
type runs struct{ *appliance }

var _ server.Runs = runs{}

// userOf names who calls.
func userOf(ctx context.Context) string {
	c, _ := api.CallerFrom(ctx)
	return c.User.Name
}

// StartBackup implements server.Runs.
func (r runs) StartBackup(ctx context.Context, req api.BackupRequest) (api.Run, error) {
	level, err := jobs.ParseLevel(string(req.Level))
	if err != nil {
		return api.Run{}, apiError(err)
	}
	i, err := r.jobs.StartBackup(ctx, jobs.BackupRequest{Task: req.Task, Level: level, User: userOf(ctx)})
	return apiRun(i), apiError(err)
}

// StartRestore implements server.Runs.
func (r runs) StartRestore(ctx context.Context, req api.RestoreRequest) (api.Run, error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return api.Run{}, fmt.Errorf("keep the restore's request: %w", err)
	}
	order := sms.RestoreOrder{Target: sms.Path(req.To), Flat: req.Flat, Existing: existing(req.Mode), Include: req.Include,
		Exclude: req.Exclude, Verify: req.Verify, Command: req.Command}
	for _, p := range req.AllPaths() {
		order.Paths = append(order.Paths, sms.Path(p))
	}
	i, err := r.jobs.StartRestore(ctx, jobs.RestoreRequest{Saveset: req.Saveset, Client: req.Client, User: userOf(ctx), Order: order, Request: raw})
	return apiRun(i), apiError(err)
}

// existing turns the API's word into that of SMS.
func existing(mode api.RestoreMode) sms.Existing {
	switch mode {
	case api.RestoreOverwrite:
		return sms.ExistingOverwrite
	case api.RestoreNewVersion:
		return sms.ExistingNewVersion
	}
	return sms.ExistingKeep
}

// Runs implements server.Runs.
func (r runs) Runs(ctx context.Context, f api.RunFilter) (api.Page[api.Run], error) {
	q := catalog.RunFilter{Task: f.Task, Client: f.Client, Clients: f.Clients, Kind: catalog.RunKind(f.Kind), Before: f.Before, Limit: f.Limit + 1}
	if f.State != "" {
		q.States = []catalog.RunState{catalog.RunState(f.State)}
	}
	list, err := r.jobs.Runs(ctx, q)
	if err != nil {
		return api.Page[api.Run]{}, apiError(err)
	}
	return page(list, f.Limit, apiRun, func(i jobs.Info) string { return i.ID }), nil
}

// Run implements server.Runs.
func (r runs) Run(ctx context.Context, id string) (api.Run, error) {
	i, err := r.jobs.Run(ctx, id)
	return apiRun(i), apiError(err)
}

// Notices implements server.Runs.
func (r runs) Notices(ctx context.Context, id string, after int64, limit int) ([]api.Notice, error) {
	list, err := r.jobs.Notices(ctx, id, after, limit)
	return mapped(list, apiNotice), apiError(err)
}

// CancelRun implements server.Runs.
func (r runs) CancelRun(ctx context.Context, id string) (api.Run, error) {
	i, err := r.jobs.Cancel(ctx, id, userOf(ctx))
	return apiRun(i), apiError(err)
}

// Subscribe implements server.Runs.
func (r runs) Subscribe(ctx context.Context, f api.EventFilter) (<-chan api.Event, error) {
	if f.Run != "" {
		if _, err := r.Run(ctx, f.Run); err != nil {
			return nil, err
		}
	}
	var fromRuns <-chan jobs.Event
	var fromUpkeep <-chan maintenance.Event
	out := make(chan api.Event)
	if !r.watchers.add() {
		return nil, api.Errorf(api.CodeShuttingDown, "the appliance is stopping")
	}
	ctx, cancel := context.WithCancel(ctx)
	if f.Maintenance == "" {
		fromRuns = r.jobs.Subscribe(ctx, f.Run)
	}
	if f.Run == "" {
		fromUpkeep = r.upkeep.Subscribe(ctx, f.Maintenance)
	}
	// The goroutine ends when ctx does, or the channels that it reads; the stop waits for it.
	go func() {
		defer r.watchers.done()
		defer close(out)
		defer cancel()
		r.relay(ctx, fromRuns, fromUpkeep, out)
	}()
	return out, nil
}

// relay converts events until ctx ends or one of the channels does: a watcher of both that one has given up has missed
// something. A nil channel is none.
func (r runs) relay(ctx context.Context, fromRuns <-chan jobs.Event, fromUpkeep <-chan maintenance.Event, out chan<- api.Event) {
	for {
		var converted api.Event
		tell := true
		select {
		case e, open := <-fromRuns:
			if !open {
				return
			}
			converted, tell = r.event(ctx, e)
		case e, open := <-fromUpkeep:
			if !open {
				return
			}
			converted = maintenanceEvent(e)
		}
		if !tell {
			continue
		}
		select {
		case out <- converted:
		case <-ctx.Done():
			return
		}
	}
}

// watchers counts those who follow events, so that a stop can wait until they were told how runs ended.
type watchers struct {
	mu     sync.Mutex // guards closed; add holds it, so that no one is added to a group that is waited for
	closed bool
	group  sync.WaitGroup
}

// add counts one more; false once wait was called.
func (w *watchers) add() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.group.Add(1)
	}
	return !w.closed
}

func (w *watchers) done() { w.group.Done() }

// close lets nobody in any more.
func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// wait waits until all are done, or for as long as it has patience.
func (w *watchers) wait(patience time.Duration) bool {
	told := make(chan struct{})
	go func() { defer close(told); w.group.Wait() }()
	select {
	case <-told:
		return true
	case <-time.After(patience):
		return false
	}
}

// event converts an event; false where there is nothing to tell any more.
func (r runs) event(ctx context.Context, e jobs.Event) (api.Event, bool) {
	out := api.Event{Time: e.Time.UTC()}
	switch e.Kind {
	case jobs.EventState, jobs.EventProgress:
		run := apiRun(e.Run)
		out.Type, out.Run = api.EventRun, &run
	case jobs.EventNotice:
		n := apiNotice(e.Notice)
		out.Type, out.RunID, out.Notice = api.EventNotice, e.RunID, &n
	case jobs.EventClient:
		c, err := clients(r).Client(ctx, e.Client)
		if err != nil {
			return out, false
		}
		out.Type, out.Client = api.EventClient, &c
	default:
		return out, false
	}
	return out, true
}
