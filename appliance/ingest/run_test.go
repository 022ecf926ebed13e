package ingest_test

import (
	"context"
	"testing"

	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// wait returns a run's result in the background.
func wait(ctx context.Context, r *ingest.Run) <-chan ingest.Result {
	c := make(chan ingest.Result, 1)
	go func() { c <- r.Wait(ctx) }()
	return c
}

// mustBackup backs a tree up and returns its manifest.
func mustBackup(t testing.TB, s *site, addr string, tr tree, parent *dedup.Manifest) dedup.Manifest {
	t.Helper()
	ctx := testContext(t)
	link, stop := s.agent(addr, "web1", nil)
	defer stop()
	r, k := s.backup("web1", parent)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	if _, err := sendTree(ctx, run, tr); err != nil {
		t.Fatal(err)
	}
	if got := <-res; got.Err != nil || got.Committed == nil {
		t.Fatalf("the run ended with %+v", got)
	}
	return k.committed
}

// mustRestore restores a saveset and compares it.
func mustRestore(t testing.TB, s *site, addr string, m dedup.Manifest, want tree) {
	t.Helper()
	ctx := testContext(t)
	link, stop := s.agent(addr, "web1", nil)
	defer stop()
	r := s.restore("web1", m)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	got, err := fetchTree(ctx, run, run.Root().Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := equal(want, got); err != nil {
		t.Fatal(err)
	}
	if err := run.Finish(ctx, sms.Outcome{}); err != nil {
		t.Fatal(err)
	}
	if got := <-res; got.Err != nil || got.Outcome == nil {
		t.Fatalf("the run ended with %+v", got)
	}
}

func TestBackupThenRestore(t *testing.T) {
	s := newSite(t, nil)
	tr := randomTree(1, 600)
	m := mustBackup(t, s, s.addr, tr, nil)
	mustRestore(t, s, s.addr, m, tr)
	again := mustBackup(t, s, s.addr, tr, &m)
	if again.Root != m.Root {
		t.Error("the same tree got another root")
	}
	if again.New != 0 {
		t.Errorf("the same tree brought %d new bytes", again.New)
	}
}
