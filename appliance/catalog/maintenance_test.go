package catalog

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestMaintenanceJobs(t *testing.T) {
	c, err := Open(t.Context(), t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var ids []string
	for _, kind := range []string{"gc", "check", "gc"} {
		m, err := c.AddMaintenance(t.Context(), Maintenance{Kind: kind, Trigger: TriggerDaily, Options: json.RawMessage(`{"share":0.5}`)})
		if err != nil || m.State != RunQueued || m.Queued.IsZero() {
			t.Fatalf("%+v, %v", m, err)
		}
		if n := len(ids); n > 0 && m.ID <= ids[n-1] {
			t.Errorf("id %s after %s", m.ID, ids[n-1])
		}
		ids = append(ids, m.ID)
	}
	m, err := c.MaintenanceJob(t.Context(), ids[2])
	if err != nil || string(m.Options) != `{"share":0.5}` || string(m.Report) != "{}" {
		t.Errorf("%+v, %v", m, err)
	}
	m.State, m.Started, m.Ended = RunWarning, time.Unix(1e9, 0).UTC(), time.Unix(1e9+5, 0).UTC()
	m.Reason, m.Hint, m.Progress, m.Report = "damage", "see", json.RawMessage(`{"done":1}`), json.RawMessage(`{"gc":{}}`)
	if err := c.UpdateMaintenance(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got, err := c.MaintenanceJob(t.Context(), m.ID); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("kept %+v, want %+v (%v)", got, m, err)
	}
	for want, f := range map[int]MaintenanceFilter{3: {}, 2: {Kind: "gc"}, 1: {States: []RunState{RunWarning, RunError}}, 0: {Before: ids[0]}} {
		if list, err := c.MaintenanceJobs(t.Context(), f); err != nil || len(list) != want {
			t.Errorf("%+v finds %d jobs, want %d (%v)", f, len(list), want, err)
		}
	}
	counts, err := c.MaintenanceCounts(t.Context())
	if err != nil || counts[[2]string{"gc", "queued"}] != 1 || counts[[2]string{"gc", "warning"}] != 1 {
		t.Errorf("counts %v, %v", counts, err)
	}
	if _, err := c.MaintenanceJob(t.Context(), "none"); KindOf(err) != KindNotFound {
		t.Errorf("no job: %v", err)
	}
	if err := c.UpdateMaintenance(t.Context(), Maintenance{ID: "none"}); KindOf(err) != KindNotFound {
		t.Errorf("update of no job: %v", err)
	}
}

func TestDamage(t *testing.T) {
	c, err := Open(t.Context(), t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list := []Damage{{Container: "01", Kind: "data", Frame: 3, Digests: []string{"aa", "bb"}, Reason: "checksum", Found: time.Unix(1e9, 0).UTC()},
		{Frame: -1, Kind: "node", Object: "manifests/x", Saveset: "5e", Reason: "seal", Found: time.Unix(1e9, 0).UTC()}}
	harmed := []HarmedSaveset{{Saveset: "6f", Paths: []string{"", "/a\xff"}, More: 7}, {Saveset: "5e", Object: "manifests/x"}}
	check := func(wantList []Damage, wantHarmed []HarmedSaveset) {
		t.Helper()
		gotList, err := c.Damage(t.Context())
		gotHarmed, herr := c.HarmedSavesets(t.Context())
		if err != nil || herr != nil || !reflect.DeepEqual(gotList, wantList) || !reflect.DeepEqual(gotHarmed, wantHarmed) {
			t.Errorf("kept %+v and %+v, want %+v and %+v (%v, %v)", gotList, gotHarmed, wantList, wantHarmed, err, herr)
		}
	}
	for _, step := range []struct {
		set    []HarmedSaveset
		list   []Damage
		harmed []HarmedSaveset
	}{{harmed, list, harmed}, {nil, list[:1], harmed}, {harmed[:1], list[:1], harmed[:1]}, {[]HarmedSaveset{}, nil, nil}} {
		if err := c.SetDamage(t.Context(), step.list, step.set); err != nil {
			t.Fatal(err)
		}
		check(step.list, step.harmed)
	}
}
