package ingest_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
)

// cutting breaks the proxy's connections at random moments, ten times at most, for a slow machine must come to an end,
// too.
func cutting(ctx context.Context, p *proxy, every time.Duration) {
	for range 10 {
		select {
		case <-time.After(every/4 + rand.N(every)):
			p.cut()
			every += every / 8
		case <-ctx.Done():
			return
		}
	}
}

func TestConnectionCutAtRandomMoments(t *testing.T) {
	s := newSite(t, nil)
	p := newProxy(t, s.addr)
	tr := randomTree(2, 1200)
	var cuts int
	for round := range 3 {
		ctx, stop := context.WithCancel(t.Context())
		go cutting(ctx, p, 40*time.Millisecond)
		tr["round"] = map[string][]byte{"number": {byte(round)}}
		m := mustBackup(t, s, p.addr(), tr, nil)
		mustRestore(t, s, p.addr(), m, tr)
		stop()
		p.mu.Lock()
		cuts = p.cuts
		p.mu.Unlock()
	}
	t.Logf("%d cuts", cuts)
	if cuts < 3 {
		t.Errorf("only %d cuts: the test shows nothing", cuts)
	}
}

func TestNoticesComeOnceAndInOrderAcrossCuts(t *testing.T) {
	s := newSite(t, nil)
	p := newProxy(t, s.addr)
	ctx := testContext(t)
	link, _ := s.agent(p.addr(), "web1", nil)
	r, k := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	const n = 300
	for i := range n {
		run.Notice(sms.Notice{Severity: sms.SeverityWarning, Code: "unreadable", Path: sms.Path([]byte{'a', 0xff, byte(i), byte(i >> 8)})})
		if i%100 == 50 {
			p.cut()
		}
	}
	if _, err := sendTree(ctx, run, tree{"d": {"f": []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if got := <-res; got.Err != nil {
		t.Fatal(got.Err)
	}
	if len(k.notices) != n {
		t.Fatalf("%d notices, want %d", len(k.notices), n)
	}
	for i, got := range k.notices {
		if want := sms.Path([]byte{'a', 0xff, byte(i), byte(i >> 8)}); got.Path != want {
			t.Fatalf("notice %d is %q, want %q", i, got.Path, want)
		}
	}
}

func TestCommitIsAnsweredAfterACut(t *testing.T) {
	s := newSite(t, nil)
	p := newProxy(t, s.addr)
	ctx := testContext(t)
	link, _ := s.agent(p.addr(), "web1", nil)
	r, k := s.backup("web1", nil)
	slow := &cutAtCommit{sink: k, p: p}
	// The sink of the run cuts the connection while the commit goes on.
	r2, err := s.server.StartRun(ingest.RunOptions{ID: "slow", Client: "web1", Sink: slow, Domain: s.store.Domain().ID,
		Key: s.store.Domain().Key, Chunking: s.store.Domain().Chunking, Store: ingest.FromRun(k.run)})
	if err != nil {
		t.Fatal(err)
	}
	r.Cancel("not needed")
	wait(ctx, r)
	res := wait(ctx, r2)
	run, err := link.Open(ctx, r2.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	got, err := sendTree(ctx, run, tree{"d": {"f": []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	if got.SavesetID != k.committed.ID.String() {
		t.Errorf("saveset %s, want %s", got.SavesetID, k.committed.ID)
	}
	if end := <-res; end.Err != nil || end.Committed == nil {
		t.Errorf("the run ended with %+v", end)
	}
	if err := run.Err(); err != nil {
		t.Errorf("the session ended with %v", err)
	}
}

type cutAtCommit struct {
	*sink
	p *proxy
}

func (c *cutAtCommit) Commit(ctx context.Context, m sms.Commit) (sms.CommitResult, error) {
	c.p.cut()
	time.Sleep(50 * time.Millisecond)
	return c.sink.Commit(ctx, m)
}

func TestRunThatIsNotResumedEnds(t *testing.T) {
	s := newSite(t, func(o *ingest.Options) { o.ResumeWindow = 3 * time.Second })
	p := newProxy(t, s.addr)
	ctx := testContext(t)
	link, stop := s.agent(p.addr(), "web1", func(o *uplink.Options) { o.ResumeWindow = 100 * time.Millisecond })
	<-s.connected
	r, k := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	_ = p.ln.Close()
	p.cut()
	<-run.Done()
	if sms.CodeOf(run.Err()) != sms.CodeTimeout {
		t.Errorf("the session ended with %v, want a timeout", run.Err())
	}
	_ = run.Close()
	stop()
	if got := <-res; sms.CodeOf(got.Err) != sms.CodeTimeout {
		t.Errorf("the run ended with %v, want a timeout", got.Err)
	}
	if k.interrupted != 1 {
		t.Errorf("interrupted %d times", k.interrupted)
	}
}

// An agent that was killed and started again does not know its run: the run must not wait for the whole window.
func TestRestartedAgentLosesItsRun(t *testing.T) {
	s := newSite(t, func(o *ingest.Options) { o.ReturnGrace = time.Second })
	p := newProxy(t, s.addr)
	ctx := testContext(t)
	link, stop := s.agent(p.addr(), "web1", nil)
	<-s.connected
	r, _ := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	_ = p.ln.Close()
	p.cut()
	_, stopAgain := s.agent(s.addr, "web1", nil)
	defer stopAgain()
	if got := <-res; sms.CodeOf(got.Err) != sms.CodeTimeout {
		t.Errorf("the run ended with %v, want a timeout", got.Err)
	}
	stop()
	_ = run.Close()
}

func TestCancelReachesTheAgent(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	link, _ := s.agent(s.addr, "web1", nil)
	r, _ := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	r.Cancel("an operator said so")
	select {
	case <-run.Done():
	case <-ctx.Done():
		t.Fatal("the session goes on")
	}
	if sms.CodeOf(run.Err()) != sms.CodeCancelled {
		t.Errorf("the session ended with %v", run.Err())
	}
	if got := <-res; sms.CodeOf(got.Err) != sms.CodeCancelled {
		t.Errorf("the run ended with %v", got.Err)
	}
	if err := run.PutNode(ctx, [32]byte{1}, nil); err == nil {
		if err := run.Finish(ctx, sms.Outcome{}); err == nil {
			t.Error("a cancelled run can be finished")
		}
	}
}

func TestAgentsFailureIsTheRuns(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	link, _ := s.agent(s.addr, "web1", nil)
	r, k := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	run.Progress(sms.Progress{Phase: sms.PhaseWorking, Counters: sms.Counters{Entries: 7}})
	run.Notice(sms.Notice{Code: "last"})
	if err := run.Finish(ctx, sms.Outcome{Code: "command_failed", Message: "pg_dump: exit status 1"}); err != nil {
		t.Fatal(err)
	}
	got := <-res
	if sms.CodeOf(got.Err) != "command_failed" || got.Outcome == nil || len(k.notices) != 1 {
		t.Errorf("the run ended with %+v, %d notices", got, len(k.notices))
	}
	<-run.Done()
	if run.Err() != nil {
		t.Error(run.Err())
	}
}
