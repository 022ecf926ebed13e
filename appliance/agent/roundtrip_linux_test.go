package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/appliance/agent/agenttest"
	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/restore"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
)

// missing skips the test for what the machine lacks; under make test, where nothing may be lacking, it fails.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("COFFER_REQUIRE_LAB") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
}

func backUp(t *testing.T, s *agenttest.Store, parent *uplink.Parent, order sms.BackupOrder) *agenttest.Run {
	t.Helper()
	run := s.Backup(parent)
	if _, err := backup.Run(t.Context(), backup.Options{Order: order, Run: run}); err != nil {
		t.Fatalf("backup: %v", err)
	}
	return run
}

func restoreTo(t *testing.T, s *agenttest.Store, root recipe.Ref, order sms.RestoreOrder) (*agenttest.Run, sms.Outcome) {
	t.Helper()
	run := s.Restore(root)
	out, err := restore.Run(t.Context(), restore.Options{Order: order, Run: run})
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	return run, out
}

func noNotices(t *testing.T, what string, run *agenttest.Run) {
	t.Helper()
	for _, n := range run.Notices() {
		t.Errorf("%s: %s %q: %s", what, n.Code, string(n.Path), n.Message)
	}
}

// cleanDir is a temporary directory that may hold immutable files and paths of any length.
func cleanDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { _ = nastytree.Clean(dir) })
	return dir
}

// Each generation of a nasty tree comes back as it was, and verifies.
func TestNastyTree(t *testing.T) {
	needRoot(t)
	src := cleanDir(t)
	opts := nastytree.Options{Seed: 1, Wide: 5000}
	made, err := nastytree.Make(src, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("skipped:", made.Skipped)
	s := agenttest.New()
	s.Verify = true
	var parent *uplink.Parent
	for gen := range 4 {
		if gen > 0 {
			if _, err := nastytree.Mutate(src, gen, opts); err != nil {
				t.Fatal(err)
			}
		}
		run := backUp(t, s, parent, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}})
		noNotices(t, "backup", run)
		parent = run.AsParent()
		t.Logf("generation %d: %+v", gen, run.Committed.Counters)

		dst := cleanDir(t)
		rest, _ := restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{Target: sms.Path(dst)})
		noNotices(t, "restore", rest)
		treecmp.Check(t, src, filepath.Join(dst, src), treecmp.Options{})

		verify, out := restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{Target: sms.Path(dst), Verify: true})
		noNotices(t, "verify", verify)
		if out.Different != 0 {
			t.Errorf("verify found %d differences", out.Different)
		}
	}
}

// An unchanged tree is taken over whole, and gives the same root.
func TestUnchangedIsTakenOver(t *testing.T) {
	needRoot(t)
	src := cleanDir(t)
	if _, err := nastytree.Make(src, nastytree.Options{Seed: 2}); err != nil {
		t.Fatal(err)
	}
	s := agenttest.New()
	order := sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}
	first := backUp(t, s, nil, order)
	parent := first.AsParent()
	parent.Started = parent.Started.Add(1000 * 365 * 24 * 3600e9 / 10) // files of the tree are younger than 2 s, some lie in the future
	second := backUp(t, s, parent, order)
	// The root differs where somebody else puts something beside the source.
	if a, b := lookup(t, s, first.Committed.Root, src), lookup(t, s, second.Committed.Root, src); a.Content != b.Content {
		t.Errorf("contents differ: %v, %v", a.Content, b.Content)
	}
	c := second.Committed.Counters
	t.Logf("%+v", c)
	if c.BytesSent != 0 || c.Entries != first.Committed.Counters.Entries {
		t.Errorf("unchanged run: %+v", c)
	}
}

// lookup finds the entry of a path in a saveset.
func lookup(t *testing.T, s *agenttest.Store, root recipe.Ref, path string) (e recipe.Entry) {
	t.Helper()
	at := root.Digest
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		var err error
		if e, _, err = recipe.Lookup(t.Context(), s, at, name); err != nil {
			t.Fatal(err)
		}
		at = e.Content.Digest
	}
	return e
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return "<" + strings.TrimPrefix(err.Error(), "open "+path+": ") + ">"
	}
	return string(data)
}

// list returns the names below dir, sorted.
func list(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func TestExistingFiles(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/f", "saved")
	write(t, src+"/d/g", "saved, too")
	if err := os.Symlink("f", src+"/l"); err != nil {
		t.Fatal(err)
	}
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	for _, tc := range []struct {
		existing sms.Existing
		want     string // of f
		list     string
	}{
		{sms.ExistingKeep, "mine", "d d/g f l other"},
		{sms.ExistingOverwrite, "saved", "d d/g f l other"},
		{sms.ExistingNewVersion, "mine", "d d/g f f.restored l l.restored other"},
	} {
		t.Run(string(tc.existing), func(t *testing.T) {
			dst := t.TempDir()
			top := filepath.Join(dst, src)
			write(t, top+"/f", "mine")
			write(t, top+"/other", "x")
			if err := os.Symlink("elsewhere", top+"/l"); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(top+"/f", dst+"/hard"); err != nil {
				t.Fatal(err)
			}
			run, _ := restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst), Existing: tc.existing})
			noNotices(t, "restore", run)
			if got := read(t, top+"/f"); got != tc.want {
				t.Errorf("f holds %q, want %q", got, tc.want)
			}
			if got := read(t, dst+"/hard"); got != "mine" {
				t.Errorf("the other name of the replaced file holds %q", got)
			}
			if got := list(t, top); got != tc.list {
				t.Errorf("target holds %s, want %s", got, tc.list)
			}
		})
	}
}

func TestSelection(t *testing.T) {
	src := t.TempDir()
	for _, f := range []string{"a/x.txt", "a/y.log", "b/c/x.txt", "b/z"} {
		write(t, src+"/"+f, f)
	}
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	path := func(p string) sms.Path { return sms.Path(src + "/" + p) }
	for _, tc := range []struct {
		name  string
		order sms.RestoreOrder
		want  string
		top   bool // list the target, not the place of the source in it
	}{
		{"paths", sms.RestoreOrder{Paths: []sms.Path{path("b/c"), path("a/y.log")}}, "a a/y.log b b/c b/c/x.txt", false},
		{"include", sms.RestoreOrder{Include: []string{"*.txt"}}, "a a/x.txt b b/c b/c/x.txt", false},
		{"include path", sms.RestoreOrder{Include: []string{src + "/b"}}, "b b/c b/c/x.txt b/z", false},
		{"exclude", sms.RestoreOrder{Exclude: []string{"*.txt", "c/"}}, "a a/y.log b b/z", false},
		{"flat", sms.RestoreOrder{Flat: true, Exclude: []string{"z"}}, "x.restored.txt x.txt y.log", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dst := t.TempDir()
			tc.order.Target = sms.Path(dst)
			restoreTo(t, s, root, tc.order)
			dir := dst
			if !tc.top {
				dir = filepath.Join(dst, src)
			}
			if got := list(t, dir); got != tc.want {
				t.Errorf("restored %s, want %s", got, tc.want)
			}
		})
	}
	run := s.Restore(root)
	_, err := restore.Run(t.Context(), restore.Options{Run: run,
		Order: sms.RestoreOrder{Target: sms.Path(t.TempDir()), Paths: []sms.Path{"/no/such"}}})
	if err == nil || len(run.Notices()) != 1 {
		t.Errorf("restore of nothing: %v, notices %v", err, run.Notices())
	}
}

// A symlink in the target leads nowhere, whatever the way with existing files.
func TestSymlinksInTheTarget(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/d/f", "saved")
	write(t, src+"/g", "saved")
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	for _, existing := range []sms.Existing{sms.ExistingKeep, sms.ExistingOverwrite, sms.ExistingNewVersion} {
		t.Run(string(existing), func(t *testing.T) {
			dst, victim := t.TempDir(), t.TempDir()
			write(t, victim+"/g", "victim")
			top := filepath.Join(dst, src)
			if err := os.MkdirAll(top, 0o755); err != nil {
				t.Fatal(err)
			}
			for link, target := range map[string]string{"d": victim, "g": victim + "/g"} {
				if err := os.Symlink(target, top+"/"+link); err != nil {
					t.Fatal(err)
				}
			}
			restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst), Existing: existing})
			if got := list(t, victim); got != "g" || read(t, victim+"/g") != "victim" {
				t.Errorf("the restore followed a symlink: %s, %q", got, read(t, victim+"/g"))
			}
		})
	}
}

func TestVerifyFindsDifferences(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/same", "same")
	write(t, src+"/content", "saved")
	write(t, src+"/mode", "x")
	write(t, src+"/gone", "x")
	write(t, src+"/type", "x")
	write(t, src+"/dir/f", "x")
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src)}}).Committed.Root
	info, _ := os.Stat(src + "/content")
	_ = os.WriteFile(src+"/content", []byte("other"), 0o644)
	_ = os.Chtimes(src+"/content", info.ModTime(), info.ModTime())
	_ = os.Chmod(src+"/mode", 0o600)
	_ = os.Remove(src + "/gone")
	_ = os.Remove(src + "/type")
	_ = os.Symlink("x", src+"/type")
	_ = os.RemoveAll(src + "/dir")
	// What only leads to the source changes all the time, and is not compared.
	run, out := restoreTo(t, s, root, sms.RestoreOrder{Verify: true, Sources: []sms.Path{sms.Path(src)}})
	got := map[string]bool{}
	for _, n := range run.Notices() {
		got[filepath.Base(string(n.Path))] = n.Code == "different"
	}
	// The top directory has another time, for names went.
	for _, name := range []string{"content", "mode", "gone", "type", "dir", filepath.Base(src)} {
		if !got[name] {
			t.Errorf("%s: no difference reported", name)
		}
	}
	if got["same"] || out.Different != 6 {
		t.Errorf("differences: %d, %v", out.Different, run.Notices())
	}
}

func TestStream(t *testing.T) {
	s := agenttest.New()
	order := sms.BackupOrder{TaskType: sms.TaskStream, StreamName: "dump.sql",
		Command: []string{"seq 1 700000; head -c 3000000 /dev/zero; echo end"}}
	run := backUp(t, s, nil, order)
	if run.Committed.Counters.BytesRead < 7_000_000 {
		t.Errorf("counters: %+v", run.Committed.Counters)
	}
	dst := t.TempDir()
	out := dst + "/out"
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{TaskType: sms.TaskStream, Command: []string{"cat > " + out}})
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{TaskType: sms.TaskStream, Target: sms.Path(dst + "/file")})
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{TaskType: sms.TaskStream, Target: sms.Path(dst)})
	if read(t, dst+"/dump.sql") != read(t, out) {
		t.Error("the stream has another content in a directory")
	}
	want := read(t, out)
	if len(want) < 7_000_000 || !strings.HasSuffix(want, "end\n") || read(t, dst+"/file") != want {
		t.Errorf("the stream came back with %d and %d bytes", len(want), len(read(t, dst+"/file")))
	}
	for _, tc := range []struct{ command, code, says string }{
		{"echo partial; echo oops >&2; exit 7", backup.CodeCommand, "oops"},
		{"/no/such/program", backup.CodeCommand, "not found"},
	} {
		run := s.Backup(nil)
		_, err := backup.Run(t.Context(), backup.Options{Run: run,
			Order: sms.BackupOrder{TaskType: sms.TaskStream, Command: []string{tc.command}}})
		if err == nil || !strings.Contains(err.Error(), tc.says) || !run.Committed.Root.Digest.IsZero() {
			t.Errorf("%q: %v", tc.command, err)
		}
	}
	rest := s.Restore(run.Committed.Root)
	_, err := restore.Run(t.Context(), restore.Options{Run: rest, Order: sms.RestoreOrder{
		TaskType: sms.TaskStream, Command: []string{"head -c 10; echo enough >&2; exit 4"}}})
	if err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("a failing command: %v", err)
	}
}

func TestMissingSource(t *testing.T) {
	s := agenttest.New()
	_, err := backup.Run(t.Context(), backup.Options{Run: s.Backup(nil),
		Order: sms.BackupOrder{Sources: []sms.Path{"/no/such/source"}}})
	if err == nil || !strings.Contains(fmt.Sprint(err), "/no/such/source") {
		t.Errorf("error is %v", err)
	}
}

// Sources named by symlinks keep the links and bring what they lead to.
func TestSourceThroughSymlinks(t *testing.T) {
	src := t.TempDir()
	write(t, src+"/real/data/f", "x")
	write(t, src+"/real/other", "x")
	_ = os.Symlink("real", src+"/link")
	_ = os.Symlink("link/../real/data", src+"/chain")
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src + "/chain"), sms.Path(src + "/real/data/f")}}).Committed.Root
	dst := t.TempDir()
	restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst)})
	if got := list(t, filepath.Join(dst, src)); got != "chain link real real/data real/data/f" {
		t.Errorf("saved %s", got)
	}
}

func TestExcludes(t *testing.T) {
	src := t.TempDir()
	for _, f := range []string{"a/x.tmp", "a/keep.tmp", "cache/big", "cache/deep/source/f", "b/cache/x", "node_modules/m"} {
		write(t, src+"/"+f, f)
	}
	s := agenttest.New()
	root := backUp(t, s, nil, sms.BackupOrder{
		Sources:  []sms.Path{sms.Path(src), sms.Path(src + "/cache/deep/source")},
		Excludes: []string{"*.tmp", "!keep.tmp", src + "/cache", "node_modules/"},
	}).Committed.Root
	dst := t.TempDir()
	restoreTo(t, s, root, sms.RestoreOrder{Target: sms.Path(dst)})
	want := "a a/keep.tmp b b/cache b/cache/x cache cache/deep cache/deep/source cache/deep/source/f"
	if got := list(t, filepath.Join(dst, src)); got != want {
		t.Errorf("saved %s, want %s", got, want)
	}
}

// contextAfter is cancelled with a cause after a while.
func contextAfter(t *testing.T, d time.Duration, cause error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(d, func() { cancel(cause) })
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// A file of 1 TiB with 1 MiB of data costs 1 MiB, in time, too.
func TestHugeSparseFile(t *testing.T) {
	needRoot(t)
	src := cleanDir(t)
	made, err := nastytree.Make(src, nastytree.Options{Seed: 4, Wide: 10, Huge: true, NoLong: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Skipped) > 0 {
		missing(t, fmt.Sprint("the file system of the test does not take ", made.Skipped))
	}
	s := agenttest.New()
	start := time.Now()
	run := backUp(t, s, nil, sms.BackupOrder{Sources: []sms.Path{sms.Path(src + "/sparse/huge")}})
	if got := run.Committed.Counters.BytesRead; got > 2<<20 {
		t.Errorf("read %d bytes", got)
	}
	dst := cleanDir(t)
	restoreTo(t, s, run.Committed.Root, sms.RestoreOrder{Target: sms.Path(dst)})
	if d := time.Since(start); d > time.Minute {
		t.Errorf("took %v", d)
	}
	treecmp.Check(t, src+"/sparse", filepath.Join(dst, src, "sparse"), treecmp.Options{SkipRoot: true,
		Exclude: func(path string) bool { return path != "." && path != "huge" }})
}
