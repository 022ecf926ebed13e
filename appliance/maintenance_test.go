package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/maintenance"
)

// upkept is an appliance with one task over a file that no two backups find the same.
type upkept struct {
	*served
	ctx    context.Context
	source string
	rand   *rand.ChaCha8
}

func upkeep(t *testing.T) *upkept {
	t.Helper()
	s := serve(t)
	u := &upkept{served: s, source: filepath.Join(s.home, "source"), rand: rand.NewChaCha8([32]byte{1}),
		ctx: api.WithCaller(t.Context(), api.Caller{Identity: api.Identity{User: api.User{Name: "admin", Role: api.RoleSuperuser}}})}
	if err := os.Mkdir(u.source, 0o755); err != nil {
		t.Fatal(err)
	}
	e := must[api.Enrolment](t)(s.AddClient(u.ctx, api.ClientSpec{Name: "web1"}))
	s.agent(e.Token)
	must[api.Task](t)(s.AddTask(u.ctx, api.TaskSpec{Name: "t", Client: "web1", Sources: []string{u.source}}))
	return u
}

// backup fills the file anew and backs it up.
func (u *upkept) backup() string {
	u.t.Helper()
	data := make([]byte, 3<<20)
	_, _ = u.rand.Read(data) // it never fails
	if err := os.WriteFile(filepath.Join(u.source, "file"), data, 0o600); err != nil {
		u.t.Fatal(err)
	}
	run := u.ended(u.StartBackup(u.ctx, api.BackupRequest{Task: "t"}))
	if run.State != api.RunSuccess {
		u.t.Fatalf("backup: %+v", run)
	}
	return run.Saveset
}

// job starts maintenance and waits for its end.
func (u *upkept) job(r api.MaintenanceRequest) api.Maintenance {
	u.t.Helper()
	m := must[api.Maintenance](u.t)(u.StartMaintenance(u.ctx, r))
	events := must[<-chan api.Event](u.t)(u.Subscribe(u.ctx, api.EventFilter{Maintenance: m.ID}))
	for m = must[api.Maintenance](u.t)(u.MaintenanceJob(u.ctx, m.ID)); !m.State.Final(); {
		m = *(<-events).Maintenance
	}
	return m
}

func (u *upkept) succeeds(r api.MaintenanceRequest) api.Maintenance {
	u.t.Helper()
	m := u.job(r)
	if m.State != api.RunSuccess || m.User != "admin" {
		u.t.Fatalf("maintenance %+v", m)
	}
	return m
}

func (u *upkept) store() api.Store {
	u.t.Helper()
	return must[api.Store](u.t)(u.Store(u.ctx))
}

func TestMaintenance(t *testing.T) {
	u := upkeep(t)
	first := u.backup()
	second := u.backup()
	if err := u.DeleteSaveset(u.ctx, first, true); err != nil {
		t.Fatal(err)
	}
	before := u.store()
	gc := u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceGC}).Report.GC
	after := u.store()
	if gc == nil || gc.FreedBytes < 3<<20 || !gc.Complete || before.StoredBytes-after.StoredBytes < 2<<20 {
		t.Errorf("collection %+v; %d bytes before, %d after", gc, before.StoredBytes, after.StoredBytes)
	}
	check := u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceCheck}).Report.Check
	if check == nil || check.Found != 0 || check.Savesets != 1 || check.Bytes < 3<<20 {
		t.Errorf("check %+v", check)
	}
	usage := u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceUsage}).Report.Usage
	if usage == nil || usage.LogicalBytes < 3<<20 || usage.DedupRatio <= 0 {
		t.Errorf("usage %+v", usage)
	}
	s := u.store()
	if s.State != api.StoreGreen || s.Usage == nil || s.Check.Pages == nil || s.Check.Objects == nil || len(s.Last) != 3 || s.NextMaintenance == nil || s.Chunks == 0 || s.IndexBytes == 0 {
		t.Errorf("store %+v", s)
	}
	u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceReindex})
	tree, err := u.OpenTree(u.ctx, second)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	u.scrape("coffer_gc_freed_bytes_total", `coffer_maintenance_jobs{kind="gc",state="success"} 1`, `coffer_store_state{state="green"} 1`,
		`coffer_runs{kind="backup",state="success"} 2`, "coffer_store_savesets 1", "coffer_index_bytes", "process_resident_memory_bytes",
		`coffer_maintenance_last_success_timestamp_seconds{kind="check"}`, "coffer_check_read_bytes_total", "coffer_memory_anonymous_bytes",
		"coffer_store_free_bytes", "coffer_store_damaged_places 0", `coffer_store_cache_bytes{cache="locality"}`)
	_, err = u.StartMaintenance(u.ctx, api.MaintenanceRequest{Kind: api.MaintenanceGC, Options: api.MaintenanceOptions{Share: 0.5}})
	wantCode(t, err, api.CodeBadRequest)
	_, err = u.MaintenanceJob(u.ctx, "none")
	wantCode(t, err, api.CodeNotFound)
	_, err = u.CancelMaintenance(u.ctx, s.Last[0].ID)
	wantCode(t, err, api.CodeConflict)
}

// scrape reads the metrics, which must hold the words, and obey Prometheus' conventions.
func (u *upkept) scrape(words ...string) {
	u.t.Helper()
	rec := httptest.NewRecorder()
	u.Metrics().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	text := rec.Body.String()
	if rec.Code != 200 {
		u.t.Fatalf("scrape: %d: %s", rec.Code, text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			u.t.Errorf("the metrics lack %s", w)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "coffer_") {
			u.t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if err != nil || u.t.Failed() {
		u.t.Logf("%v, metrics:\n%s", err, text)
	}
}

// TestDamage flips a byte of a container: the check finds it, the damage list names the file, the store is red; the next
// backup heals it.
func TestDamage(t *testing.T) {
	u := upkeep(t)
	set := u.backup()
	u.flip()
	check := u.job(api.MaintenanceRequest{Kind: api.MaintenanceCheck})
	if check.State != api.RunWarning || check.Report.Check == nil || check.Report.Check.Found == 0 || check.Hint == "" {
		t.Fatalf("check %+v", check)
	}
	s := u.store()
	d := must[api.DamageReport](t)(u.Damage(u.ctx))
	if s.State != api.StoreRed || s.DamagedObjects == 0 || len(s.Reasons) != 1 || len(d.Places) == 0 || d.Hint == "" || d.Harms != api.HarmKnown {
		t.Errorf("store %+v, damage %+v", s, d)
	}
	if len(d.Savesets) != 1 || d.Savesets[0].Saveset != set || d.Savesets[0].Task != "t" || len(d.Savesets[0].Files) != 1 ||
		d.Savesets[0].Files[0].Path != filepath.Join(u.source, "file") {
		t.Errorf("it harms %+v", d.Savesets)
	}
	run := u.ended(u.StartBackup(u.ctx, api.BackupRequest{Task: "t"})) // of the file as it was
	if run.State != api.RunSuccess && run.State != api.RunWarning {
		t.Errorf("backup beside damage: %+v", run)
	}
	u.until("the backup has healed the store", func() bool {
		d = must[api.DamageReport](t)(u.Damage(u.ctx))
		return u.store().State == api.StoreGreen && len(d.Places) == 0 && len(d.Savesets) == 0
	})
	u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceCheck})
}

// flip changes a byte in the middle of the largest container.
func (u *upkept) flip() {
	u.t.Helper()
	var largest string
	var size int64
	err := filepath.Walk(filepath.Join(u.machine.conf.StoreDir(), "containers"), func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			largest, size = path, info.Size()
		}
		return err
	})
	if err != nil {
		u.t.Fatal(err)
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	if err != nil {
		if err = os.Chmod(largest, 0o600); err == nil {
			f, err = os.OpenFile(largest, os.O_RDWR, 0)
		}
	}
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		u.t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, size/2); err != nil {
		u.t.Fatal(err)
	}
}

// TestFormsAgree holds the JSON forms of the domain and of the API together, both ways.
func TestFormsAgree(t *testing.T) {
	for _, pair := range [][2]any{{&maintenance.Settings{}, &api.MaintenanceOptions{}}, {&maintenance.Progress{}, &api.MaintenanceProgress{}},
		{&maintenance.Report{}, &api.MaintenanceReport{}}} {
		for i := range 2 {
			from, to := pair[i], pair[1-i]
			fill(reflect.ValueOf(from).Elem())
			raw := must[[]byte](t)(json.Marshal(from))
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.DisallowUnknownFields()
			if err := dec.Decode(to); err != nil {
				t.Errorf("%T does not take %s: %v", to, raw, err)
				continue
			}
			if again := must[[]byte](t)(json.Marshal(to)); len(again) != len(raw) {
				t.Errorf("%T has not all of %s: %s", to, raw, again)
			}
		}
	}
}

// fill gives every field a value that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(2)
	default:
		if v.CanInt() {
			v.SetInt(3)
		}
		if v.CanUint() {
			v.SetUint(3)
		}
	}
}

// TestRepairFromAReplica heals out of a copy of the store.
func TestRepairFromAReplica(t *testing.T) {
	u := upkeep(t)
	set := u.backup()
	replica := filepath.Join(u.home, "replica")
	if err := os.CopyFS(replica, os.DirFS(u.machine.conf.StoreDir())); err != nil {
		t.Fatal(err)
	}
	u.flip()
	if check := u.job(api.MaintenanceRequest{Kind: api.MaintenanceCheck, Options: api.MaintenanceOptions{Half: api.CheckPages}}); check.State != api.RunWarning {
		t.Fatalf("check %+v", check)
	}
	if repair := u.job(api.MaintenanceRequest{Kind: api.MaintenanceRepair}); repair.State != api.RunWarning || repair.Report.Repair == nil || repair.Report.Repair.Left == 0 {
		t.Errorf("repair without a source: %+v", repair)
	}
	from := []api.RepairSource{{Path: replica + "-of-another"}}
	if repair := u.job(api.MaintenanceRequest{Kind: api.MaintenanceRepair, Options: api.MaintenanceOptions{From: from}}); repair.State != api.RunError {
		t.Errorf("repair from a store that is not there: %+v", repair)
	}
	if _, err := os.Stat(from[0].Path); err == nil {
		t.Error("the repair made the directory that it was to read")
	}
	from[0].Path = replica
	repair := u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceRepair, Options: api.MaintenanceOptions{From: from}})
	if r := repair.Report.Repair; r == nil || r.Fetched == 0 || r.Left != 0 {
		t.Errorf("repair %+v", r)
	}
	u.succeeds(api.MaintenanceRequest{Kind: api.MaintenanceCheck})
	if s := u.store(); s.State != api.StoreGreen {
		t.Errorf("the store is %s: %+v", s.State, s.Reasons)
	}
	tree := must[server.Tree](t)(u.OpenTree(u.ctx, set))
	defer tree.Close()
	content := must[io.ReadCloser](t)(tree.Open(u.ctx, filepath.Join(u.source, "file")))
	defer content.Close()
	want := must[[]byte](t)(os.ReadFile(filepath.Join(u.source, "file")))
	if got := must[[]byte](t)(io.ReadAll(content)); !bytes.Equal(got, want) {
		t.Error("the file does not read back")
	}
}
