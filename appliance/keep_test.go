package appliance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/api"
	"coffer/dedup"
)

// keeping is an appliance with a task of several savesets, and a machine's clock that a test sets.
type keeping struct {
	*served
	ctx  context.Context
	sets []string // oldest first
	skew *atomic.Int64
}

func keep(t *testing.T, savesets int) *keeping {
	skew := &atomic.Int64{}
	k := &keeping{skew: skew, served: serve(t, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	})}
	k.ctx = api.WithCaller(t.Context(), api.Caller{Identity: api.Identity{User: api.User{Name: "admin"}}})
	source := filepath.Join(k.home, "source")
	if err := errors.Join(os.MkdirAll(source, 0o755), os.WriteFile(filepath.Join(source, "f"), []byte("data"), 0o600)); err != nil {
		t.Fatal(err)
	}
	e := must[api.Enrolment](t)(k.AddClient(k.ctx, api.ClientSpec{Name: "web1"}))
	k.agent(e.Token)
	must[api.Task](t)(k.AddTask(k.ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{source}}))
	for range savesets {
		run := k.ended(k.StartBackup(k.ctx, api.BackupRequest{Task: "t"}))
		if run.State != api.RunSuccess {
			t.Fatalf("backup: %+v", run)
		}
		k.sets = append(k.sets, run.Saveset)
	}
	return k
}

// expire moves ends of life into the past.
func (k *keeping) expire(ids ...string) {
	k.t.Helper()
	store := must[*dedup.Store](k.t)(k.machine.store.get())
	for _, id := range ids {
		sid := must[dedup.SavesetID](k.t)(dedup.ParseSavesetID(id))
		err := k.machine.jobs.ChangeState(k.ctx, store, sid, func(st dedup.State) dedup.State {
			st.EOL = k.machine.clock.Now().Add(-time.Minute)
			return st
		})
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *keeping) purge() (deleted int) {
	k.t.Helper()
	report, err := k.machine.purge(k.ctx, func(dedup.Progress) {})
	if err != nil {
		k.t.Fatal(err)
	}
	return report.Deleted
}

func (k *keeping) left() int {
	k.t.Helper()
	return len(must[api.Page[api.Saveset]](k.t)(k.Savesets(k.ctx, api.SavesetFilter{Limit: 100})).Items)
}

func (k *keeping) causes(id string) (out []api.KeptCause) {
	k.t.Helper()
	for _, r := range must[api.Saveset](k.t)(k.Saveset(k.ctx, id)).Kept {
		out = append(out, r.Cause)
	}
	return out
}

func TestDeleteSaveset(t *testing.T) {
	k := keep(t, 3)
	full, incr, newest := k.sets[0], k.sets[1], k.sets[2]

	err := k.DeleteSaveset(k.ctx, full, false)
	wantCode(t, err, api.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "kept until") {
		t.Errorf("before its end of life: %v", err)
	}
	k.expire(newest)
	wantCode(t, k.DeleteSaveset(k.ctx, newest, false), api.CodeConflict) // the newest of its task

	must[api.Saveset](t)(k.LockSaveset(k.ctx, incr, true))
	for _, id := range []string{full, incr} { // the lock covers what the saveset needs
		wantCode(t, k.DeleteSaveset(k.ctx, id, true), api.CodeConflict)
	}
	must[api.Saveset](t)(k.LockSaveset(k.ctx, incr, false))

	tree := must[interface{ Close() error }](t)(k.OpenTree(k.ctx, full))
	wantCode(t, k.DeleteSaveset(k.ctx, full, true), api.CodeInUse)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.DeleteSaveset(k.ctx, full, true); err != nil {
		t.Fatal(err)
	}
	wantCode(t, k.DeleteSaveset(k.ctx, full, true), api.CodeNotFound)
	_, err = k.Saveset(k.ctx, full)
	wantCode(t, err, api.CodeNotFound)
	if k.left() != 2 {
		t.Errorf("%d savesets are left", k.left())
	}
}

func TestImmutableSavesetOutlivesEveryWay(t *testing.T) {
	k := keep(t, 2)
	old := k.sets[0]
	now := k.machine.clock.Now()
	until := now.Add(48 * time.Hour)
	must[api.Saveset](t)(k.MakeImmutable(k.ctx, old, until))
	_, err := k.MakeImmutable(k.ctx, old, now.Add(time.Hour))
	wantCode(t, err, api.CodeConflict)
	_, err = k.MakeImmutable(k.ctx, old, now.Add(-time.Hour))
	wantCode(t, err, api.CodeBadRequest)
	_, err = k.MakeImmutable(k.ctx, old, now.AddDate(1000, 0, 0))
	wantCode(t, err, api.CodeBadRequest)
	wantCode(t, k.DeleteSaveset(k.ctx, old, true), api.CodeConflict)

	k.skew.Store(int64(10 * 365 * 24 * time.Hour)) // somebody sets the machine's clock
	wantCode(t, k.DeleteSaveset(k.ctx, old, true), api.CodeConflict)
	if n := k.purge(); n != 0 || k.left() != 2 {
		t.Errorf("moving the clock deleted %d savesets, %d are left", n, k.left())
	}
	store := must[*dedup.Store](t)(k.machine.store.get())
	sid := must[dedup.SavesetID](t)(dedup.ParseSavesetID(old))
	if err := store.Delete(k.ctx, sid, "a program's fault"); dedup.KindOf(err) != dedup.Immutable {
		t.Errorf("the store itself: %v", err)
	}
}

func TestPurge(t *testing.T) {
	k := keep(t, 5)
	if n := k.purge(); n != 0 {
		t.Errorf("%d savesets purged before their time", n)
	}
	k.expire(k.sets...)
	must[api.Saveset](t)(k.LockSaveset(k.ctx, k.sets[1], true))
	must[api.Saveset](t)(k.MakeImmutable(k.ctx, k.sets[2], k.machine.clock.Now().Add(time.Hour)))
	for i, want := range []api.KeptCause{api.KeptNeeded, api.KeptLocked, api.KeptImmutable, "", api.KeptNewest} {
		if got := k.causes(k.sets[i]); want == "" && len(got) > 0 || want != "" && (len(got) != 1 || got[0] != want) {
			t.Errorf("saveset %d is kept for %v, want %q", i, got, want)
		}
	}
	k.machine.conf.Store.Purge = "watermark"
	k.machine.conf.Store.HighWatermark = 0
	if n := k.purge(); n != 0 {
		t.Errorf("%d purged without a reason", n)
	}
	k.machine.conf.Store.Purge = "newday"
	if n := k.purge(); n != 1 || k.left() != 4 {
		t.Errorf("%d purged, %d left; want 1 and 4", n, k.left())
	}
	log := must[api.Page[api.AuditEntry]](t)(k.AuditLog(k.ctx, api.AuditFilter{Action: "saveset.purge", Limit: 10}))
	if len(log.Items) != 1 || log.Items[0].Object != k.sets[3] {
		t.Errorf("audit log: %+v", log.Items)
	}
}

// Below the high watermark nothing is purged; above it the first to expire go, and no more than bring the store below the
// low one; the newest of the task stays whatever the disk says.
func TestPurgeAtTheWatermark(t *testing.T) {
	k := keep(t, 4)
	k.expire(k.sets...)
	conf := &k.machine.conf.Store
	conf.Purge, conf.HighWatermark, conf.LowWatermark = "watermark", 90, 89
	for _, step := range []struct {
		name          string
		use           diskUse
		deleted, left int
	}{
		{"below", diskUse{used: 89, size: 100}, 0, 4},
		{"a byte too much", diskUse{used: 90, size: 100}, 1, 3},
		{"far above", diskUse{used: 95 << 40, size: 100 << 40}, 2, 1},
	} {
		report, err := k.machine.purgeAt(k.ctx, step.use, func(dedup.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if report.Deleted != step.deleted || k.left() != step.left {
			t.Errorf("%s: %d purged, %d left; want %d and %d", step.name, report.Deleted, k.left(), step.deleted, step.left)
		}
	}
	if got := k.causes(k.sets[3]); len(got) != 1 || got[0] != api.KeptNewest {
		t.Errorf("the one that is left is kept for %v", got)
	}
}

func TestDiskUse(t *testing.T) {
	u := diskUse{used: 85, size: 100}
	if u.percent() != 85 || !u.reached(85) || u.reached(86) || u.reached(0) || u.above(80) != 5 || u.above(90) != 0 {
		t.Errorf("%+v", u)
	}
}
