package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

// job runs maintenance that is waited for; it must end as wanted.
func (l *lab) job(want api.RunState, args ...string) api.Maintenance {
	l.Helper()
	var m api.Maintenance
	err := l.JSON(l.Context(), &m, append([]string{"store"}, args...)...)
	exit := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		exit = e.ExitCode()
		m = l.newest()
	} else if err != nil {
		l.Fatal(err)
	}
	if code := map[api.RunState]int{api.RunSuccess: 0, api.RunWarning: 3}[want]; m.State != want || exit != code {
		l.Fatalf("coffer store %s: state %q, exit code %d, want %q; %s", strings.Join(args, " "), m.State, exit, want, m.Reason)
	}
	return m
}

// newest is the maintenance job that was started last.
func (l *lab) newest() api.Maintenance {
	l.Helper()
	jobs := decode[api.Page[api.Maintenance]](l, "store", "jobs", "--limit", "1").Items
	if len(jobs) != 1 {
		l.Fatalf("%d maintenance jobs", len(jobs))
	}
	return jobs[0]
}

// containers returns the files of all containers, the largest last, and their size together.
func (l *lab) containers() (largest string, total int64) {
	l.Helper()
	var most int64
	err := filepath.WalkDir(filepath.Join(l.Data, "store", "containers"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if total += info.Size(); info.Size() > most {
			largest, most = path, info.Size()
		}
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
	return largest, total
}

func TestMaintenance(t *testing.T) {
	l := newLab(t)
	source := l.task("upkeep")
	bulk(t, source, 4, 1<<20, 1)
	first := l.backup("upkeep", api.LevelFull, api.RunSuccess)
	bulk(t, source, 4, 1<<20, 2)
	second := l.backup("upkeep", api.LevelFull, api.RunSuccess)

	_, full := l.containers()
	l.ok("saveset", "delete", first.Saveset, "--force", "--yes")
	gc := l.job(api.RunSuccess, "gc")
	if _, left := l.containers(); gc.Report.GC == nil || gc.Report.GC.FreedBytes < 4<<20 || full-left < 4<<20 {
		t.Errorf("gc reports %+v; the containers had %d bytes and have %d", gc.Report.GC, full, left)
	}
	if check := l.job(api.RunSuccess, "check"); check.Report.Check == nil || check.Report.Check.Bytes < 4<<20 || check.Report.Check.Savesets != 1 {
		t.Errorf("check reports %+v", check.Report.Check)
	}
	l.job(api.RunSuccess, "usage")
	l.job(api.RunSuccess, "reindex")
	same(t, source, filepath.Join(l.restore(second.Saveset, "back"), source), treecmp.Options{})
	if status := l.ok("store", "status"); !strings.Contains(status, "green") || !strings.Contains(status, "deduplication") || !strings.Contains(status, "next maintenance") {
		t.Errorf("status:\n%s", status)
	}
	l.damaged(source)
	same(t, source, filepath.Join(l.restore(second.Saveset, "healed"), source), treecmp.Options{}) // the old saveset, too
	l.scraped("coffer_gc_freed_bytes_total", `coffer_store_state{state="green"} 1`, `coffer_maintenance_jobs{kind="check",state="warning"} 1`)
}

// damaged flips a byte in the middle of the largest container and lets a check, and then a backup, find it.
func (l *lab) damaged(source string) {
	l.Helper()
	path, _ := l.containers()
	raw, err := os.ReadFile(path)
	if err != nil {
		l.Fatal(err)
	}
	raw[len(raw)/2] ^= 0x10
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, raw, 0o600)); err != nil {
		l.Fatal(err)
	}
	check := l.job(api.RunWarning, "check", "--pages")
	if check.Report.Check == nil || check.Report.Check.Found == 0 {
		l.Errorf("check reports %+v", check.Report.Check)
	}
	if list := l.ok("store", "damage"); !strings.Contains(list, source+"/d") {
		l.Errorf("the damage list names no file:\n%s", list)
	}
	if s := decode[api.Store](l, "store", "status"); s.State != api.StoreRed {
		l.Errorf("the store is %s: %+v", s.State, s.Reasons)
	}
	if run := l.backup("upkeep", api.LevelIncr, api.RunSuccess); run.LevelEffective != api.LevelFull || run.LevelReason != "chain_broken" {
		l.Errorf("the backup after that: %+v", run)
	}
	l.within("the backup has healed the store", func() bool { return decode[api.Store](l, "store", "status").State == api.StoreGreen })
	l.job(api.RunSuccess, "check")
}

// scraped reads the metrics as Prometheus does, with the API token of a user.
func (l *lab) scraped(words ...string) {
	l.Helper()
	token := decode[api.NewToken](l, "token", "add", "prometheus")
	req, err := http.NewRequestWithContext(l.Context(), http.MethodGet, "https://"+l.REST+"/metrics", nil)
	if err != nil {
		l.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token.Secret)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		l.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		l.Fatalf("scrape: %s %v: %s", res.Status, err, text)
	}
	for _, w := range words {
		if !strings.Contains(string(text), w) {
			l.Errorf("the metrics lack %s:\n%s", w, text)
		}
	}
}

// TestMaintenanceIsCancelledAndKilled stops a slow check by a command, then by a kill.
func TestMaintenanceIsCancelledAndKilled(t *testing.T) {
	l := newLab(t)
	source := l.task("upkeep")
	bulk(t, source, 8, 1<<20, 3)
	l.backup("upkeep", api.LevelFull, api.RunSuccess)
	slow := func() api.Maintenance {
		m := decode[api.Maintenance](l, "store", "check", "--rate", "64KiB", "--detach")
		for m.State != api.RunActive {
			if m.State.Final() {
				t.Fatalf("the check ended %s: %s", m.State, m.Reason)
			}
			m = l.newest()
		}
		return m
	}
	m := slow()
	l.ok("store", "cancel", m.ID)
	l.refused([]string{"exit status 4"}, "store", "watch", m.ID)

	m = slow()
	l.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Launch(ctx); err != nil {
		t.Fatal(err)
	}
	if got := l.newest(); got.ID != m.ID || got.State != api.RunError || !strings.Contains(got.Reason, "killed") || got.EndedAt == nil {
		t.Errorf("after the kill: %+v", got)
	}
	l.job(api.RunSuccess, "check")
}

// TestDailyMaintenance lets NEWDAY come.
func TestDailyMaintenance(t *testing.T) {
	at := time.Now().Add(90 * time.Second).Truncate(time.Minute)
	l := newLab(t, config("[maintenance]\nstart = \""+at.Format("15:04")+"\"\n"))
	if long(0, 1, 1) == 0 {
		if s := decode[api.Store](l, "store", "status"); s.NextMaintenance == nil || s.NextMaintenance.Local().Format("15:04") != at.Format("15:04") {
			t.Errorf("the next maintenance is at %v, want %v", s.NextMaintenance, at)
		}
		return
	}
	for deadline := at.Add(90 * time.Second); ; time.Sleep(time.Second) {
		jobs := decode[api.Page[api.Maintenance]](l, "store", "jobs").Items
		ended := 0
		for _, m := range jobs {
			if m.Trigger != api.TriggerDaily || m.State.Final() && m.State != api.RunSuccess {
				t.Fatalf("job %+v", m)
			}
			if m.State.Final() {
				ended++
			}
		}
		if ended == 4 { // purge, gc, check, usage
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the day's maintenance so far: %+v", jobs)
		}
	}
}
