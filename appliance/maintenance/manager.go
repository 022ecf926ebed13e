package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/events"
	"coffer/dedup"
)

// Store is what maintenance needs of a store; *dedup.Store is one.
type Store interface {
	Reseal(ctx context.Context, progress func(dedup.Progress)) (dedup.ResealReport, error)
	Collect(ctx context.Context, o dedup.CollectOptions) (dedup.CollectReport, error)
	Check(ctx context.Context, o dedup.CheckOptions) (dedup.CheckReport, error)
	Heal(ctx context.Context, from []dedup.ChunkSource, progress func(dedup.Progress)) (dedup.HealReport, error)
	Usage(ctx context.Context, progress func(dedup.Progress)) (dedup.Usage, error)
	Damage() []dedup.Damage
	Affected(ctx context.Context, limit int) ([]dedup.Affected, error)
}

var _ Store = (*dedup.Store)(nil)

// ChunkSource is another store, until it is closed.
type ChunkSource interface {
	dedup.ChunkSource
	Close() error
}

// Options of a Manager. Catalog and Store are needed.
type Options struct {
	Catalog *catalog.Catalog
	// Store returns the open store, or why there is none.
	Store func() (Store, error)
	// OpenSource opens another store for a repair; nil: repairs heal from the store itself only.
	OpenSource func(ctx context.Context, s Source) (ChunkSource, error)
	// Reindex closes the store, and opens it with an index made anew; nil: such jobs are refused.
	Reindex func(ctx context.Context, progress func(dedup.Progress)) error
	// Purge deletes the savesets whose time is over; nil: nothing is purged.
	Purge  func(ctx context.Context, progress func(dedup.Progress)) (PurgeReport, error)
	Config Config
	Logger *slog.Logger     // nil: silent
	Now    func() time.Time // nil: time.Now
	Zone   *time.Location   // of the daily start; nil: time.Local
}

// Config is what the appliance's configuration says of maintenance. Zero fields: see each.
type Config struct {
	Start   TimeOfDay     // of the daily maintenance, NEWDAY; Never: none
	Share   float64       // of all containers that a daily check reads; 0: none, references only
	Overdue time.Duration // age of the last complete check from which it is overdue; 0: never
	Sparse  float64       // as dedup.CollectOptions
	Budget  time.Duration // likewise
	// GCRate and CheckRate are bytes a second; 0: no limit.
	GCRate, CheckRate int64
}

// EventKind is what an event tells of.
type EventKind uint8

// Kinds of events.
const (
	EventState    EventKind = iota // a job changed its state
	EventProgress                  // a job went on
)

// Event is a change of a job.
type Event struct {
	Kind EventKind
	Time time.Time
	Job  Info
}

// Topic implements events.Event: watchers may ask for one job.
func (e Event) Topic() string { return e.Job.ID }

// Class implements events.Event.
func (e Event) Class() events.Class {
	if e.Kind == EventProgress {
		return events.Newest
	}
	return events.Kept
}

// Manager runs maintenance jobs. It is safe for concurrent use.
type Manager struct {
	opts Options
	log  *slog.Logger
	hub  events.Hub[Event]
	list damageList

	ctx     context.Context // ends when Stop gave up waiting; bounds writes to the catalog
	kill    context.CancelFunc
	running context.Context // ends when Stop begins
	quit    context.CancelFunc
	wg      sync.WaitGroup
	wake    chan struct{} // a job was queued

	mu       sync.Mutex // guards the five below
	totals   Totals
	live     []*job // the active one first, then the queue
	active   *job
	stopping bool
	next     time.Time // of the daily maintenance; zero: none
}

// New makes a Manager. Call Recover, then Start once; Stop in the end.
func New(opts Options) *Manager {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Zone == nil {
		opts.Zone = time.Local
	}
	m := &Manager{opts: opts, log: opts.Logger, wake: make(chan struct{}, 1)}
	m.list.wake = make(chan struct{}, 1)
	m.ctx, m.kill = context.WithCancel(context.Background())
	m.running, m.quit = context.WithCancel(m.ctx)
	return m
}

func (m *Manager) now() time.Time { return m.opts.Now() }

func (m *Manager) publish(kind EventKind, i Info) {
	m.hub.Publish(Event{Kind: kind, Time: m.now(), Job: i})
}

// Subscribe tells of jobs from now on, of one where id is not empty; see events.Hub.
func (m *Manager) Subscribe(ctx context.Context, id string) <-chan Event {
	return m.hub.Subscribe(ctx, id)
}

// Recover ends the jobs that a killed appliance left behind.
func (m *Manager) Recover(ctx context.Context) error {
	jobs, err := m.opts.Catalog.MaintenanceJobs(ctx, catalog.MaintenanceFilter{States: []catalog.RunState{catalog.RunQueued, catalog.RunActive}})
	if err != nil {
		return fmt.Errorf("recover maintenance jobs: %w", err)
	}
	for _, j := range jobs {
		was := j.State
		j.State, j.Ended = catalog.RunError, m.now()
		j.Reason = fmt.Sprintf("the appliance was killed or lost power while the job was %s", was)
		j.Hint = "start it again: it goes on where it was"
		if j.Trigger == catalog.TriggerDaily {
			j.Hint = "the daily maintenance starts again by itself"
		}
		if err := m.opts.Catalog.UpdateMaintenance(ctx, j); err != nil {
			return fmt.Errorf("recover maintenance job %s: %w", j.ID, err)
		}
		m.log.Warn("maintenance job of a killed appliance ended", "job", j.ID, "kind", j.Kind, "was", was)
	}
	return nil
}

// Start begins to work: jobs, the daily maintenance, and the damage list. All of it ends with Stop.
func (m *Manager) Start() {
	m.wg.Go(m.work)
	m.wg.Go(m.keepDamage)
	if m.opts.Config.Start != Never {
		m.wg.Go(m.daily)
	}
}

// Request is a job to do.
type Request struct {
	Kind     Kind
	Settings Settings
	User     string // empty: the appliance
	Trigger  string // empty: catalog.TriggerManual
}

// Enqueue queues a job and returns it. Kinds KindInvalid, KindUnsupported, KindWaiting, KindStopping.
func (m *Manager) Enqueue(ctx context.Context, req Request) (Info, error) {
	j, err := m.enqueue(ctx, req)
	if err != nil {
		return Info{}, err
	}
	return j.snapshot(), nil
}

func (m *Manager) enqueue(ctx context.Context, req Request) (*job, error) {
	if err := m.admit(req); err != nil {
		return nil, err
	}
	if req.Trigger == "" {
		req.Trigger = catalog.TriggerManual
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopping {
		return nil, refuse(KindStopping, "try again when it is up", "the appliance is stopping")
	}
	for _, j := range m.live {
		if i := j.snapshot(); i.Kind == req.Kind && i.State == catalog.RunQueued {
			return nil, refuse(KindWaiting, "see: coffer store jobs", "a job of kind %s waits already: %s", req.Kind, i.ID)
		}
	}
	i := Info{Kind: req.Kind, Trigger: req.Trigger, User: req.User, Settings: req.Settings}
	rec, err := i.record()
	if err != nil {
		return nil, err
	}
	if rec, err = m.opts.Catalog.AddMaintenance(ctx, rec); err != nil {
		return nil, fmt.Errorf("queue maintenance: %w", err)
	}
	i.ID, i.State, i.Queued = rec.ID, rec.State, rec.Queued
	j := m.newJob(i)
	m.live = append(m.live, j)
	signal(m.wake)
	m.publish(EventState, i)
	return j, nil
}

func (m *Manager) admit(req Request) error {
	switch {
	case !slices.Contains([]Kind{GC, Check, Repair, Reindex, Usage, Purge}, req.Kind):
		return refuse(KindInvalid, "", "there is no maintenance of kind %q", req.Kind)
	case req.Kind == Reindex && m.opts.Reindex == nil,
		req.Kind == Purge && m.opts.Purge == nil,
		len(req.Settings.From) > 0 && m.opts.OpenSource == nil:
		return refuse(KindUnsupported, "", "this appliance has no maintenance of kind %s", req.Kind)
	}
	return req.Settings.validate(req.Kind)
}

// signal wakes a goroutine that waits; one that is awake looks once more.
func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// work does job after job until Stop.
func (m *Manager) work() {
	for {
		if j := m.take(); j != nil {
			m.perform(j)
			m.leave(j)
			continue
		}
		select {
		case <-m.wake:
		case <-m.running.Done():
			return // Stop has emptied the queue, and nothing comes into it any more
		}
	}
}

// take makes the first job of the queue the active one; nil when there is none.
func (m *Manager) take() *job {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.live) == 0 {
		return nil
	}
	m.active = m.live[0]
	return m.active
}

// leave forgets a job that has ended.
func (m *Manager) leave(j *job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live = slices.DeleteFunc(m.live, func(o *job) bool { return o == j })
	if m.active == j {
		m.active = nil
	}
	close(j.done)
}

// cancel stops a job; one that waits ends at once.
func (m *Manager) cancel(j *job, reason string) {
	m.mu.Lock()
	waits := m.active != j && slices.Contains(m.live, j)
	m.live = slices.DeleteFunc(m.live, func(o *job) bool { return waits && o == j })
	m.mu.Unlock()
	j.stop(cancelled{reason})
	if waits {
		m.finish(j, ending{state: catalog.RunCancelled, reason: reason})
		close(j.done)
	}
}

func (m *Manager) all() []*job {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.live)
}

func (m *Manager) find(id string) *job {
	for _, j := range m.all() {
		if j.id == id {
			return j
		}
	}
	return nil
}

// Job returns a job as it is now. KindNotFound.
func (m *Manager) Job(ctx context.Context, id string) (Info, error) {
	if j := m.find(id); j != nil {
		return j.snapshot(), nil
	}
	rec, err := m.opts.Catalog.MaintenanceJob(ctx, id)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return Info{}, refuse(KindNotFound, "see: coffer store jobs", "there is no maintenance job %q", id)
	}
	return info(rec), err
}

// Jobs lists jobs, newest first, each as it is now.
func (m *Manager) Jobs(ctx context.Context, f catalog.MaintenanceFilter) ([]Info, error) {
	recs, err := m.opts.Catalog.MaintenanceJobs(ctx, f)
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(recs))
	for _, rec := range recs {
		i := info(rec)
		if j := m.find(rec.ID); j != nil {
			i = j.snapshot()
		}
		// A job may have moved on since its record was written.
		if len(f.States) == 0 || slices.Contains(f.States, i.State) {
			out = append(out, i)
		}
	}
	return out, nil
}

// Last returns the newest ended job of each kind that has one, and the newest of each kind that ended success or warning.
func (m *Manager) Last(ctx context.Context) (ended, good []Info, err error) {
	succeeded := []catalog.RunState{catalog.RunSuccess, catalog.RunWarning}
	for _, kind := range []Kind{GC, Check, Repair, Reindex, Usage, Purge} {
		for _, q := range []struct {
			states []catalog.RunState
			into   *[]Info
		}{{append(slices.Clone(succeeded), catalog.RunError, catalog.RunCancelled), &ended}, {succeeded, &good}} {
			recs, err := m.opts.Catalog.MaintenanceJobs(ctx, catalog.MaintenanceFilter{Kind: string(kind), States: q.states, Limit: 1})
			if err != nil {
				return nil, nil, err
			}
			for _, rec := range recs {
				*q.into = append(*q.into, info(rec))
			}
		}
	}
	return ended, good, nil
}

// Active returns the job that works now, or waits next.
func (m *Manager) Active() (Info, bool) {
	for _, j := range m.all() {
		return j.snapshot(), true
	}
	return Info{}, false
}

// Cancel asks a job to stop, in the name of a user, and returns it as it is then. KindNotFound, KindEnded.
func (m *Manager) Cancel(ctx context.Context, id, user string) (Info, error) {
	j := m.find(id)
	if j == nil {
		i, err := m.Job(ctx, id)
		if err != nil {
			return i, err
		}
		return i, refuse(KindEnded, "", "maintenance job %s has ended already: %s", id, i.State)
	}
	m.cancel(j, "cancelled by "+user)
	return j.snapshot(), nil
}

// Totals are sums over the jobs that ended since New.
type Totals struct {
	Freed, Copied int64 // bytes: collections
	Checked       int64 // bytes: checks
	Found         int64 // damaged places: checks
	Healed        int64 // chunks: repairs
}

// Totals returns what the jobs so far brought.
func (m *Manager) Totals() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.totals
}

func (m *Manager) count(r Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &m.totals
	if r.GC != nil {
		t.Freed, t.Copied = t.Freed+r.GC.FreedBytes, t.Copied+r.GC.CopiedBytes
	}
	if r.Check != nil {
		t.Checked, t.Found = t.Checked+r.Check.Bytes, t.Found+int64(r.Check.Found)
	}
	if r.Repair != nil {
		t.Healed += int64(r.Repair.Again + r.Repair.Local + r.Repair.Salvaged + r.Repair.Fetched)
	}
}

// Next is when the daily maintenance starts next; zero when it is off.
func (m *Manager) Next() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next
}

// Stop refuses new jobs, cancels all, and waits for their ends until ctx is done. Subscriptions end.
func (m *Manager) Stop(ctx context.Context) error {
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	m.quit()
	for _, j := range slices.Backward(m.all()) { // the youngest first, so that none that waits starts
		m.cancel(j, stopReason)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); m.wg.Wait() }()
	defer m.hub.Close()
	defer m.kill()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("maintenance did not end in time"), ctx.Err())
	}
}

const stopReason = "the appliance was stopped"
