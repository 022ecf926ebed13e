package jobs

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
)

func TestChainOfLevelsWithEOL(t *testing.T) {
	g := newRig(t)
	full := g.backup("etc", Incr)
	if full.State != catalog.RunSuccess || full.Level != "FULL" || full.LevelReason != "no_valid_full" || full.LevelRequested != "INCR" {
		t.Fatalf("first INCR: %+v", full.Run)
	}
	nextDay := func(level Level) Info {
		g.advance(24 * time.Hour)
		return g.backup("etc", level)
	}
	cp, incr1, diff, incr2 := nextDay(Copy), nextDay(Incr), nextDay(Diff), nextDay(Incr)
	for _, want := range []struct {
		run    Info
		level  string
		parent string
	}{{cp, "COPY", ""}, {incr1, "INCR", full.Saveset}, {diff, "DIFF", full.Saveset}, {incr2, "INCR", diff.Saveset}} {
		if want.run.State != catalog.RunSuccess || want.run.Level != want.level || want.run.Parent != want.parent {
			t.Errorf("run %s: %+v, want %s to %q", want.run.ID, want.run.Run, want.level, want.parent)
		}
	}
	order := g.agents.order(2)
	if order.Backup.ReadAll || order.Backup.Level != "INCR" || string(order.Backup.Sources[0]) != "/etc" {
		t.Errorf("order of the INCR: %+v", order.Backup)
	}
	last, err := g.cat.Saveset(t.Context(), incr2.Saveset)
	g.must(err)
	if want := last.Committed.Add(30 * 24 * time.Hour); !last.EOL.Equal(want) {
		t.Errorf("EOL %v, want %v", last.EOL, want)
	}
	for id, raised := range map[string]bool{full.Saveset: true, diff.Saveset: true, incr1.Saveset: false, cp.Saveset: false} {
		if raised && last.EOL.After(endOfDay(last.EOL)) {
			t.Fatal("the end of the day comes before the EOL")
		}
		s, err := g.cat.Saveset(t.Context(), id)
		g.must(err)
		if s.EOL.Equal(endOfDay(last.EOL)) != raised || strings.Contains(s.EOLCause, last.ID) != raised {
			t.Errorf("saveset %s (%s): EOL %v because of %q", id, s.Level, s.EOL, s.EOLCause)
		}
		sid, _ := dedup.ParseSavesetID(id)
		if st := g.store.sets[sid].State; !st.EOL.Equal(s.EOL) || st.Cause != s.EOLCause {
			t.Errorf("store and catalog differ about %s: %+v", id, st)
		}
	}
	entries, err := g.cat.Audit(t.Context(), catalog.AuditFilter{Action: "saveset.eol"})
	g.must(err)
	if len(entries) == 0 {
		t.Error("the audit log does not know of raised EOLs")
	}
	// Within the day nothing of the chain is raised again.
	again := g.backup("etc", Incr)
	if more, err := g.cat.Audit(t.Context(), catalog.AuditFilter{Action: "saveset.eol"}); err != nil || len(more) != len(entries)+1 {
		t.Errorf("%d savesets raised by %s on the same day, want only the INCR before it (%v)", len(more)-len(entries), again.Saveset, err)
	}
}

// A run that reads everything may mend how its data lies, by what the task's last saveset looks like.
func TestRunsKnowTheLastSaveset(t *testing.T) {
	g := newRig(t)
	full := g.backup("etc", Full)
	incr := g.backup("etc", Incr)
	g.backup("etc", Full)
	for i, want := range []struct {
		rewrite  bool
		previous string
	}{{true, dedup.SavesetID{}.String()}, {false, full.Saveset}, {true, incr.Saveset}} {
		if o := g.store.begun[i]; o.Rewrite != want.rewrite || o.Previous.String() != want.previous {
			t.Errorf("run %d: rewrite %t, previous %s; want %t, %s", i, o.Rewrite, o.Previous, want.rewrite, want.previous)
		}
	}
}

func TestWarningsAndNotices(t *testing.T) {
	g := newRig(t)
	g.agents.script = commitWith(sms.Commit{Counters: sms.Counters{Entries: 3, Source: time.Second}},
		sms.Notice{Severity: sms.SeverityInfo, Code: "changed_while_read", Path: "/a"},
		sms.Notice{Severity: sms.SeverityWarning, Code: "unreadable", Path: "/b\xff"})
	i := g.backup("etc", Full)
	if i.State != catalog.RunWarning || i.Warnings != 1 {
		t.Errorf("run with a warning: %+v", i.Run)
	}
	if i.Stages.Source != time.Second || i.Progress.Entries != 3 || i.Progress.Stored != 5 {
		t.Errorf("counters: %+v, stages %+v", i.Progress, i.Stages)
	}
	notices, err := g.Notices(t.Context(), i.ID, 0, 10)
	g.must(err)
	if len(notices) != 2 || notices[1].Path != "/b\xff" || notices[1].Seq != 2 {
		t.Errorf("notices: %+v", notices)
	}
	s, err := g.cat.Saveset(t.Context(), i.Saveset)
	g.must(err)
	if s.State != "warning" || s.Warnings != 1 {
		t.Errorf("saveset: %+v", s)
	}
	if next := g.backup("etc", Incr); next.Parent != i.Saveset {
		t.Errorf("a warning saveset is no reference: %+v", next.Run)
	}
}

func TestOneRunPerTaskAtATime(t *testing.T) {
	g := newRig(t)
	g.addTask("home", catalog.TaskPath)
	release := make(chan struct{})
	g.agents.script = func(ctx context.Context, o sms.Order, opts ingest.RunOptions) ingest.Result {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return commitWith(sms.Commit{})(ctx, o, opts)
	}
	start := func(task string) string {
		i, err := g.StartBackup(t.Context(), BackupRequest{Task: task, Level: Incr})
		g.must(err)
		return i.ID
	}
	first, second, third, other := start("etc"), start("etc"), start("etc"), start("home")
	g.wait(first, is(catalog.RunActive))
	g.wait(other, is(catalog.RunActive))
	if i := g.wait(second, func(catalog.RunState) bool { return true }); i.State != catalog.RunQueued {
		t.Errorf("second run of the task is %s", i.State)
	}
	if _, err := g.Cancel(t.Context(), second, "eve"); err != nil {
		t.Fatal(err)
	}
	if i := g.wait(second, catalog.RunState.Final); i.State != catalog.RunCancelled || i.Reason != "cancelled by eve" {
		t.Errorf("cancelled in the queue: %+v", i.Run)
	}
	if i, err := g.Run(t.Context(), third); err != nil || i.State != catalog.RunQueued {
		t.Errorf("the cancelled run let the next one pass the active one: %s, %v", i.State, err)
	}
	close(release)
	for _, id := range []string{first, third, other} {
		if i := g.wait(id, catalog.RunState.Final); i.State != catalog.RunSuccess {
			t.Errorf("run %s: %s %s", id, i.State, i.Reason)
		}
	}
	if i, _ := g.Run(t.Context(), third); i.Level != "INCR" {
		t.Errorf("the third run does not refer to the first: %s %s", i.Level, i.LevelReason)
	}
	_, err := g.Cancel(t.Context(), first, "eve")
	if KindOf(err) != KindEnded {
		t.Errorf("cancel of an ended run: %v", err)
	}
}

func TestCancelActiveRun(t *testing.T) {
	g := newRig(t)
	g.agents.script = func(ctx context.Context, _ sms.Order, _ ingest.RunOptions) ingest.Result {
		<-ctx.Done()
		return ingest.Result{Outcome: &sms.Outcome{Code: "cancelled", Counters: sms.Counters{Entries: 9}}}
	}
	i, err := g.StartBackup(t.Context(), BackupRequest{Task: "etc", Level: Incr})
	g.must(err)
	g.wait(i.ID, is(catalog.RunActive))
	for g.find(i.ID) != nil && func() bool { r := g.find(i.ID); r.mu.Lock(); defer r.mu.Unlock(); return r.agent == nil }() {
		time.Sleep(time.Millisecond)
	}
	_, err = g.Cancel(t.Context(), i.ID, "admin")
	g.must(err)
	if i = g.wait(i.ID, catalog.RunState.Final); i.State != catalog.RunCancelled || i.Saveset != "" {
		t.Errorf("cancelled run: %+v", i.Run)
	}
	if len(g.store.manifests()) != 0 {
		t.Error("a cancelled run left a saveset")
	}
}

func TestRefusals(t *testing.T) {
	g := newRig(t)
	start := func(task string) error {
		_, err := g.StartBackup(t.Context(), BackupRequest{Task: task, Level: Incr})
		return err
	}
	if err := start("nothing"); KindOf(err) != KindNotFound {
		t.Errorf("unknown task: %v", err)
	}
	g.must(g.cat.ClientConnected(t.Context(), "web1", catalog.Sighting{}))
	g.advance(time.Hour)
	g.agents.online = false
	err := start("etc")
	if KindOf(err) != KindOffline || !strings.Contains(err.Error(), "2026-11-22T02:15:00Z") || !strings.Contains(err.Error(), "start the agent") {
		t.Errorf("offline agent: %v", err)
	}
	g.agents.online = true
	g.must(g.cat.RevokeClient(t.Context(), "web1"))
	if err := start("etc"); KindOf(err) != KindRevoked {
		t.Errorf("revoked client: %v", err)
	}
	if runs, err := g.Runs(t.Context(), catalog.RunFilter{}); err != nil || len(runs) != 0 {
		t.Errorf("refused starts left %d runs, %v", len(runs), err)
	}
	g.must(g.Stop(t.Context()))
	if _, err := g.launch(t.Context(), catalog.Run{}, "", nil); KindOf(err) != KindStopping {
		t.Errorf("start while stopping: %v", err)
	}
}

func TestFailedRunsLeaveNoSaveset(t *testing.T) {
	noSpace := &dedup.Error{Kind: dedup.NoSpace, Op: "put frame"}
	tests := []struct {
		name   string
		set    func(*rig)
		reason string
		hint   string
	}{
		{"order refused", func(g *rig) {
			g.agents.sendErr = &sms.Error{Code: sms.CodeRefused, Message: "busy", Remote: true}
		}, "busy", ""},
		{"order not answered", func(g *rig) {
			g.agents.mute, g.opts.OrderTimeout = true, 20*time.Millisecond
		}, "did not answer within 20ms", ""},
		{"source missing", func(g *rig) {
			g.agents.script = func(context.Context, sms.Order, ingest.RunOptions) ingest.Result {
				return ingest.Result{Outcome: &sms.Outcome{Code: "source_missing", Message: "/etc does not exist"}}
			}
		}, "/etc does not exist", "mounted"},
		{"agent lost", func(g *rig) {
			g.agents.script = func(context.Context, sms.Order, ingest.RunOptions) ingest.Result {
				return ingest.Result{Err: sms.Errorf(sms.CodeTimeout, "the agent did not come back")}
			}
		}, "did not come back", "systemctl"},
		{"store full at commit", func(g *rig) { g.store.commitErr = noSpace }, "no space", "make space"},
		{"store full before", func(g *rig) {
			g.agents.script = func(context.Context, sms.Order, ingest.RunOptions) ingest.Result {
				return ingest.Result{Err: noSpace}
			}
		}, "no space", "make space"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t)
			tt.set(g)
			i := g.backup("etc", Incr)
			if i.State != catalog.RunError || !strings.Contains(i.Reason, tt.reason) || !strings.Contains(i.Hint, tt.hint) || i.Saveset != "" {
				t.Errorf("run: %+v", i.Run)
			}
			if len(g.store.manifests()) != 0 || g.store.aborted == 0 {
				t.Error("the run left a saveset, or its store run open")
			}
		})
	}
}

func TestCatalogFullAtCommit(t *testing.T) {
	g := newRig(t)
	// A saveset whose row breaks a constraint of the catalog stands for one that finds the disk full.
	inner := commitWith(sms.Commit{})
	g.agents.script = func(ctx context.Context, o sms.Order, opts ingest.RunOptions) ingest.Result {
		dead, cancel := context.WithCancel(ctx)
		cancel()
		return inner(dead, o, opts)
	}
	i := g.backup("etc", Incr)
	if i.State != catalog.RunError || !strings.Contains(i.Reason, "record saveset") {
		t.Errorf("run: %+v", i.Run)
	}
	if len(g.store.manifests()) != 0 {
		t.Error("the saveset that could not be recorded is not deleted")
	}
	g.agents.script = inner
	if i := g.backup("etc", Incr); i.State != catalog.RunSuccess || i.LevelReason != "no_valid_full" {
		t.Errorf("next run: %+v", i.Run)
	}
}

func TestRecover(t *testing.T) {
	g := newRig(t)
	done := g.backup("etc", Full)
	done.State = catalog.RunActive // as if the daemon was killed before it recorded the end
	done.Ended = time.Time{}
	g.must(g.cat.UpdateRun(t.Context(), done.Run))
	lost, err := g.cat.AddRun(t.Context(), catalog.Run{Kind: catalog.RunBackup, State: catalog.RunActive, Client: "web1", Task: "etc"})
	g.must(err)
	again := g.manager()
	g.must(again.Recover(t.Context()))
	if i, err := again.Run(t.Context(), done.ID); err != nil || i.State != catalog.RunSuccess {
		t.Errorf("run with a saveset: %+v, %v", i.Run, err)
	}
	if i, err := again.Run(t.Context(), lost.ID); err != nil || i.State != catalog.RunError || !strings.Contains(i.Reason, "while the run was active") {
		t.Errorf("run without one: %+v, %v", i.Run, err)
	}
	g.must(again.Stop(t.Context()))
}

func TestReconcile(t *testing.T) {
	g := newRig(t)
	full, incr := g.backup("etc", Full), g.backup("etc", Incr)
	g.must(g.cat.PutSavesets(t.Context(), catalog.Saveset{ID: "dead", State: "success"}))
	// A new catalog knows nothing; the store tells all.
	empty, err := catalog.Open(t.Context(), t.TempDir(), catalog.Options{Now: g.time})
	g.must(err)
	defer empty.Close()
	for _, cat := range []*catalog.Catalog{g.cat, empty, empty} {
		m := New(Options{Catalog: cat, Store: func() (Store, error) { return g.store, nil }, Agents: g.agents, Now: g.time})
		g.must(m.Reconcile(t.Context(), g.store.manifests()))
		g.must(m.Stop(t.Context()))
		sets, err := cat.Savesets(t.Context(), catalog.SavesetFilter{})
		g.must(err)
		if len(sets) != 2 || sets[0].ID != incr.Saveset || sets[1].ID != full.Saveset {
			t.Fatalf("savesets: %+v", sets)
		}
		if !sets[1].EOL.Equal(endOfDay(sets[0].EOL)) || sets[0].SourceKey == "" || sets[0].Pool != catalog.DefaultPool || sets[0].Run != incr.ID {
			t.Errorf("rows from manifests: %+v", sets)
		}
	}
}

// A saveset whose manifest cannot be read stays in the catalog, one that is gone does not, and one that is there again is back as
// it was.
func TestReconcileDamagedManifests(t *testing.T) {
	g := newRig(t)
	damaged, lost := g.backup("etc", Full), g.backup("etc", Full)
	id, err := dedup.ParseSavesetID(damaged.Saveset)
	g.must(err)
	all := g.store.manifests()
	want, err := g.cat.Savesets(t.Context(), catalog.SavesetFilter{})
	g.must(err)
	for _, step := range []struct {
		name       string
		manifests  []dedup.Manifest
		unreadable []dedup.SavesetID
		left       []string
	}{
		{"one is damaged, one lost", nil, []dedup.SavesetID{id}, []string{damaged.Saveset}},
		{"again", nil, []dedup.SavesetID{id}, []string{damaged.Saveset}},
		{"given up", nil, nil, nil},
		{"both are readable again", all, nil, []string{lost.Saveset, damaged.Saveset}},
		{"damaged, and known from before", all, []dedup.SavesetID{id}, []string{lost.Saveset, damaged.Saveset}},
	} {
		g.must(g.Reconcile(t.Context(), step.manifests, step.unreadable...))
		sets, err := g.cat.Savesets(t.Context(), catalog.SavesetFilter{})
		g.must(err)
		var got []string
		for _, s := range sets {
			got = append(got, s.ID)
			if i := slices.IndexFunc(want, func(w catalog.Saveset) bool { return w.ID == s.ID }); !reflect.DeepEqual(s, want[i]) {
				t.Errorf("%s: %+v, want %+v", step.name, s, want[i])
			}
		}
		if !slices.Equal(got, step.left) {
			t.Errorf("%s: %v, want %v", step.name, got, step.left)
		}
	}
}

func TestDamagedParentBreaksTheChain(t *testing.T) {
	g := newRig(t)
	full := g.backup("etc", Full)
	id, err := dedup.ParseSavesetID(full.Saveset)
	g.must(err)
	g.store.viewErr[id] = &dedup.Error{Kind: dedup.Damaged, Op: "view"}
	if i := g.backup("etc", Incr); i.State != catalog.RunSuccess || i.Level != "FULL" || i.LevelReason != "chain_broken" {
		t.Errorf("INCR on a damaged FULL: %+v", i.Run)
	}
}

func TestHarmedChainIsReadAgain(t *testing.T) {
	g := newRig(t)
	full := g.backup("etc", Full)
	id, err := dedup.ParseSavesetID(full.Saveset)
	g.must(err)
	g.store.harmed = map[dedup.SavesetID]bool{id: true}
	if i := g.backup("etc", Incr); i.State != catalog.RunSuccess || i.Level != "FULL" || i.LevelReason != "chain_broken" {
		t.Errorf("INCR on a harmed FULL: %+v", i.Run)
	}
	if i := g.backup("etc", Incr); i.Level != "INCR" || i.LevelReason != "requested" {
		t.Errorf("INCR after that: %+v", i.Run)
	}
}

func TestRestore(t *testing.T) {
	g := newRig(t)
	full := g.backup("etc", Full)
	outcome := sms.Outcome{Counters: sms.Counters{Entries: 4}}
	g.agents.script = func(context.Context, sms.Order, ingest.RunOptions) ingest.Result {
		return ingest.Result{Outcome: &outcome}
	}
	start := func(req RestoreRequest) Info {
		t.Helper()
		i, err := g.StartRestore(t.Context(), req)
		g.must(err)
		return g.wait(i.ID, catalog.RunState.Final)
	}
	req := RestoreRequest{Saveset: full.Saveset, User: "eve", Order: sms.RestoreOrder{Target: "/tmp/r", Existing: sms.ExistingKeep}}
	i := start(req)
	if i.State != catalog.RunSuccess || i.Client != "web1" || i.Progress.Entries != 4 || i.Saveset != full.Saveset {
		t.Errorf("restore: %+v", i)
	}
	if o := g.agents.order(1).Restore; o == nil || o.SavesetID != full.Saveset || o.Target != "/tmp/r" || o.TaskType != "path" {
		t.Errorf("order: %+v", o)
	}
	outcome.Different = 2
	if i = start(req); i.State != catalog.RunWarning || i.Reason != "2 entries differ from the saveset" {
		t.Errorf("verify: %+v", i.Run)
	}
	if _, err := g.StartRestore(t.Context(), RestoreRequest{Saveset: "none"}); KindOf(err) != KindNotFound {
		t.Errorf("unknown saveset: %v", err)
	}
	req.Order.Command = []string{"psql"}
	if _, err := g.StartRestore(t.Context(), req); KindOf(err) != KindInvalid {
		t.Errorf("files into a command: %v", err)
	}
}

func TestStopCancelsAll(t *testing.T) {
	g := newRig(t)
	g.agents.script = func(ctx context.Context, _ sms.Order, _ ingest.RunOptions) ingest.Result {
		<-ctx.Done()
		return ingest.Result{Err: errors.New("gone")}
	}
	var ids []string
	for range 3 {
		i, err := g.StartBackup(t.Context(), BackupRequest{Task: "etc", Level: Incr})
		g.must(err)
		ids = append(ids, i.ID)
	}
	g.wait(ids[0], is(catalog.RunActive))
	events := g.Subscribe(t.Context(), "")
	g.must(g.Stop(t.Context()))
	for _, id := range ids {
		rec, err := g.cat.Run(t.Context(), id)
		g.must(err)
		if rec.State != catalog.RunCancelled || rec.Reason != "the appliance was stopped" {
			t.Errorf("run %s: %s %q", id, rec.State, rec.Reason)
		}
	}
	ended := 0
	for e := range events { // ends because Stop closes the hub
		if e.Kind == EventState && e.Run.State.Final() {
			ended++
		}
	}
	if ended != len(ids) {
		t.Errorf("watchers were told of %d ends", ended)
	}
}
