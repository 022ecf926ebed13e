package jobs

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// fakeStore keeps manifests and no bytes.
type fakeStore struct {
	mu        sync.Mutex // guards all below
	sets      map[dedup.SavesetID]dedup.Manifest
	last      uint64
	now       func() time.Time
	commitErr error
	viewErr   map[dedup.SavesetID]error
	harmed    map[dedup.SavesetID]bool
	aborted   int
	views     int                // open ones
	begun     []dedup.RunOptions // guarded by mu
	// afterCommit is called when a commit has made its saveset.
	afterCommit func()
}

func (s *fakeStore) Domain() dedup.Domain { return dedup.Domain{} }

func (s *fakeStore) DomainByID(id digest.DomainID) (dedup.Domain, error) {
	return dedup.Domain{ID: id}, nil
}

func (s *fakeStore) Harmed(context.Context) (map[dedup.SavesetID]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.harmed, nil
}

func (s *fakeStore) Begin(_ context.Context, o dedup.RunOptions) (StoreRun, error) {
	s.mu.Lock()
	s.begun = append(s.begun, o)
	s.mu.Unlock()
	return &fakeStoreRun{s: s, opts: o}, nil
}

func (s *fakeStore) View(_ context.Context, id dedup.SavesetID) (StoreView, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.viewErr[id]; err != nil {
		return nil, err
	}
	m, ok := s.sets[id]
	if !ok || m.State.Deleted {
		return nil, &dedup.Error{Kind: dedup.NotFound, Op: "view", Object: id.String()}
	}
	s.views++
	return &fakeView{s: s, m: m}, nil
}

func (s *fakeStore) SetState(ctx context.Context, id dedup.SavesetID, change func(dedup.State) dedup.State) (dedup.State, error) {
	if err := ctx.Err(); err != nil { // as the real one, which writes an object
		return dedup.State{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.sets[id]
	if !ok {
		return dedup.State{}, &dedup.Error{Kind: dedup.NotFound}
	}
	n := m.State.Number
	m.State = change(m.State)
	m.State.Number, m.State.Time = n+1, s.now()
	s.sets[id] = m
	return m.State, nil
}

func (s *fakeStore) manifests() []dedup.Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []dedup.Manifest
	for _, m := range s.sets {
		if !m.State.Deleted {
			out = append(out, m)
		}
	}
	return out
}

type fakeStoreRun struct {
	s    *fakeStore
	opts dedup.RunOptions
}

func (r *fakeStoreRun) Have(context.Context, []digest.Digest, []bool) error { return nil }
func (r *fakeStoreRun) Lane(func(uint64)) (ingest.Lane, error)              { return nil, errors.New("no lanes") }
func (r *fakeStoreRun) PutNodes(context.Context, frame.Frame) error         { return nil }
func (r *fakeStoreRun) Stats() dedup.RunStats                               { return dedup.RunStats{StoredBytes: 42} }

func (r *fakeStoreRun) Abort(context.Context, string) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.aborted++
	return nil
}

func (r *fakeStoreRun) Commit(_ context.Context, d dedup.Draft) (dedup.Manifest, error) {
	if r.s.afterCommit != nil {
		defer r.s.afterCommit()
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.s.commitErr != nil {
		return dedup.Manifest{}, r.s.commitErr
	}
	r.s.last++
	var id dedup.SavesetID
	binary.BigEndian.PutUint64(id[:], r.s.last)
	m := dedup.Manifest{ID: id, Run: r.opts.ID, Root: d.Root, Side: d.Side, Client: d.Client, Task: d.Task, TaskType: d.TaskType,
		RequestedLevel: d.RequestedLevel, Level: d.Level, Reason: d.Reason, Parent: d.Parent, Started: d.Started, Finished: d.Finished,
		Committed: r.s.now(), Sources: d.Sources, Warnings: d.Warnings, Meta: d.Meta, State: d.State, Entries: 3, New: 7, Stored: 5}
	r.s.sets[id] = m
	return m, nil
}

type fakeView struct {
	s *fakeStore
	m dedup.Manifest
}

func (v *fakeView) Node(context.Context, digest.Digest) ([]byte, error) { return nil, nil }
func (v *fakeView) Plan(context.Context, []digest.Digest) ([]dedup.PlanItem, error) {
	return nil, nil
}
func (v *fakeView) Frame(context.Context, dedup.Loc, *dedup.FrameBuffer) (frame.Frame, error) {
	return frame.Frame{}, nil
}
func (v *fakeView) Manifest() dedup.Manifest { return v.m }
func (v *fakeView) Close() error {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.views--
	return nil
}

// fakeAgents runs a script for each order that it accepts.
type fakeAgents struct {
	mu      sync.Mutex // guards all below
	online  bool
	runs    map[sms.Token]*fakeAgentRun
	orders  []sms.Order
	sendErr error
	mute    bool // orders get no answer
	// script is the agent's work; the run ends with what it returns. ctx ends when the run is cancelled.
	script func(ctx context.Context, o sms.Order, opts ingest.RunOptions) ingest.Result
}

func (a *fakeAgents) Presence(string) ingest.Presence {
	a.mu.Lock()
	defer a.mu.Unlock()
	return ingest.Presence{Online: a.online}
}

func (a *fakeAgents) StartRun(o ingest.RunOptions) (AgentRun, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &fakeAgentRun{opts: o, result: make(chan ingest.Result, 1)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	a.runs[o.Token] = r
	return r, nil
}

func (a *fakeAgents) Send(ctx context.Context, _ string, o sms.Order) (sms.Reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders = append(a.orders, o)
	if a.mute && o.Kind == sms.OrderBackup {
		<-ctx.Done()
		return sms.Reply{}, ctx.Err()
	}
	if a.sendErr != nil {
		return sms.Reply{}, a.sendErr
	}
	var token sms.Token
	switch o.Kind {
	case sms.OrderBackup:
		token = o.Backup.Token
	case sms.OrderRestore:
		token = o.Restore.Token
	default:
		return sms.Reply{}, nil
	}
	r, script := a.runs[token], a.script
	go func() { r.result <- script(r.ctx, o, r.opts) }()
	return sms.Reply{}, nil
}

func (a *fakeAgents) order(i int) sms.Order {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.orders[i]
}

type fakeAgentRun struct {
	opts   ingest.RunOptions
	ctx    context.Context
	cancel context.CancelFunc
	result chan ingest.Result
}

func (r *fakeAgentRun) Token() sms.Token { return r.opts.Token }
func (r *fakeAgentRun) Cancel(string)    { r.cancel() }
func (r *fakeAgentRun) Wait(ctx context.Context) ingest.Result {
	defer r.cancel()
	select {
	case res := <-r.result:
		return res
	case <-ctx.Done():
	case <-r.ctx.Done():
	}
	return ingest.Result{Err: &sms.Error{Code: sms.CodeCancelled, Message: "cancelled"}}
}

// commitWith is the script of an agent that backs up and has these notices.
func commitWith(c sms.Commit, notices ...sms.Notice) func(context.Context, sms.Order, ingest.RunOptions) ingest.Result {
	return func(ctx context.Context, _ sms.Order, o ingest.RunOptions) ingest.Result {
		o.Sink.Opened(false)
		o.Sink.Progress(sms.Progress{Counters: c.Counters})
		for _, n := range notices {
			o.Sink.Notice(n)
		}
		res, err := o.Sink.Commit(ctx, c)
		if err != nil {
			return ingest.Result{Err: err}
		}
		return ingest.Result{Committed: &res}
	}
}

// rig is a manager over fakes, with a client web1 and its task etc.
type rig struct {
	*Manager
	t      *testing.T
	cat    *catalog.Catalog
	store  *fakeStore
	agents *fakeAgents
	mu     sync.Mutex // guards clock
	clock  time.Time
}

func (g *rig) time() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clock
}

func (g *rig) advance(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clock = g.clock.Add(d)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := &rig{t: t, clock: time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)}
	var err error
	if g.cat, err = catalog.Open(t.Context(), t.TempDir(), catalog.Options{Now: g.time}); err != nil {
		t.Fatal(err)
	}
	g.store = &fakeStore{sets: map[dedup.SavesetID]dedup.Manifest{}, now: g.time, viewErr: map[dedup.SavesetID]error{}}
	g.agents = &fakeAgents{online: true, runs: map[sms.Token]*fakeAgentRun{}, script: commitWith(sms.Commit{})}
	g.Manager = g.manager()
	t.Cleanup(func() {
		if err := g.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if err := g.cat.Close(); err != nil {
			t.Error(err)
		}
		if g.store.views != 0 {
			t.Errorf("%d views left open", g.store.views)
		}
	})
	g.must(g.cat.AddClient(t.Context(), "web1"))
	g.must(g.cat.AddEnrolment(t.Context(), "web1", "h", g.clock.Add(time.Hour)))
	g.must(g.cat.UseEnrolment(t.Context(), "h", catalog.Certificate{Serial: "1"}))
	g.addTask("etc", catalog.TaskPath)
	return g
}

func (g *rig) manager() *Manager {
	return New(Options{Catalog: g.cat, Store: func() (Store, error) { return g.store, nil }, Agents: g.agents, Now: g.time,
		SaveRetry: 5 * time.Millisecond})
}

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) addTask(name, kind string) {
	g.t.Helper()
	_, err := g.cat.AddTask(g.t.Context(), catalog.Task{Name: name, Client: "web1", Type: kind, Pool: catalog.DefaultPool,
		Options: catalog.TaskOptions{Sources: [][]byte{[]byte("/etc")}}})
	g.must(err)
}

// backup starts a backup and waits for its end.
func (g *rig) backup(task string, level Level) Info {
	g.t.Helper()
	g.advance(time.Minute)
	i, err := g.StartBackup(g.t.Context(), BackupRequest{Task: task, Level: level, User: "admin"})
	g.must(err)
	return g.wait(i.ID, catalog.RunState.Final)
}

// wait waits until the run is in a state that will do and, where that is a final one, recorded or known unrecordable.
func (g *rig) wait(id string, will func(catalog.RunState) bool) Info {
	g.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		i, err := g.Run(g.t.Context(), id)
		g.must(err)
		if will(i.State) {
			return i
		}
	}
	g.t.Fatalf("run %s does not end", id)
	return Info{}
}

func is(want catalog.RunState) func(catalog.RunState) bool {
	return func(s catalog.RunState) bool { return s == want }
}
