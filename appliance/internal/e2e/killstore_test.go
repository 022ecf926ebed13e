package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

// keptSavesets is how many savesets the kill loop leaves: what is older is deleted, so that gc has something to do.
const keptSavesets = 3

// killLoop is a store at work whose daemon is killed again and again.
type killLoop struct {
	*lab
	t      *testing.T
	rng    *rand.Rand
	source string
	// kept are the savesets that were reported as stored and that nobody asked to delete, oldest first.
	kept []keptSaveset
	cut  map[string]int // what was killed in its middle
	n    int
}

// keptSaveset is a saveset and a copy of what it was made of.
type keptSaveset struct{ id, copy string }

// TestKilledStore kills the daemon at random moments while a backup, a garbage collection, a check and deletions run.
// Afterwards, without a hand, a whole check is clean and everything that was reported as stored comes back identical.
func TestKilledStore(t *testing.T) {
	l := &killLoop{lab: newLab(t, config("[store]\ncontainer_size = \"1MiB\"\n")), t: t, cut: make(map[string]int)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l.rng = rand.New(rand.NewPCG(seed, 1))
	l.source = l.task("killed")
	for i := range 8 {
		bulk(t, l.part(i), 100, 64<<10, l.rng.Uint64())
	}
	start := time.Now()
	l.keep(l.backup("killed", api.LevelFull, api.RunSuccess).Saveset)
	// Even two kills in the same second of the work must not come at the same moment of it.
	full := time.Since(start) + 500*time.Millisecond
	times := long(3, 10, 50)
	for range times {
		l.n++
		l.kill(full)
	}
	l.idle()
	t.Logf("%d kills, in the middle of %v", times, l.cut)
	l.verify()
	l.job(api.RunSuccess, "gc", "--sparse", "1")
	l.verify()
}

func (l *killLoop) part(i int) string { return filepath.Join(l.source, fmt.Sprintf("part%d", i)) }

// keep notes that a saveset is there, with a copy of the source as it is.
func (l *killLoop) keep(id string) {
	l.t.Helper()
	copied := l.path("copy-" + id)
	copyTree(l.t, l.source, copied)
	l.kept = append(l.kept, keptSaveset{id, copied})
}

// victims takes the oldest savesets, but a few, off the list of what must be there, and returns what is there beside the
// list: they, and savesets of cut runs that nobody reported.
func (l *killLoop) victims() (ids []string) {
	for len(l.kept) > keptSavesets {
		_ = os.RemoveAll(l.kept[0].copy)
		l.kept = l.kept[1:]
	}
	for _, s := range decode[api.Page[api.Saveset]](l.lab, "saveset", "list").Items {
		if !slices.ContainsFunc(l.kept, func(k keptSaveset) bool { return k.id == s.ID }) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// kill changes the source, puts the store to work, kills the daemon and starts it again.
func (l *killLoop) kill(within time.Duration) {
	l.t.Helper()
	bulk(l.t, l.part(l.rng.IntN(8)), 100, 64<<10, l.rng.Uint64())
	ctx, giveUp := context.WithCancel(context.WithoutCancel(l.t.Context()))
	defer giveUp()
	before := l.newestRun()
	// Slow enough to be met.
	jobs := [][]string{{"store", "gc", "--sparse", "1", "--rate", "16MiB"}, {"store", "check", "--rate", "32MiB"}}
	if l.rng.IntN(3) == 0 {
		slices.Reverse(jobs)
	}
	victims := l.victims()
	maintained := make(chan struct{})
	go func() {
		defer close(maintained)
		for _, id := range victims { // the kill may cut it off
			_, _ = l.Coffer(ctx, "saveset", "delete", id, "--force", "--yes")
		}
		for _, job := range jobs {
			_, _ = l.Coffer(ctx, append(job, "--detach")...)
		}
	}()
	ended := make(chan struct{})
	pause := time.Duration(l.rng.Int64N(int64(within / 3)))
	go func() {
		defer close(ended)
		time.Sleep(pause)
		_, _ = l.Run(ctx, "backup", "killed")
	}()
	time.Sleep(within/3 + time.Duration(l.rng.Int64N(int64(within))))
	l.noteCut()
	l.Kill()
	giveUp() // a command that follows a run waits minutes for a daemon to come back
	<-maintained
	<-ended
	revive, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	if err := l.Launch(revive); err != nil {
		l.t.Fatalf("after kill %d: %v", l.n, err)
	}
	l.agent.Kill() // it would take its time to connect again
	if err := l.agent.Launch(revive); err != nil {
		l.t.Fatal(err)
	}
	if err := l.agent.WaitOnline(revive); err != nil {
		l.t.Fatalf("after kill %d: %v", l.n, err)
	}
	l.settle(before)
}

// noteCut counts what is about to be killed.
func (l *killLoop) noteCut() {
	if run := l.newestRun(); run.ID != "" && !run.State.Final() {
		l.cut["backup"]++
	}
	var jobs api.Page[api.Maintenance]
	if l.JSON(l.t.Context(), &jobs, "store", "jobs", "--state", "active") == nil {
		for _, m := range jobs.Items {
			l.cut[string(m.Kind)]++
		}
	}
}

// newestRun is the run that was started last; its zero value when the daemon does not say.
func (l *killLoop) newestRun() api.Run {
	var page api.Page[api.Run]
	if err := l.JSON(l.t.Context(), &page, "run", "list"); err != nil || len(page.Items) == 0 {
		return api.Run{}
	}
	return page.Items[0]
}

// settle waits until the run of this round has ended: by the kill, or before it. One that succeeded made a promise.
func (l *killLoop) settle(before api.Run) {
	l.t.Helper()
	run := settled(l.lab, api.Run{})
	switch {
	case run.ID == before.ID: // the kill came first
	case run.State == api.RunSuccess || run.State == api.RunWarning:
		l.keep(run.Saveset)
	case run.Reason == "" || run.Saveset != "":
		l.t.Errorf("kill %d: the cut run: %+v", l.n, run)
	}
}

// idle waits until no job of maintenance is left.
func (l *killLoop) idle() {
	l.t.Helper()
	for range 600 {
		jobs := decode[api.Page[api.Maintenance]](l.lab, "store", "jobs").Items
		if !slices.ContainsFunc(jobs, func(m api.Maintenance) bool { return !m.State.Final() }) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.t.Fatal("maintenance does not come to an end")
}

// verify checks everything and restores everything that was promised.
func (l *killLoop) verify() {
	l.t.Helper()
	check := l.job(api.RunSuccess, "check")
	if r := check.Report.Check; r == nil || r.Found > 0 || r.Savesets < int64(len(l.kept)) {
		l.t.Errorf("check reports %+v", r)
	}
	if s := decode[api.Store](l.lab, "store", "status"); s.State != api.StoreGreen {
		l.t.Errorf("the store is %s: %+v", s.State, s.Reasons)
	}
	for _, k := range l.kept {
		back := l.restore(k.id, "back-"+k.id)
		same(l.t, k.copy, filepath.Join(back, l.source), treecmp.Options{})
		if err := os.RemoveAll(back); err != nil {
			l.t.Fatal(err)
		}
	}
}
