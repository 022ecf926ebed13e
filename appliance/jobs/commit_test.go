package jobs

import (
	"context"
	"errors"
	"strings"
	"testing"

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
