package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/client"
	"coffer/api/server/servertest"
)

func connect(t *testing.T, r *servertest.Running, user string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Server: r.URL, Fingerprint: r.Fingerprint})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s, err := c.Login(t.Context(), api.LoginRequest{User: user, Password: servertest.Password})
	if err != nil {
		t.Fatal(err)
	}
	return c.WithToken(s.Token)
}

// TestWatchRun follows a run whose watchers are dropped in the middle: no notice is lost or told twice, and the last
// event is the run's end.
func TestWatchRun(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	c := connect(t, r, "root")
	run, err := c.Backup(t.Context(), api.BackupRequest{Task: "web1-etc", Level: api.LevelIncr})
	if err != nil {
		t.Fatal(err)
	}
	r.Backend.Note(run.ID, api.Notice{Severity: api.SeverityWarning, Message: "before the watch"})
	go func() {
		for r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		for i := range 5 {
			r.Backend.Note(run.ID, api.Notice{Severity: api.SeverityWarning, Message: fmt.Sprint("note ", i)})
			r.Backend.Update(run.ID, func(r *api.Run) { r.Progress.Entries = int64(i) })
			if i == 2 {
				r.Backend.Drop()
			}
		}
		r.Backend.End(run.ID, api.RunWarning, "some files changed while they were read")
	}()
	var seqs []int64
	var last api.Event
	end, err := c.WatchRun(t.Context(), run.ID, 0, func(e api.Event) error {
		if e.Notice != nil {
			seqs = append(seqs, e.Notice.Seq)
		}
		last = e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(seqs) != "[1 2 3 4 5 6]" {
		t.Errorf("notices %v", seqs)
	}
	if end.State != api.RunWarning || last.Run == nil || last.Run.State != api.RunWarning {
		t.Errorf("the watch ended with %+v", last)
	}
}

// TestWatchEndedRun answers a run that is over already.
func TestWatchEndedRun(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	end, err := connect(t, r, "root").WatchRun(t.Context(), "run-0001", 0, func(api.Event) error { return nil })
	if err != nil || end.State != api.RunSuccess {
		t.Errorf("got %v, %v", end.State, err)
	}
	if _, err := connect(t, r, "root").WatchRun(t.Context(), "run-9999", 0, func(api.Event) error { return nil }); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("an unknown run: %v", err)
	}
	if _, err := connect(t, r, "rita").WatchRun(t.Context(), "run-0003", 0, func(api.Event) error { return nil }); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("a run out of reach: %v", err)
	}
}

// TestWatchAllIsLimited checks that users see changes only of the clients they reach.
func TestWatchAllIsLimited(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	rita := connect(t, r, "rita")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		for r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		r.Backend.Update("run-0003", func(*api.Run) {}) // of db1
		r.Backend.Update("run-0001", func(*api.Run) {}) // of web1
	}()
	var seen []string
	err := rita.Watch(ctx, func(e api.Event) error {
		data, _ := json.Marshal(e)
		if e.Run == nil {
			return fmt.Errorf("unexpected event %s", data)
		}
		seen = append(seen, e.Run.ID)
		cancel()
		return nil
	})
	if fmt.Sprint(seen) != "[run-0001]" {
		t.Errorf("seen %v (%v)", seen, err)
	}
}
