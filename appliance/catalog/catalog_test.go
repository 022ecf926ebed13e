package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

// clock is a time that tests move by hand.
type clock struct {
	mu sync.Mutex // guards t
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t *testing.T) (*Catalog, *clock) {
	t.Helper()
	ck := &clock{t: time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)}
	c, err := Open(t.Context(), t.TempDir(), Options{Now: ck.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, ck
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind Kind) {
	t.Helper()
	if err == nil || KindOf(err) != kind {
		t.Fatalf("error %v has kind %v, want %v", err, KindOf(err), kind)
	}
}

func TestDefaultPoolSurvivesReopen(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		c, err := Open(t.Context(), dir, Options{})
		must(t, err)
		p, err := c.Pool(t.Context(), DefaultPool)
		must(t, err)
		if p.RetentionDays != 30 {
			t.Errorf("pool default keeps %d days", p.RetentionDays)
		}
		must(t, c.Close())
	}
	if info, err := os.Stat(filepath.Join(dir, FileName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, %v", info, err)
	}
}

func TestEnrolment(t *testing.T) {
	c, ck := open(t)
	ctx := t.Context()
	must(t, c.AddClient(ctx, "web1"))
	wantKind(t, c.AddClient(ctx, "web1"), KindExists)
	wantKind(t, c.AddEnrolment(ctx, "web2", "h", ck.now()), KindNotFound)

	must(t, c.AddEnrolment(ctx, "web1", "first", ck.now().Add(time.Hour)))
	must(t, c.AddEnrolment(ctx, "web1", "second", ck.now().Add(time.Hour)))
	cert := Certificate{Serial: "a1", Fingerprint: "AA", IssuedAt: ck.now(), NotAfter: ck.now().AddDate(1, 0, 0)}
	wantKind(t, c.UseEnrolment(ctx, "first", cert), KindNotFound) // ended by the second
	must(t, c.UseEnrolment(ctx, "second", cert))
	wantKind(t, c.UseEnrolment(ctx, "second", Certificate{Serial: "a2"}), KindUsed)

	must(t, c.AddEnrolment(ctx, "web1", "third", ck.now().Add(time.Hour)))
	ck.add(time.Hour)
	wantKind(t, c.UseEnrolment(ctx, "third", Certificate{Serial: "a3"}), KindExpired)

	got, err := c.Client(ctx, "web1")
	must(t, err)
	if got.Cert.Serial != "a1" || got.EnrolledAt.IsZero() || !got.RevokedAt.IsZero() {
		t.Errorf("client after enrolment: %+v", got)
	}
	must(t, c.RevokeClient(ctx, "web1"))
	wantKind(t, c.RevokeClient(ctx, "web9"), KindNotFound)
	x, err := c.CertificateBySerial(ctx, "a1")
	must(t, err)
	if x.RevokedAt.IsZero() {
		t.Error("the certificate of a revoked client is not revoked")
	}
	must(t, c.AddEnrolment(ctx, "web1", "fourth", ck.now().Add(time.Hour)))
	must(t, c.UseEnrolment(ctx, "fourth", Certificate{Serial: "a4", IssuedAt: ck.now(), NotAfter: ck.now()}))
	if got, err = c.Client(ctx, "web1"); err != nil || !got.RevokedAt.IsZero() || got.Cert.Serial != "a4" {
		t.Errorf("client after it enrolled again: %+v, %v", got, err)
	}
}

func TestOneTokenOneAgent(t *testing.T) {
	c, ck := open(t)
	must(t, c.AddClient(t.Context(), "web1"))
	must(t, c.AddEnrolment(t.Context(), "web1", "token", ck.now().Add(time.Hour)))
	var wg sync.WaitGroup
	won := make(chan int, 8)
	for i := range 8 {
		wg.Go(func() {
			if c.UseEnrolment(context.Background(), "token", Certificate{Serial: fmt.Sprint(i)}) == nil {
				won <- i
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d agents enrolled with one token", len(won))
	}
}

func TestTasksAndPools(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	must(t, c.AddClient(ctx, "web1"))
	task := Task{Name: "etc", Client: "web1", Type: TaskPath, Pool: DefaultPool,
		Options: TaskOptions{Sources: [][]byte{[]byte("/etc\xff")}, Excludes: []string{"*.tmp"}}}
	made, err := c.AddTask(ctx, task)
	must(t, err)
	got, err := c.Task(ctx, "etc")
	must(t, err)
	if string(got.Options.Sources[0]) != "/etc\xff" || !got.CreatedAt.Equal(made.CreatedAt) {
		t.Errorf("task came back as %+v", got)
	}
	_, err = c.AddTask(ctx, task)
	wantKind(t, err, KindExists)
	_, err = c.AddTask(ctx, Task{Name: "x", Client: "nobody", Pool: DefaultPool})
	wantKind(t, err, KindInUse)

	run, err := c.AddRun(ctx, Run{Kind: RunBackup, State: RunQueued, Client: "web1", Task: "etc"})
	must(t, err)
	wantKind(t, c.RemoveTask(ctx, "etc"), KindInUse)
	run.State = RunError
	must(t, c.UpdateRun(ctx, run))
	must(t, c.RemoveTask(ctx, "etc"))
	wantKind(t, c.RemoveTask(ctx, "etc"), KindNotFound)
}

func TestRunIDsAscendWhateverTheClockDoes(t *testing.T) {
	c, ck := open(t)
	last := ""
	for i, step := range []time.Duration{0, 0, time.Second, -time.Hour, 0, 2 * time.Hour} {
		ck.add(step)
		r, err := c.AddRun(t.Context(), Run{Kind: RunRestore, State: RunQueued})
		must(t, err)
		if r.ID <= last {
			t.Errorf("run %d has id %s after %s", i, r.ID, last)
		}
		last = r.ID
	}
	id, err := nextRunID("20261231-235959-999", time.Time{})
	if err != nil || id != "20270101-000000-001" {
		t.Errorf("id after the last of a second: %s, %v", id, err)
	}
}

func TestRunsAndNotices(t *testing.T) {
	c, ck := open(t)
	ctx := t.Context()
	r, err := c.AddRun(ctx, Run{Kind: RunBackup, State: RunQueued, Client: "web1", Task: "etc", LevelRequested: "INCR"})
	must(t, err)
	r.State, r.Started, r.Level, r.Counters = RunActive, ck.now(), "FULL", []byte(`{"entries":7}`)
	r.Stages = Stages{Source: time.Second, Store: 3 * time.Millisecond}
	must(t, c.UpdateRun(ctx, r))
	got, err := c.Run(ctx, r.ID)
	must(t, err)
	if got.Level != "FULL" || got.Stages != r.Stages || string(got.Counters) != `{"entries":7}` || !got.Ended.IsZero() {
		t.Errorf("run came back as %+v", got)
	}
	must(t, c.AddNotices(ctx, r.ID, []Notice{{Seq: 1, Path: "/a\xff", Message: "m"}, {Seq: 2}, {Seq: 3}}))
	notices, err := c.Notices(ctx, r.ID, 0, 2)
	must(t, err)
	if len(notices) != 2 || notices[0].Path != "/a\xff" {
		t.Errorf("notices: %+v", notices)
	}
	for _, f := range []struct {
		filter RunFilter
		want   int
	}{
		{RunFilter{}, 1}, {RunFilter{Task: "other"}, 0}, {RunFilter{Clients: []string{}}, 0}, {RunFilter{Clients: []string{"web1"}}, 1},
		{RunFilter{States: []RunState{RunActive, RunQueued}}, 1}, {RunFilter{Kind: RunRestore}, 0}, {RunFilter{Before: r.ID}, 0},
	} {
		runs, err := c.Runs(ctx, f.filter)
		must(t, err)
		if len(runs) != f.want {
			t.Errorf("filter %+v: %d runs, want %d", f.filter, len(runs), f.want)
		}
	}
	wantKind(t, c.UpdateRun(ctx, Run{ID: "none"}), KindNotFound)
}

func TestSavesets(t *testing.T) {
	c, ck := open(t)
	ctx := t.Context()
	s := Saveset{ID: strings.Repeat("0a", 16), Client: "web1", Task: "etc", Pool: DefaultPool, State: "success", Level: "FULL",
		Started: ck.now(), Ended: ck.now(), Committed: ck.now(), EOL: ck.now().AddDate(0, 0, 30), Logical: 5, Stored: 2, Sources: []string{"/etc"}}
	other := s
	other.ID = strings.Repeat("0b", 16)
	must(t, c.PutSavesets(ctx, s, other))
	must(t, c.PutSavesets(ctx, s)) // again: the same
	found, err := c.SavesetsByPrefix(ctx, "0a0a0a")
	must(t, err)
	if len(found) != 1 || found[0].ID != s.ID || !found[0].EOL.Equal(s.EOL) || found[0].Sources[0] != "/etc" {
		t.Errorf("by prefix: %+v", found)
	}
	if found, err = c.SavesetsByPrefix(ctx, "0"); err != nil || len(found) != 2 {
		t.Errorf("ambiguous prefix: %d, %v", len(found), err)
	}
	must(t, c.SetSavesetStates(ctx, map[string]SavesetState{s.ID: {Number: 2, EOL: ck.now(), Cause: "newer"}}, AuditEntry{Action: "saveset.eol"}))
	must(t, c.SetSavesetStates(ctx, map[string]SavesetState{s.ID: {Number: 1, Cause: "older"}}))
	got, err := c.Saveset(ctx, s.ID)
	must(t, err)
	if got.EOLCause != "newer" {
		t.Errorf("an older state replaced a newer one: %+v", got)
	}
	must(t, c.MarkSavesetsGone(ctx, other.ID))
	all, err := c.Savesets(ctx, SavesetFilter{})
	must(t, err)
	if len(all) != 1 || all[0].ID != s.ID {
		t.Errorf("living savesets: %+v", all)
	}
	p, err := c.Pool(ctx, DefaultPool)
	must(t, err)
	if p.Savesets != 1 || p.Bytes != 5 || p.Stored != 2 {
		t.Errorf("pool counts %+v", p)
	}
}

func TestUsersAndTokens(t *testing.T) {
	c, ck := open(t)
	ctx := t.Context()
	must(t, c.AddUser(ctx, User{Name: "admin", Role: Superuser, MustChange: true}))
	must(t, c.AddUser(ctx, User{Name: "eve", Role: "restore", Clients: []string{"web1"}}))
	wantKind(t, c.AddUser(ctx, User{Name: "eve"}), KindExists)
	wantKind(t, c.RemoveUser(ctx, "admin"), KindInUse)
	wantKind(t, c.SetUserRole(ctx, "admin", "restore", nil), KindInUse)

	for _, tok := range []Token{
		{ID: "s1", Hash: "h1", User: "eve", Session: true, ExpiresAt: ck.now().Add(time.Hour)},
		{ID: "s2", Hash: "h2", User: "eve", Session: true, ExpiresAt: ck.now().Add(time.Hour)},
		{ID: "t1", Hash: "h3", User: "eve", Name: "script"},
	} {
		_, err := c.AddToken(ctx, tok)
		must(t, err)
	}
	tok, u, err := c.TokenByHash(ctx, "h1")
	must(t, err)
	if tok.ID != "s1" || u.Clients[0] != "web1" || u.LastLogin.IsZero() {
		t.Errorf("token %+v of user %+v", tok, u)
	}
	must(t, c.SetPassword(ctx, "eve", "new", false, "s1"))
	_, _, err = c.TokenByHash(ctx, "h2")
	wantKind(t, err, KindNotFound)
	ck.add(time.Hour)
	_, _, err = c.TokenByHash(ctx, "h1")
	wantKind(t, err, KindExpired)
	if tokens, err := c.Tokens(ctx, ""); err != nil || len(tokens) != 1 || tokens[0].ID != "t1" {
		t.Errorf("API tokens: %+v, %v", tokens, err)
	}
	wantKind(t, c.RemoveToken(ctx, "s1", false), KindNotFound)
	must(t, c.RemoveUser(ctx, "eve"))
	_, _, err = c.TokenByHash(ctx, "h3")
	wantKind(t, err, KindNotFound)
}

func TestAudit(t *testing.T) {
	c, _ := open(t)
	for i := range 5 {
		must(t, c.AddAudit(t.Context(), AuditEntry{User: "admin", Action: "task.add", Object: fmt.Sprint(i), OK: true}))
	}
	got, err := c.Audit(t.Context(), AuditFilter{Action: "task.add", Before: 5, Limit: 2})
	must(t, err)
	if len(got) != 2 || got[0].Object != "3" {
		t.Errorf("audit page: %+v", got)
	}
}

func TestNewerSchemaIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(t.Context(), dir, Options{})
	must(t, err)
	must(t, c.write(t.Context(), "test", func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`)
		return err
	}))
	must(t, c.Close())
	_, err = Open(t.Context(), dir, Options{})
	wantKind(t, err, KindNewer)
	for _, want := range []string{FileName, "version 99", "newer version of Coffer"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestCopyBeforeEachMigration(t *testing.T) {
	dir := t.TempDir()
	ck := &clock{t: time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)}
	tick := func() time.Time { ck.add(time.Second); return ck.now() }
	first, err := migrations.ReadFile("migrations/00001_first.sql")
	must(t, err)
	steps := fstest.MapFS{"00001_first.sql": {Data: first}}
	c, err := Open(t.Context(), dir, Options{Now: tick, migrations: steps})
	must(t, err)
	must(t, c.AddClient(t.Context(), "web1"))
	must(t, c.Close())

	steps["00002_more.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nALTER TABLE clients ADD COLUMN note TEXT NOT NULL DEFAULT '';\n")}
	steps["00003_more.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nDELETE FROM clients;\n")}
	c, err = Open(t.Context(), dir, Options{Now: tick, migrations: steps})
	must(t, err)
	must(t, c.Close())
	copies, err := filepath.Glob(filepath.Join(dir, "catalog-v*.db"))
	must(t, err)
	if len(copies) != 2 {
		t.Fatalf("copies: %v", copies)
	}
	old := t.TempDir()
	raw, err := os.ReadFile(copies[1])
	must(t, err)
	must(t, os.WriteFile(filepath.Join(old, FileName), raw, 0o600))
	delete(steps, "00003_more.sql")
	c, err = Open(t.Context(), old, Options{migrations: steps})
	must(t, err)
	defer c.Close()
	if _, err := c.Client(t.Context(), "web1"); err != nil {
		t.Errorf("the copy before the last migration lost its client: %v", err)
	}
}

func TestFullDiskIsNamedAndPasses(t *testing.T) {
	c, _ := open(t)
	ctx := t.Context()
	limit := func(pages int) {
		t.Helper()
		if _, err := c.w.Exec(fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // SQLite takes the present size
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = c.AddAudit(ctx, AuditEntry{Action: "fill", Detail: strings.Repeat("x", 4000)})
	}
	wantKind(t, err, KindNoSpace)
	if !strings.Contains(err.Error(), "no space left") {
		t.Errorf("error does not tell of the full disk: %v", err)
	}
	if _, err := os.Stat(c.ballastPath()); err == nil {
		t.Error("the reserve was not used")
	}
	limit(1 << 20)
	must(t, c.AddAudit(ctx, AuditEntry{Action: "works again"}))
	must(t, c.KeepBallast())
	if info, err := os.Stat(c.ballastPath()); err != nil || info.Size() != ballastSize {
		t.Errorf("the reserve did not come back: %v", err)
	}
}

// A disk that is really full: backups are refused, what matters then is recorded from the reserve.
func TestFullTmpfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("coffer-test", dir, "tmpfs", 0, "size=24m"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	c, err := Open(t.Context(), dir, Options{})
	must(t, err)
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	must(t, err)
	for block := make([]byte, 4096); ; {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	must(t, f.Close())
	refused := false
	for range 2000 {
		if _, err = c.AddRun(t.Context(), Run{Kind: RunBackup, State: RunQueued, Request: []byte(strings.Repeat("x", 4000))}); err != nil {
			wantKind(t, err, KindNoSpace)
			refused = true
			break
		}
	}
	if !refused {
		t.Fatal("a full disk takes any number of backups")
	}
	for range 20 {
		r, err := c.AddRun(t.Context(), Run{Kind: RunRestore, State: RunQueued})
		must(t, err)
		r.State = RunSuccess
		must(t, c.UpdateRun(t.Context(), r))
		must(t, c.AddAudit(t.Context(), AuditEntry{Action: "restore"}))
	}
	must(t, c.Close())
	c, err = Open(t.Context(), dir, Options{})
	must(t, err)
	must(t, os.Remove(filler))
	must(t, c.KeepBallast())
	_, err = c.AddRun(t.Context(), Run{Kind: RunBackup, State: RunQueued})
	must(t, err)
	must(t, c.Close())
}

func TestDamagedFileIsNamed(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(strings.Repeat("garbage ", 1000)), 0o600))
	_, err := Open(t.Context(), dir, Options{})
	wantKind(t, err, KindDamaged)
}

func TestErrorsKeepTheirCause(t *testing.T) {
	c, _ := open(t)
	_, err := c.Client(t.Context(), "nobody")
	if !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("cause is lost: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.AddClient(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled call: %v", err)
	}
}
