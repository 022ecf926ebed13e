package maintenance

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/appliance/catalog"
	"coffer/dedup"
	"coffer/dedup/digest"
)

// fakeStore does what a test tells it to.
type fakeStore struct {
	mu       sync.Mutex // guards all below
	calls    []string
	damage   []dedup.Damage
	affected []dedup.Affected
	searches int
	fail     error
	wait     chan struct{} // GC waits for it, where there is one
	checked  dedup.CheckOptions
	gc       dedup.CollectOptions
}

func (s *fakeStore) call(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, name)
	return s.fail
}

func (s *fakeStore) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, " ")
}

func (s *fakeStore) set(edit func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit()
}

func (s *fakeStore) Reseal(context.Context, func(dedup.Progress)) (dedup.ResealReport, error) {
	return dedup.ResealReport{Resealed: 2}, nil
}

func (s *fakeStore) Collect(ctx context.Context, o dedup.CollectOptions) (dedup.CollectReport, error) {
	err := s.call("gc")
	s.set(func() { s.gc = o })
	o.Progress(dedup.Progress{Phase: "mark", Done: 1, Total: 4, Unit: "savesets"})
	if s.wait != nil {
		select {
		case <-s.wait:
		case <-ctx.Done():
			return dedup.CollectReport{FreedBytes: 1}, ctx.Err()
		}
	}
	return dedup.CollectReport{FreedBytes: 4096, Complete: true}, err
}

func (s *fakeStore) Check(_ context.Context, o dedup.CheckOptions) (dedup.CheckReport, error) {
	err := s.call("check")
	s.set(func() { s.checked = o })
	s.mu.Lock()
	defer s.mu.Unlock()
	return dedup.CheckReport{Containers: 3, Found: s.damage, Complete: true}, err
}

func (s *fakeStore) Heal(_ context.Context, from []dedup.ChunkSource, _ func(dedup.Progress)) (dedup.HealReport, error) {
	err := s.call("heal")
	s.set(func() { s.damage = nil })
	return dedup.HealReport{Fetched: len(from)}, err
}

func (s *fakeStore) Usage(context.Context, func(dedup.Progress)) (dedup.Usage, error) {
	err := s.call("usage")
	return dedup.Usage{At: time.Now(), Savesets: map[dedup.SavesetID]dedup.SavesetUsage{{1}: {Unique: 10, UniqueStored: 4}},
		Clients: map[string]dedup.ClientUsage{"web1": {Savesets: 1, Unique: 10}}, Logical: 30, Plain: 10, Stored: 5}, err
}

func (s *fakeStore) Damage() []dedup.Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]dedup.Damage(nil), s.damage...)
}

func (s *fakeStore) Affected(context.Context, int) ([]dedup.Affected, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.searches++
	return s.affected, nil
}

// rig is a manager over a fake store and a real catalog.
type rig struct {
	*testing.T
	*Manager
	store *fakeStore
	cat   *catalog.Catalog
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	cat, err := catalog.Open(t.Context(), t.TempDir(), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cat.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &rig{T: t, store: &fakeStore{}, cat: cat}
	opts := Options{Catalog: cat, Store: func() (Store, error) { return g.store, nil }, Zone: time.UTC, Config: Config{Start: Never}}
	for _, c := range change {
		c(&opts)
	}
	g.Manager = New(opts)
	return g
}

func (g *rig) start() {
	g.Start()
	g.Cleanup(g.halt)
}

func (g *rig) halt() {
	g.Helper()
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	if err := g.Stop(ctx); err != nil {
		g.Error(err)
	}
}

func (g *rig) enqueue(req Request) *job {
	g.Helper()
	j, err := g.Manager.enqueue(g.Context(), req)
	if err != nil {
		g.Fatal(err)
	}
	return j
}

// ended waits for a job, and returns it as the catalog has it.
func (g *rig) ended(j *job) Info {
	g.Helper()
	select {
	case <-j.done:
	case <-time.After(time.Minute):
		g.Fatalf("job %s does not end", j.id)
	}
	rec, err := g.cat.MaintenanceJob(g.Context(), j.id)
	if err != nil {
		g.Fatal(err)
	}
	return info(rec)
}

func (g *rig) want(i Info, state catalog.RunState, reason string) {
	g.Helper()
	if i.State != state || !strings.Contains(i.Reason, reason) || (reason == "") != (i.Reason == "") {
		g.Errorf("%s %s: %s %q, want %s %q", i.Kind, i.ID, i.State, i.Reason, state, reason)
	}
}

func TestJobsRunOneAfterTheOther(t *testing.T) {
	g := newRig(t)
	g.store.wait = make(chan struct{})
	g.start()
	events := g.Subscribe(t.Context(), "")
	gc := g.enqueue(Request{Kind: GC, User: "root", Settings: Settings{Sparse: 0.5, Budget: 90, Rate: 1 << 20}})
	for gc.snapshot().Progress.Phase == "" {
		time.Sleep(time.Millisecond)
	}
	check := g.enqueue(Request{Kind: Check, Settings: Settings{Share: 0.5}})
	if _, err := g.Enqueue(t.Context(), Request{Kind: Check}); KindOf(err) != KindWaiting {
		t.Errorf("a second check in the queue: %v", err)
	}
	if i, ok := g.Active(); !ok || i.ID != gc.id || i.State != catalog.RunActive {
		t.Errorf("active: %+v", i)
	}
	if s := g.store.seen(); s != "gc" {
		t.Errorf("the store did %q beside a collection", s)
	}
	close(g.store.wait)
	i := g.ended(gc)
	g.want(i, catalog.RunSuccess, "")
	if r := i.Report.GC; r == nil || r.FreedBytes != 4096 || r.Resealed != 2 || i.User != "root" {
		t.Errorf("report %+v of %s", r, i.User)
	}
	if o := g.store.gc; o.Sparse != 0.5 || o.Budget != 90*time.Second || o.Rate != 1<<20 {
		t.Errorf("collected with %+v", o)
	}
	g.want(g.ended(check), catalog.RunSuccess, "")
	if o := g.store.checked; !o.Objects || !o.Pages || !o.Deep || o.Share != 0.5 {
		t.Errorf("checked with %+v", o)
	}
	g.halt()
	var states []string
	for e := range events {
		if e.Kind == EventState {
			states = append(states, string(e.Job.Kind)+" "+string(e.Job.State))
		}
	}
	if got := strings.Join(states, ", "); got != "gc queued, gc active, check queued, gc success, check active, check success" {
		t.Errorf("watchers saw %s", got)
	}
}

func TestCancel(t *testing.T) {
	g := newRig(t)
	g.store.wait = make(chan struct{})
	g.start()
	gc := g.enqueue(Request{Kind: GC})
	for g.store.seen() == "" {
		time.Sleep(time.Millisecond)
	}
	usage := g.enqueue(Request{Kind: Usage})
	for _, j := range []*job{usage, gc} { // the one that waits ends at once, though the other works
		if _, err := g.Cancel(t.Context(), j.id, "olga"); err != nil {
			t.Fatal(err)
		}
		g.want(g.ended(j), catalog.RunCancelled, "cancelled by olga")
	}
	if i := g.ended(gc); i.Report.GC == nil || i.Report.GC.FreedBytes != 1 {
		t.Errorf("what was done before the end is lost: %+v", i.Report)
	}
	if _, err := g.Cancel(t.Context(), gc.id, "olga"); KindOf(err) != KindEnded {
		t.Errorf("cancelled twice: %v", err)
	}
	if _, err := g.Cancel(t.Context(), "nothing", "olga"); KindOf(err) != KindNotFound {
		t.Errorf("cancelled nothing: %v", err)
	}
	if s := g.store.seen(); s != "gc" {
		t.Errorf("the store did %q", s)
	}
}

func TestStopEndsAll(t *testing.T) {
	g := newRig(t)
	g.store.wait = make(chan struct{})
	g.Start()
	var jobs []*job
	for _, k := range []Kind{GC, Check, Usage} {
		jobs = append(jobs, g.enqueue(Request{Kind: k}))
	}
	g.halt()
	for _, j := range jobs {
		g.want(g.ended(j), catalog.RunCancelled, stopReason)
	}
	if _, err := g.Enqueue(t.Context(), Request{Kind: GC}); KindOf(err) != KindStopping {
		t.Errorf("queued after the stop: %v", err)
	}
}

func TestFailureSaysWhy(t *testing.T) {
	g := newRig(t)
	g.store.fail = &dedup.Error{Kind: dedup.NoSpace, Op: "copy forward"}
	g.start()
	i := g.ended(g.enqueue(Request{Kind: GC}))
	g.want(i, catalog.RunError, "no space")
	if i.Hint == "" || i.Report.GC == nil {
		t.Errorf("hint %q, report %+v", i.Hint, i.Report)
	}
}

func TestClosedStore(t *testing.T) {
	g := newRig(t, func(o *Options) { o.Store = func() (Store, error) { return nil, errors.New("no key") } })
	g.start()
	g.want(g.ended(g.enqueue(Request{Kind: Check})), catalog.RunError, "no key")
}

func TestRefusals(t *testing.T) {
	g := newRig(t)
	for name, c := range map[string]struct {
		req  Request
		want ErrorKind
	}{
		"kind":          {Request{Kind: "dust"}, KindInvalid},
		"no reindex":    {Request{Kind: Reindex}, KindUnsupported},
		"no purge":      {Request{Kind: Purge}, KindUnsupported},
		"no sources":    {Request{Kind: Repair, Settings: Settings{From: []Source{{Path: "/x"}}}}, KindUnsupported},
		"gc with share": {Request{Kind: GC, Settings: Settings{Share: 0.5}}, KindInvalid},
		"check budget":  {Request{Kind: Check, Settings: Settings{Budget: 1}}, KindInvalid},
		"half share":    {Request{Kind: Check, Settings: Settings{Half: ObjectsHalf, Share: 0.5}}, KindInvalid},
	} {
		if _, err := g.Enqueue(t.Context(), c.req); KindOf(err) != c.want {
			t.Errorf("%s: %v, want kind %v", name, err, c.want)
		}
	}
}

func TestRecover(t *testing.T) {
	g := newRig(t)
	for _, trigger := range []string{catalog.TriggerDaily, catalog.TriggerManual} {
		if _, err := g.cat.AddMaintenance(t.Context(), catalog.Maintenance{Kind: "gc", Trigger: trigger}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := g.Jobs(t.Context(), catalog.MaintenanceFilter{})
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, i := range list {
		g.want(i, catalog.RunError, "killed")
		if i.Ended.IsZero() || i.Hint == "" {
			t.Errorf("job %+v", i)
		}
	}
}

type fakeSource struct {
	dedup.ChunkSource
	closed *bool
}

func (s fakeSource) Close() error { *s.closed = true; return nil }

func TestDamageIsKept(t *testing.T) {
	var closed bool
	g := newRig(t, func(o *Options) {
		o.OpenSource = func(context.Context, Source) (ChunkSource, error) { return fakeSource{closed: &closed}, nil }
	})
	g.store.damage = []dedup.Damage{{Container: 7, Kind: 1, Frame: 3, Reason: "checksum", Found: time.Unix(1e9, 0), Digests: make([]digest.Digest, 1)},
		{Kind: 2, Frame: dedup.WholeContainer, Object: "manifests/x", Saveset: dedup.SavesetID{9}, Reason: "seal", Found: time.Unix(1e9, 0)}}
	g.store.affected = []dedup.Affected{{Saveset: dedup.SavesetID{9}, Paths: []string{"", "/a\xff"}, More: 4}}
	g.start()
	g.want(g.ended(g.enqueue(Request{Kind: Check})), catalog.RunWarning, "2 damaged places found")
	list, err := g.cat.Damage(t.Context())
	if err != nil || len(list) != 2 || list[0].Container != "0000000000000007" || len(list[0].Digests) != 1 || list[1].Container != "" || list[1].Saveset == "" {
		t.Errorf("damage %+v, %v", list, err)
	}
	harmed, err := g.cat.HarmedSavesets(t.Context())
	if err != nil || len(harmed) != 1 || strings.Join(harmed[0].Paths, "|") != "|/a\xff" || harmed[0].More != 4 || !g.HarmsKnown() {
		t.Errorf("harmed %+v, %v", harmed, err)
	}
	g.want(g.ended(g.enqueue(Request{Kind: Repair, Settings: Settings{From: []Source{{Path: "/replica"}}}})), catalog.RunSuccess, "")
	list, err = g.cat.Damage(t.Context())
	harmed, herr := g.cat.HarmedSavesets(t.Context())
	if len(list) != 0 || len(harmed) != 0 || !closed || errors.Join(err, herr) != nil {
		t.Errorf("after healing: %v %v, source closed %v, %v %v", list, harmed, closed, err, herr)
	}
}

func TestUsageIsKept(t *testing.T) {
	g := newRig(t)
	g.start()
	i := g.ended(g.enqueue(Request{Kind: Usage}))
	g.want(i, catalog.RunSuccess, "")
	if u := i.Report.Usage; u == nil || u.DedupRatio != 3 || u.CompressionRatio != 2 {
		t.Errorf("usage %+v", u)
	}
	u, err := g.cat.SavesetUsage(t.Context(), dedup.SavesetID{1}.String())
	clients, cerr := g.cat.ClientUsage(t.Context())
	if err != nil || u.UniqueStored != 4 || cerr != nil || len(clients) != 1 || clients[0].Unique != 10 {
		t.Errorf("%+v %v, %+v %v", u, err, clients, cerr)
	}
}
