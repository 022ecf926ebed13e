package server_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/api/server/servertest"
)

// TestWatchMaintenance follows a job whose watchers are dropped in the middle: the last event is the job's end.
func TestWatchMaintenance(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	c := connect(t, r, "olga")
	job, err := c.StartMaintenance(t.Context(), api.MaintenanceRequest{Kind: api.MaintenanceCheck})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for r.Backend.Watchers() == 0 {
			time.Sleep(time.Millisecond)
		}
		for i := range int64(5) {
			r.Backend.UpdateMaintenance(job.ID, func(m *api.Maintenance) { m.Progress.Done = i })
			if i == 2 {
				r.Backend.Drop()
			}
		}
		r.Backend.EndMaintenance(job.ID, api.RunWarning, "2 damaged places found")
	}()
	var seen []api.RunState
	end, err := c.WatchMaintenance(t.Context(), job.ID, func(e api.Event) error {
		if e.Type != api.EventMaintenance || e.Maintenance == nil {
			t.Errorf("event %+v", e)
			return nil
		}
		seen = append(seen, e.Maintenance.State)
		return nil
	})
	if err != nil || end.State != api.RunWarning || end.Reason == "" || len(seen) < 2 || seen[len(seen)-1] != api.RunWarning {
		t.Errorf("ended %+v (%v), saw %v", end, err, seen)
	}
	if again, err := c.WatchMaintenance(t.Context(), job.ID, func(api.Event) error { return nil }); err != nil || again.State != api.RunWarning {
		t.Errorf("watched after its end: %+v, %v", again, err)
	}
	if _, err := c.WatchMaintenance(t.Context(), "none", func(api.Event) error { return nil }); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("watched nothing: %v", err)
	}
}

// TestEventsTellOperatorsOfMaintenance watches everything in two roles.
func TestEventsTellOperatorsOfMaintenance(t *testing.T) {
	r := servertest.Start(t, servertest.New())
	olga, bob := connect(t, r, "olga"), connect(t, r, "bob")
	told, stop := make(chan string, 64), t.Context()
	for name, c := range map[string]interface {
		Watch(ctx context.Context, f func(api.Event) error) error
	}{"olga": olga, "bob": bob} {
		go func() {
			_ = c.Watch(stop, func(e api.Event) error { told <- name + " " + string(e.Type); return nil }) // ends with the test
		}()
	}
	for r.Backend.Watchers() < 2 {
		time.Sleep(time.Millisecond)
	}
	if _, err := olga.StartMaintenance(t.Context(), api.MaintenanceRequest{Kind: api.MaintenanceGC}); err != nil {
		t.Fatal(err)
	}
	if _, err := olga.Backup(t.Context(), api.BackupRequest{Task: "web1-etc", Level: api.LevelIncr}); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for range 3 {
		got[<-told] = true
	}
	if !got["olga maintenance"] || !got["olga run"] || !got["bob run"] {
		t.Errorf("told: %v", got)
	}
}

func TestMetrics(t *testing.T) {
	_, c := start(t)
	for user, want := range map[string]int{"": 401, "rita": 403, "olga": 200} {
		who := c
		if user != "" {
			who = c.as(user)
		}
		req, err := http.NewRequest("GET", c.url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if who.token != "" {
			req.Header.Set("Authorization", "Bearer "+who.token)
		}
		res, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != want || (want == 200) != strings.Contains(string(text), "coffer_store_savesets 3") {
			t.Errorf("%q got %s: %s (%v)", user, res.Status, text, err)
		}
	}
}
