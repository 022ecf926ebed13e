package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

// bulk writes files that do not compress, so that a backup of them takes long
// enough to be killed in its middle.
func bulk(t *testing.T, dir string, files, size int, seed uint64) {
	t.Helper()
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rng := rand.NewChaCha8(key)
	for i := range files {
		path := filepath.Join(dir, fmt.Sprintf("d%02d", i%16), fmt.Sprintf("f%04d", i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(f, rng, int64(size)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killed runs backups that are cut off at random moments, then lets one end.
// Every saveset that was reported must come back identical, the cut runs must
// be errors with a reason, and the last run must reuse what had arrived.
func killed(t *testing.T, times int, kill func(l *lab), revive func(ctx context.Context, l *lab) error) {
	// Small containers: what a cut run has sealed is what the next one reuses.
	l := newLab(t, config("[store]\ncontainer_size = \"2MiB\"\n"))
	source := l.task("crash")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	bulk(t, source, 1500, 100<<10, seed)
	first := l.backup("crash", api.LevelFull, api.RunSuccess)
	full := first.EndedAt.Sub(*first.StartedAt)
	reference := l.path("reference")
	copyTree(t, source, reference)
	stored := func() int64 { return decode[api.Store](l, "store", "status").StoredBytes }
	before := stored()
	cut := 0
	for i := range times {
		bulk(t, filepath.Join(source, fmt.Sprintf("more%02d", i)), 1500, 100<<10, seed+uint64(i)+1)
		done := make(chan api.Run, 1)
		go func() {
			run, _ := l.Run(context.WithoutCancel(t.Context()), "backup", "crash")
			done <- run
		}()
		time.Sleep(50*time.Millisecond + time.Duration(rng.Int64N(int64(full)*2/3)))
		kill(l)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := revive(ctx, l); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		cancel()
		if run := settled(l, <-done); run.State == api.RunError {
			cut++
			if run.Reason == "" || run.Saveset != "" {
				t.Errorf("the cut run: reason %q, saveset %q", run.Reason, run.Saveset)
			}
		}
	}
	left := stored() - before
	t.Logf("%d of %d runs were cut off, and left %d bytes", cut, times, left)
	same(t, reference, filepath.Join(l.restore(first.Saveset, "first"), source), treecmp.Options{})
	lastRun := l.backup("crash", api.LevelIncr, api.RunSuccess)
	if cut == times && left > 0 && lastRun.Progress.BytesNew >= lastRun.Progress.BytesRead {
		t.Errorf("the last run read %d and stored %d as new: nothing of the cut runs was reused", lastRun.Progress.BytesRead, lastRun.Progress.BytesNew)
	}
	same(t, source, filepath.Join(l.restore(lastRun.Saveset, "last"), source), treecmp.Options{})
	everySavesetIsWhole(l, source)
}

// settled waits until the newest backup has ended: the command that started
// it may have lost its appliance in between.
func settled(l *lab, run api.Run) api.Run {
	l.Helper()
	for range 600 {
		var page api.Page[api.Run]
		if err := l.JSON(l.Context(), &page, "run", "list"); err == nil && len(page.Items) > 0 && page.Items[0].State.Final() {
			return page.Items[0]
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.Fatalf("the run %s never ended", run.ID)
	return run
}

// everySavesetIsWhole reads each listed saveset to its end.
func everySavesetIsWhole(l *lab, source string) {
	l.Helper()
	for _, s := range decode[api.Page[api.Saveset]](l, "saveset", "list").Items {
		cmd := l.Command(l.Context(), "saveset", "get", s.ID, source, "-o", "-")
		cmd.Stdout = io.Discard
		if err := cmd.Run(); err != nil {
			l.Errorf("saveset %s is listed and cannot be read: %v", s.ID, err)
		}
	}
}

func TestKilledDaemon(t *testing.T) {
	killed(t, long(3, 3, 20), func(l *lab) { l.Kill() }, func(ctx context.Context, l *lab) error {
		if err := l.Launch(ctx); err != nil {
			return err
		}
		return l.agent.WaitOnline(ctx)
	})
}

func TestKilledAgent(t *testing.T) {
	killed(t, long(3, 3, 20), func(l *lab) { l.agent.Kill() }, func(ctx context.Context, l *lab) error {
		if err := l.agent.Launch(ctx); err != nil {
			return err
		}
		return l.agent.WaitOnline(ctx)
	})
}

// SIGTERM in the middle of a run: it ends cancelled, within the 30 seconds
// that the product promises, and the next start needs no hand.
func TestTermination(t *testing.T) {
	l := newLab(t)
	source := l.task("term")
	bulk(t, source, 3000, 200<<10, 5)
	done := make(chan api.Run, 1)
	go func() {
		run, _ := l.Run(context.WithoutCancel(t.Context()), "backup", "term")
		done <- run
	}()
	active(l)
	start := time.Now()
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("cofferd took %s to end", took)
	}
	<-done
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Launch(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.agent.WaitOnline(ctx); err != nil {
		t.Fatal(err)
	}
	if run := settled(l, api.Run{}); run.State != api.RunCancelled {
		t.Errorf("the run ended %q (%s), want cancelled", run.State, run.Reason)
	}
	l.backup("term", api.LevelIncr, api.RunSuccess)
}

// active waits until the newest run works.
func active(l *lab) api.Run {
	l.Helper()
	for range 400 {
		page := decode[api.Page[api.Run]](l, "run", "list")
		if len(page.Items) > 0 && page.Items[0].State == api.RunActive && page.Items[0].Progress.Entries > 0 {
			return page.Items[0]
		}
		time.Sleep(25 * time.Millisecond)
	}
	l.Fatal("no run becomes active")
	return api.Run{}
}
