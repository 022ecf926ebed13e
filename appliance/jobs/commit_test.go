package jobs

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"coffer/appliance/catalog"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// commitOf starts a commit over a saveset and waits for its end.
func (g *rig) commitOf(base string, edit func(*CommitRequest)) (i Info, ended int) {
	g.t.Helper()
	id, err := dedup.ParseSavesetID(base)
	g.must(err)
	done := make(chan struct{}, 2)
	req := CommitRequest{Base: id, Cause: "export 1", User: "admin", Bytes: 100, Ended: func() { done <- struct{}{} },
		Build: func(_ context.Context, _ *CommitSink, _ digest.Keys, told func(int64)) (recipe.Ref, error) {
			told(100)
			return recipe.Ref{Digest: digest.Digest{9}}, nil
		}}
	edit(&req)
	i, err = g.StartCommit(g.t.Context(), req)
	g.must(err)
	return g.wait(i.ID, catalog.RunState.Final), len(done)
}

func TestCommitOfAnOverlay(t *testing.T) {
	g := newRig(t)
	base := g.backup("etc", Full)
	made, ended := g.commitOf(base.Saveset, func(*CommitRequest) {})
	if made.State != catalog.RunSuccess || made.Level != "COPY" || made.LevelReason != "overlay_commit" || made.Saveset == "" || ended != 1 {
		t.Fatalf("%+v, ended %d times", made, ended)
	}
	if made.Progress.BytesRead != 100 || made.Task != "etc" || made.User != "admin" {
		t.Fatalf("%+v", made)
	}
	s, err := g.cat.Saveset(t.Context(), made.Saveset)
	g.must(err)
	if s.Client != base.Client || s.Task != "etc" || s.Parent != "" || s.SourceKey == "" || !strings.Contains(s.EOLCause, "export 1") {
		t.Fatalf("%+v", s)
	}
	// A copy takes no part in the chain.
	if next := g.backup("etc", Incr); next.Level != "INCR" || next.Parent != base.Saveset {
		t.Fatalf("the next backup: %+v", next.Run)
	}
	doubtful, _ := g.commitOf(base.Saveset, func(r *CommitRequest) { r.Doubt = "power was lost" })
	if doubtful.State != catalog.RunWarning || doubtful.Warnings != 1 {
		t.Fatalf("%+v", doubtful)
	}
	s, err = g.cat.Saveset(t.Context(), doubtful.Saveset)
	g.must(err)
	if s.State != "warning" {
		t.Fatalf("%+v", s)
	}
}

func TestCommitThatFails(t *testing.T) {
	g := newRig(t)
	base := g.backup("etc", Full)
	before := g.store.aborted
	failed, ended := g.commitOf(base.Saveset, func(r *CommitRequest) {
		r.Build = func(context.Context, *CommitSink, digest.Keys, func(int64)) (recipe.Ref, error) {
			return recipe.Ref{}, errors.New("cannot read")
		}
	})
	if failed.State != catalog.RunError || !strings.Contains(failed.Reason, "cannot read") || ended != 1 || g.store.aborted != before+1 {
		t.Fatalf("%+v, ended %d times, %d aborts", failed, ended, g.store.aborted)
	}
	cancelled, ended := g.commitOf(base.Saveset, func(r *CommitRequest) {
		r.Build = func(ctx context.Context, _ *CommitSink, _ digest.Keys, _ func(int64)) (recipe.Ref, error) {
			for _, run := range g.all() {
				run.cancel("cancelled by admin")
			}
			<-ctx.Done()
			return recipe.Ref{}, ctx.Err()
		}
	})
	if cancelled.State != catalog.RunCancelled || ended != 1 {
		t.Fatalf("%+v, ended %d times", cancelled, ended)
	}
	n := 0
	_, err := g.StartCommit(t.Context(), CommitRequest{Base: dedup.SavesetID{7}, Ended: func() { n++ }})
	if KindOf(err) != KindNotFound || n != 1 {
		t.Fatalf("of no saveset: %v, ended %d times", err, n)
	}
}

// A commit that is cancelled before its goroutine has begun.
func TestCommitCancelledAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	g := newRig(t)
	base := g.backup("etc", Full)
	id, err := dedup.ParseSavesetID(base.Saveset)
	g.must(err)
	for range 20 {
		done := make(chan struct{}, 2)
		i, err := g.StartCommit(t.Context(), CommitRequest{Base: id, Cause: "export 1", User: "admin", Ended: func() { done <- struct{}{} },
			Build: func(context.Context, *CommitSink, digest.Keys, func(int64)) (recipe.Ref, error) {
				return recipe.Ref{Digest: digest.Digest{9}}, nil
			}})
		g.must(err)
		if _, err := g.Cancel(t.Context(), i.ID, "eve"); err != nil {
			continue
		}
		i = g.wait(i.ID, catalog.RunState.Final)
		for n := 0; g.find(i.ID) != nil && n < 60_000; n++ {
			time.Sleep(time.Millisecond)
		}
		if len(done) != 1 {
			t.Fatalf("run %s %q: Ended was called %d times", i.State, i.Reason, len(done))
		}
	}
}

// A commit that is cancelled after its manifest is durable.
func TestCommitCancelledAtItsEnd(t *testing.T) {
	g := newRig(t)
	base := g.backup("etc", Full)
	g.store.afterCommit = func() {
		for _, r := range g.all() {
			r.cancel("cancelled by eve")
		}
	}
	i, _ := g.commitOf(base.Saveset, func(*CommitRequest) {})
	left := 0
	for _, m := range g.store.manifests() {
		if m.ID.String() != base.Saveset {
			left++
		}
	}
	sets, err := g.cat.Savesets(t.Context(), catalog.SavesetFilter{})
	g.must(err)
	if ok := i.State == catalog.RunSuccess; ok && (left != 1 || len(sets) != 2) || !ok && left != 0 {
		t.Errorf("run %s %q saveset %q: %d savesets are left in the store, %d are in the catalog", i.State, i.Reason, i.Saveset, left, len(sets)-1)
	}
}
