package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/harness"
	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
)

var bin string // directory of the programs; set by TestMain

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (int, error) {
	bin = os.Getenv("COFFER_BIN")
	if bin != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "coffer-e2e-bin-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", dir, "coffer/appliance/cmd/...")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the programs: %w: %s", err, out)
	}
	bin = dir
	return m.Run(), nil
}

// long picks a number by the form of the test run.
func long(normal, short, full int) int {
	switch os.Getenv("COFFER_LONG") {
	case "":
		return normal
	case "short":
		return short
	}
	return full
}

// needRoot skips a test that makes devices and mounts, and fails where the
// environment says that nothing may be skipped.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("COFFER_REQUIRE_LAB") != "" {
		t.Fatal("this test needs root: it makes devices, owners and mounts")
	}
	t.Skip("needs root: it makes devices, owners and mounts")
}

// needFUSE is needRoot for tests that mount.
func needFUSE(t *testing.T) {
	t.Helper()
	needRoot(t)
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
		return
	}
	if os.Getenv("COFFER_REQUIRE_FUSE") != "" {
		t.Fatalf("this test mounts with FUSE, which does not work here: %v; load the module fuse, or give the container /dev/fuse", err)
	}
	t.Skipf("mounts with FUSE, which does not work here: %v", err)
}

// lab is an appliance with one agent in a directory of the test.
type lab struct {
	testing.TB
	dir string
	*harness.Appliance
	agent *harness.Agent
}

const client = "client1"

func newLab(t *testing.T, change ...func(*harness.Options)) *lab {
	t.Helper()
	needRoot(t)
	opts := harness.Options{Bin: bin, Dir: filepath.Join(t.TempDir(), "appliance")}
	for _, c := range change {
		c(&opts)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := harness.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{TB: t, dir: filepath.Dir(opts.Dir), Appliance: a}
	t.Cleanup(l.stop)
	if l.agent, err = a.Agent(ctx, client); err != nil {
		t.Fatal(err)
	}
	return l
}

// within waits, for a minute, until something is so.
func (l *lab) within(what string, ok func() bool) {
	l.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatalf("waited in vain until %s", what)
		}
	}
}

// config gives cofferd a configuration file.
func config(text string) func(*harness.Options) {
	return func(o *harness.Options) {
		path := filepath.Join(filepath.Dir(o.Dir), "cofferd.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			panic(err) // the test's own scratch directory
		}
		o.Flags = append(o.Flags, "--config", path)
	}
}

func (l *lab) stop() {
	if l.agent != nil {
		if err := l.agent.Stop(); err != nil {
			l.Error(err)
		}
	}
	if err := l.Stop(); err != nil {
		l.Error(err)
	}
	if l.Failed() {
		log, _ := os.ReadFile(l.Appliance.Log())
		l.Logf("log of cofferd:\n%s", last(log, 6000))
		if l.agent != nil {
			log, _ = os.ReadFile(l.agent.Log())
			l.Logf("log of the agent:\n%s", last(log, 3000))
		}
	}
}

func last(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// ok runs the command line and fails the test when it fails.
func (l *lab) ok(args ...string) string {
	l.Helper()
	out, err := l.Coffer(l.Context(), args...)
	if err != nil {
		l.Fatal(err)
	}
	return string(out)
}

// refused runs the command line, which must fail with a message that holds
// every one of the wanted words.
func (l *lab) refused(want []string, args ...string) string {
	l.Helper()
	_, err := l.Coffer(l.Context(), args...)
	if err == nil {
		l.Fatalf("coffer %s worked", strings.Join(args, " "))
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			l.Errorf("coffer %s said %q, which does not name %q", strings.Join(args, " "), err, w)
		}
	}
	return err.Error()
}

func decode[T any](l *lab, args ...string) T {
	l.Helper()
	var v T
	if err := l.JSON(l.Context(), &v, args...); err != nil {
		l.Fatal(err)
	}
	return v
}

// task adds a path task for a fresh directory of the test and returns it.
func (l *lab) task(name string, more ...string) (source string) {
	l.Helper()
	source = l.path("source-" + name)
	if err := os.Mkdir(source, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		l.Fatal(err)
	}
	l.ok(append([]string{"task", "add", name, "--client", client, "--source", source}, more...)...)
	return source
}

// run starts a backup or restore and waits for it; it must end as wanted.
func (l *lab) run(want api.RunState, args ...string) api.Run {
	l.Helper()
	run, err := l.Run(l.Context(), args...)
	if run.State != want {
		l.Fatalf("coffer %s: state %q, want %q; reason %q; %v", strings.Join(args, " "), run.State, want, run.Reason, err)
	}
	return run
}

func (l *lab) backup(task string, level api.Level, want api.RunState) api.Run {
	l.Helper()
	return l.run(want, "backup", task, "--level", strings.ToLower(string(level)))
}

// restore brings a saveset back into a new directory and returns it.
func (l *lab) restore(saveset, name string, more ...string) string {
	l.Helper()
	to := l.path(name)
	l.run(api.RunSuccess, append([]string{"restore", saveset, "--client", client, "--to", to}, more...)...)
	return to
}

// age waits until what was just written is older than the margin below which
// a file counts as still changing.
func age() { time.Sleep(2200 * time.Millisecond) }

func same(t *testing.T, want, got string, o treecmp.Options) {
	t.Helper()
	treecmp.Check(t, want, got, o)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// nasty fills dir with a nasty tree and takes its immutable files away again
// when the test ends.
func nasty(t *testing.T, dir string, o nastytree.Options) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	made, err := nastytree.Make(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Skipped) > 0 {
		t.Logf("the file system refused: %v", made.Skipped)
	}
	clean(t, dir)
}

func clean(t *testing.T, dir string) {
	t.Cleanup(func() {
		if err := nastytree.Clean(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}
