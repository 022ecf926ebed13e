package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coffer/api"
)

// postgres is a cluster of Debian's PostgreSQL on a unix socket of its own.
type postgres struct {
	t   *testing.T
	bin string
	dir string
}

func startPostgres(t *testing.T) *postgres {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal("this test needs Debian's package postgresql")
		}
		t.Skip("needs Debian's package postgresql")
	}
	// The cluster's owner must be able to reach it, which t.TempDir does not allow.
	dir, err := os.MkdirTemp("/tmp", "coffer-pg-")
	if err != nil {
		t.Fatal(err)
	}
	p := &postgres{t: t, bin: found[len(found)-1], dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.shell("chown postgres " + dir)
	p.asOwner("initdb -D %[1]s/data -A trust -E UTF8 --locale=C.UTF-8 > %[1]s/initdb.log", dir)
	p.asOwner("pg_ctl -D %[1]s/data -l %[1]s/log -w -o '-k %[1]s -c listen_addresses= -c fsync=off' start > /dev/null", dir)
	t.Cleanup(func() { p.asOwner("pg_ctl -D %s/data -m immediate -w stop > /dev/null", dir) })
	return p
}

func (p *postgres) shell(script string) string {
	p.t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func (p *postgres) asOwner(format string, args ...any) {
	p.t.Helper()
	p.shell("runuser -u postgres -- " + p.bin + "/" + fmt.Sprintf(format, args...))
}

// tool is a command line of one of PostgreSQL's client programs.
func (p *postgres) tool(name string, args ...string) []string {
	return append([]string{filepath.Join(p.bin, name), "-h", p.dir, "-U", "postgres"}, args...)
}

func (p *postgres) query(db, sql string) string {
	p.t.Helper()
	argv := p.tool("psql", "-At", "-v", "ON_ERROR_STOP=1", "-d", db, "-c", sql)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("psql: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// A database goes through pg_dump into the store and comes back through psql
// into an empty database, with the same content.
func TestStreamPostgreSQL(t *testing.T) {
	l := newLab(t)
	pg := startPostgres(t)
	pg.query("postgres", "create database shop")
	pg.query("shop", `create table orders(id int primary key, what text, at timestamptz);
insert into orders select i, md5(i::text), timestamptz '2026-01-01' + i * interval '1 second' from generate_series(1, 400000) i`)
	const fingerprint = `select count(*) || ' ' || md5(string_agg(id || what || at, ',' order by id)) from orders`
	want := pg.query("shop", fingerprint)

	add := append([]string{"task", "add", "shop", "--client", client, "--type", "stream", "--"}, pg.tool("pg_dump", "shop")...)
	l.ok(add...)
	run := l.backup("shop", api.LevelIncr, api.RunSuccess)
	if run.LevelEffective != api.LevelFull || run.LevelReason != "type_has_no_levels" {
		t.Errorf("a stream ran as %s (%s), want FULL (type_has_no_levels)", run.LevelEffective, run.LevelReason)
	}
	// pg_dump writes a random \restrict key at both ends of each dump: only the chunks between them are the same.
	again := l.backup("shop", api.LevelFull, api.RunSuccess)
	if again.Progress.BytesStored > run.Progress.BytesStored/2 {
		t.Errorf("the same dump again stored %d bytes, the first one %d", again.Progress.BytesStored, run.Progress.BytesStored)
	}

	pg.query("postgres", "create database copy")
	into := strings.Join(pg.tool("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", "copy"), " ")
	l.run(api.RunSuccess, "restore", run.Saveset, "--client", client, "--command", into)
	if got := pg.query("copy", fingerprint); got != want {
		t.Errorf("the restored database says %q, the original %q", got, want)
	}
}

// A command that fails leaves an error run that holds what it said, and no
// saveset; so does a restore's command.
func TestStreamFailures(t *testing.T) {
	l := newLab(t)
	l.ok("task", "add", "broken", "--client", client, "--type", "stream", "--", "sh", "-c", "echo half; echo no such database >&2; exit 3")
	run, err := l.Run(t.Context(), "backup", "broken")
	if err == nil || run.State != api.RunError || !strings.Contains(run.Reason, "no such database") || run.Saveset != "" {
		t.Errorf("state %q, reason %q, saveset %q, error %v", run.State, run.Reason, run.Saveset, err)
	}
	if page := decode[api.Page[api.Saveset]](l, "saveset", "list"); len(page.Items) != 0 {
		t.Errorf("a failed stream left %d savesets", len(page.Items))
	}
	l.ok("task", "add", "good", "--client", client, "--type", "stream", "--", "sh", "-c", "yes line | head -c 3000000")
	good := l.backup("good", api.LevelFull, api.RunSuccess)
	back, err := l.Run(t.Context(), "restore", good.Saveset, "--client", client, "--command", "exit 7")
	if err == nil || back.State != api.RunError {
		t.Errorf("a restore into a failing command ended %q, %v", back.State, err)
	}
	to := l.path("out")
	l.run(api.RunSuccess, "restore", good.Saveset, "--client", client, "--command", "cat > "+to)
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("line\n"), 600000)) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}
