package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/events"
	"coffer/appliance/sms"
)

// Options of a Manager. Catalog, Store and Agents are needed.
type Options struct {
	Catalog *catalog.Catalog
	// Store returns the open store, or why there is none.
	Store  func() (Store, error)
	Agents Agents
	Logger *slog.Logger     // nil: silent
	Now    func() time.Time // nil: time.Now
	// Trusted is the clock that ends of life follow; nil: Now.
	Trusted func() time.Time
	// SaveRetry is how often a run's end that could not be recorded is tried again; 0: 5 seconds.
	SaveRetry time.Duration
	// OrderTimeout is how long an agent may take to accept or refuse an order, which it does at once; 0: 2 minutes.
	OrderTimeout time.Duration
}

// Manager starts runs and follows them. It is safe for concurrent use.
type Manager struct {
	opts Options
	log  *slog.Logger
	hub  events.Hub[Event]

	ctx  context.Context // ends when Stop gave up waiting; bounds writes to the catalog
	kill context.CancelFunc
	wg   sync.WaitGroup

	quit chan struct{} // closed when Stop begins

	mu       sync.Mutex // guards the three below
	live     map[string]*run
	tails    map[string]*run // last run of each task's queue
	stopping bool
}

// New makes a Manager. Call Reconcile (where the store is open) and Recover before the first start, Stop in the end.
func New(opts Options) *Manager {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Trusted == nil {
		opts.Trusted = opts.Now
	}
	if opts.SaveRetry == 0 {
		opts.SaveRetry = 5 * time.Second
	}
	if opts.OrderTimeout == 0 {
		opts.OrderTimeout = 2 * time.Minute
	}
	m := &Manager{opts: opts, log: opts.Logger, quit: make(chan struct{}), live: map[string]*run{}, tails: map[string]*run{}}
	m.ctx, m.kill = context.WithCancel(context.Background())
	return m
}

func (m *Manager) now() time.Time { return m.opts.Now() }

func (m *Manager) publish(e Event) {
	e.Time = m.now()
	m.hub.Publish(e)
}

// ClientChanged tells watchers that a client came, went or changed.
func (m *Manager) ClientChanged(name string) { m.publish(Event{Kind: EventClient, Client: name}) }

// Subscribe tells of events from now on; see events.Hub.
func (m *Manager) Subscribe(ctx context.Context, run string) <-chan Event {
	return m.hub.Subscribe(ctx, run)
}

// Recover ends the runs that a killed appliance left behind: success or warning where the saveset is there, error
// otherwise.
func (m *Manager) Recover(ctx context.Context) error {
	runs, err := m.opts.Catalog.Runs(ctx, catalog.RunFilter{States: []catalog.RunState{catalog.RunQueued, catalog.RunActive}})
	if err != nil {
		return fmt.Errorf("recover runs: %w", err)
	}
	for _, r := range runs {
		sets, err := m.opts.Catalog.Savesets(ctx, catalog.SavesetFilter{Run: r.ID, Limit: 1})
		if err != nil {
			return fmt.Errorf("recover run %s: %w", r.ID, err)
		}
		was := r.State
		r.Ended = m.now()
		switch {
		case r.Kind == catalog.RunBackup && len(sets) > 0:
			r.State, r.Saveset, r.Warnings = catalog.RunState(sets[0].State), sets[0].ID, sets[0].Warnings
			r.Reason = "the appliance was stopped after the saveset was made and before the run was recorded"
		default:
			r.State = catalog.RunError
			r.Reason = fmt.Sprintf("the appliance was killed or lost power while the run was %s", was)
			r.Hint = "start it again: what arrived is reused"
		}
		if err := m.opts.Catalog.UpdateRun(ctx, r); err != nil {
			return fmt.Errorf("recover run %s: %w", r.ID, err)
		}
		m.log.Warn("run of a killed appliance ended", "run", r.ID, "was", was, "state", r.State)
	}
	return nil
}

// admit checks that the client can work now.
func (m *Manager) admit(ctx context.Context, name string) error {
	c, err := m.opts.Catalog.Client(ctx, name)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return refuse(KindNotFound, "", "there is no client %q", name)
	}
	if err != nil {
		return err
	}
	switch {
	case !c.RevokedAt.IsZero():
		return refuse(KindRevoked, fmt.Sprintf("to trust it again, make a new token with: coffer client token %s, and enrol the agent with it", name),
			"the certificate of client %s was revoked at %s", name, c.RevokedAt.Format(time.RFC3339))
	case c.EnrolledAt.IsZero():
		return refuse(KindPending, fmt.Sprintf("on the client run: coffer-agent enrol --server APPLIANCE:11301, with the token that coffer client token %s prints", name),
			"the agent of client %s has not enrolled yet", name)
	case !m.opts.Agents.Presence(name).Online:
		return m.offline(c)
	}
	return nil
}

func (m *Manager) offline(c catalog.Client) error {
	seen := "it was never seen since it enrolled"
	if !c.LastSeen.IsZero() {
		seen = fmt.Sprintf("it was last seen at %s, %s ago", c.LastSeen.Format(time.RFC3339), m.now().Sub(c.LastSeen).Round(time.Second))
	}
	return refuse(KindOffline, startAgentHint, "the agent of client %s is not connected: %s", c.Name, seen)
}

// Admit checks that a client exists, is enrolled, not revoked and connected.
func (m *Manager) Admit(ctx context.Context, client string) error { return m.admit(ctx, client) }

// openStore returns the store, or a refusal.
func (m *Manager) openStore() (Store, error) {
	s, err := m.opts.Store()
	if err != nil {
		return nil, &Error{Kind: KindNoStore, Message: "the store is not open", Hint: "see: coffer store status", Err: err}
	}
	return s, nil
}

// launch records a queued run and starts its goroutine. Where a task is named, the run waits for the earlier ones of it.
func (m *Manager) launch(ctx context.Context, rec catalog.Run, queue string, work func(*run) ending, over ...func()) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return Info{}, refuse(KindStopping, "try again when it is up", "the appliance is stopping")
	}
	rec.State = catalog.RunQueued
	rec, err := m.opts.Catalog.AddRun(ctx, rec)
	if err != nil {
		return Info{}, &Error{Kind: KindUnwritable, Message: "the run cannot be recorded", Hint: hintOf(err), Err: err}
	}
	r := &run{m: m, id: rec.ID, info: info(rec), done: make(chan struct{})}
	r.ctx, r.stop = context.WithCancelCause(m.ctx)
	m.live[rec.ID] = r
	var before *run
	if queue != "" {
		before, m.tails[queue] = m.tails[queue], r
	}
	now := r.snapshot()
	m.publish(Event{Kind: EventState, RunID: rec.ID, Run: now})
	m.wg.Go(func() { m.follow(r, before, queue, work, over...) })
	return now, nil
}

// follow is the life of one run, from the queue to its record.
func (m *Manager) follow(r, before *run, queue string, work func(*run) ending, over ...func()) {
	defer r.stop(nil)
	how := m.inTurn(r, before, work)
	for _, f := range over { // also of a run that was cancelled before it could work
		f()
	}
	now := r.end(how)
	m.logEnd(now)
	saved := m.save(r) == nil
	m.publish(Event{Kind: EventState, RunID: r.id, Run: now})
	if before != nil {
		<-before.done // a run cancelled in the queue does not let the next one pass the active one
	}
	m.leave(r, queue, saved)
	if !saved {
		m.saveLater(r)
	}
}

// end writes the ending into the run.
func (r *run) end(e ending) Info {
	return r.change(func(i *Info) {
		if e.outcome != nil {
			i.Progress.Counters, i.Progress.Different = e.outcome.Counters, e.outcome.Different
		}
		i.State, i.Reason, i.Hint, i.Ended = e.state, e.reason, e.hint, r.m.now()
		if e.state == catalog.RunSuccess && max(r.warned, int64(i.Progress.Warnings)) > 0 {
			i.State = catalog.RunWarning
		}
		i.Progress.Current, i.Progress.Phase = "", ""
		if r.stored != nil {
			i.Progress.Stored, r.stored = r.stored(), nil // the store's run is over
		}
	})
}

// inTurn waits for the run before and works then.
func (m *Manager) inTurn(r, before *run, work func(*run) ending) ending {
	if before != nil {
		select {
		case <-before.done:
		case <-r.ctx.Done():
		}
	}
	if reason, ok := r.cancelReason(); ok {
		return ending{state: catalog.RunCancelled, reason: reason}
	}
	return work(r)
}

// leave frees the run's place in its queue, and forgets it where it is recorded.
func (m *Manager) leave(r *run, queue string, saved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if queue != "" && m.tails[queue] == r {
		delete(m.tails, queue)
	}
	if saved {
		delete(m.live, r.id)
	}
	close(r.done)
}

// save records the run and its notices as they are.
func (m *Manager) save(r *run) error {
	now := r.snapshot()
	raw, err := json.Marshal(now.Progress)
	if err == nil {
		now.Counters = raw
		err = m.opts.Catalog.UpdateRun(m.ctx, now.Run)
	}
	if err != nil {
		m.log.Error("run not recorded", "run", r.id, "state", now.State, "error", err)
		return err
	}
	r.flushNotices(1)
	return nil
}

// saveLater tries again until the end is recorded or the appliance stops.
func (m *Manager) saveLater(r *run) {
	tick := time.NewTicker(m.opts.SaveRetry)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.quit:
			_ = m.save(r) // the last try; without it the next start ends the run
			return
		}
		if m.save(r) == nil {
			m.mu.Lock()
			delete(m.live, r.id)
			m.mu.Unlock()
			return
		}
	}
}

func (m *Manager) logEnd(i Info) {
	level := slog.LevelInfo
	if i.State == catalog.RunError {
		level = slog.LevelError
	}
	m.log.Log(m.ctx, level, "run ended", "run", i.ID, "kind", i.Kind, "state", i.State, "client", i.Client, "task", i.Task,
		"level", i.Level, "saveset", i.Saveset, "warnings", i.Warnings, "reason", i.Reason,
		"seconds", i.Ended.Sub(i.Queued).Seconds())
}

// find returns a run that this process works on.
func (m *Manager) find(id string) *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live[id]
}

// Run returns a run as it is now. KindNotFound.
func (m *Manager) Run(ctx context.Context, id string) (Info, error) {
	if r := m.find(id); r != nil {
		return r.snapshot(), nil
	}
	rec, err := m.opts.Catalog.Run(ctx, id)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return Info{}, refuse(KindNotFound, "", "there is no run %q", id)
	}
	return info(rec), err
}

// Runs lists runs, newest first, each as it is now.
func (m *Manager) Runs(ctx context.Context, f catalog.RunFilter) ([]Info, error) {
	recs, err := m.opts.Catalog.Runs(ctx, f)
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(recs))
	for _, rec := range recs {
		i := info(rec)
		if r := m.find(rec.ID); r != nil {
			i = r.snapshot()
		}
		// A run may have moved on since its record was written.
		if len(f.States) == 0 || slices.Contains(f.States, i.State) {
			out = append(out, i)
		}
	}
	return out, nil
}

// Notices returns at most limit notices of a run with Seq > after, ascending. KindNotFound.
func (m *Manager) Notices(ctx context.Context, id string, after int64, limit int) ([]catalog.Notice, error) {
	r := m.find(id)
	if r == nil {
		if _, err := m.Run(ctx, id); err != nil {
			return nil, err
		}
	} else {
		r.flushNotices(1)
	}
	out, err := m.opts.Catalog.Notices(ctx, id, after, limit)
	if err != nil || r == nil {
		return out, err
	}
	if len(out) > 0 {
		after = out[len(out)-1].Seq
	}
	out = append(out, r.pendingAfter(after)...)
	return out[:min(len(out), limit)], nil
}

// Cancel asks a run to stop, in the name of a user, and returns it as it is then. KindNotFound, KindEnded.
func (m *Manager) Cancel(ctx context.Context, id, user string) (Info, error) {
	r := m.find(id)
	if r == nil {
		i, err := m.Run(ctx, id)
		if err != nil {
			return i, err
		}
		return i, refuse(KindEnded, "", "run %s has ended already: %s", id, i.State)
	}
	if i := r.snapshot(); i.State.Final() {
		return i, refuse(KindEnded, "", "run %s has ended already: %s", id, i.State)
	}
	r.cancel("cancelled by " + user)
	return r.snapshot(), nil
}

// cancel stops the run; later calls change nothing.
func (r *run) cancel(reason string) {
	r.stop(cancelled{reason})
	r.mu.Lock()
	agent, client := r.agent, r.worker
	r.mu.Unlock()
	if agent == nil {
		return
	}
	agent.Cancel(reason)
	// The order reaches an agent that has accepted the run and not opened it yet. It is a courtesy: the run is over here.
	r.m.wg.Go(func() {
		ctx, done := context.WithTimeout(r.m.ctx, cancelPatience)
		defer done()
		_, err := r.m.opts.Agents.Send(ctx, client, sms.Order{ID: r.id + "-cancel", Kind: sms.OrderCancel,
			Cancel: &sms.CancelOrder{RunID: r.id, Reason: reason}})
		if err != nil {
			r.m.log.Debug("cancel order not delivered", "run", r.id, "error", err)
		}
	})
}

const cancelPatience = 5 * time.Second

// ClientRevoked cancels the runs of a client whose certificate is no longer accepted.
func (m *Manager) ClientRevoked(name string) {
	for _, r := range m.all() {
		if r.snapshot().Client == name || r.workerName() == name {
			r.cancel("the certificate of client " + name + " was revoked")
		}
	}
}

// workerName is the client whose agent works on the run; empty before one does.
func (r *run) workerName() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.worker
}

func (m *Manager) all() []*run {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*run, 0, len(m.live))
	for _, r := range m.live {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *run) int { return strings.Compare(b.id, a.id) })
	return out
}

// Active counts the runs that have not ended.
func (m *Manager) Active() int {
	n := 0
	for _, r := range m.all() {
		if !r.snapshot().State.Final() {
			n++
		}
	}
	return n
}

// Stop refuses new runs, cancels all (the youngest first, so that no queued one starts), and waits for their ends until
// ctx is done. Subscriptions end.
func (m *Manager) Stop(ctx context.Context) error {
	m.mu.Lock()
	if !m.stopping {
		m.stopping = true
		close(m.quit)
	}
	m.mu.Unlock()
	for _, r := range m.all() {
		r.cancel("the appliance was stopped")
	}
	ended := make(chan struct{})
	go func() { defer close(ended); m.wg.Wait() }()
	defer m.hub.Close()
	defer m.kill()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop runs: %d did not end in time: %w", m.Active(), ctx.Err())
	}
}
