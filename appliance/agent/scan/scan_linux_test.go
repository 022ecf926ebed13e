package scan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coffer/appliance/agent/filter"
)

// walk returns the paths that a scan shows below dir, relative to it.
func walk(t *testing.T, opts Options, dir string) []string {
	t.Helper()
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	var visit func(d *Dir)
	visit = func(d *Dir) {
		defer d.Release()
		if !slices.IsSortedFunc(d.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%s is not sorted", d.Path())
		}
		for i := range d.Entries {
			e := &d.Entries[i]
			if rel, ok := strings.CutPrefix(d.PathOf(e.Name), dir+"/"); ok {
				out = append(out, rel)
			}
			if e.Sub != nil {
				if err := e.Sub.Open(); err != nil {
					t.Errorf("open %s: %v", e.Sub.Path(), err)
				}
				visit(e.Sub)
			}
		}
	}
	visit(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) != 0 {
		t.Errorf("%d directories are still open", len(s.open))
	}
	return out
}

func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(f), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func check(t *testing.T, got []string, want string) {
	t.Helper()
	if g := strings.Join(got, " "); g != want {
		t.Errorf("shows %q, want %q", g, want)
	}
}

func TestOnlySourcesAndWhatLeadsThere(t *testing.T) {
	dir := tree(t, "a/x", "a/y", "b/deep/src/f", "b/other", "c")
	check(t, walk(t, Options{Sources: []string{dir + "/b/deep/src", dir + "/a", dir + "/a/x"}}, dir),
		"a a/x a/y b b/deep b/deep/src b/deep/src/f")
}

func TestSiblingsAreInOrderOfTheirBytes(t *testing.T) {
	dir := tree(t, "a/x", "a-b", "a.c", "ab", "B", "\xff", "ä")
	check(t, walk(t, Options{Sources: []string{dir}}, dir), "B a a/x a-b a.c ab ä \xff")
}

func TestManyWorkersShowTheSame(t *testing.T) {
	var files []string
	for i := range 40 {
		for j := range 30 {
			files = append(files, fmt.Sprintf("d%d/e%d/f", i, j))
		}
	}
	dir := tree(t, files...)
	alone := walk(t, Options{Sources: []string{dir}, Workers: -1}, dir)
	for _, workers := range []int{1, 4, 16} {
		if got := walk(t, Options{Sources: []string{dir}, Workers: workers}, dir); !slices.Equal(got, alone) {
			t.Errorf("%d workers show another tree", workers)
		}
	}
}

func TestExcludedDirectoriesLeadToSources(t *testing.T) {
	dir := tree(t, "keep", "cache/junk", "cache/in/src/f", "cache/in/src/g.tmp")
	f, err := filter.New([]string{dir + "/cache", "*.tmp"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, walk(t, Options{Sources: []string{dir, dir + "/cache/in/src"}, Exclude: f}, dir),
		"cache cache/in cache/in/src cache/in/src/f keep")
}

func TestSymlinkedSources(t *testing.T) {
	dir := tree(t, "real/data/f", "real/no")
	for link, target := range map[string]string{"link": "real", "abs": dir + "/link/data", "dangling": "nowhere", "loop": "loop"} {
		if err := os.Symlink(target, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	check(t, walk(t, Options{Sources: []string{dir + "/abs"}}, dir), "abs link real real/data real/data/f")
	check(t, walk(t, Options{Sources: []string{dir + "/dangling"}}, dir), "dangling")
	if _, err := New(Options{Sources: []string{dir + "/loop"}}); err == nil {
		t.Error("a loop of symlinks is a source")
	}
}

func TestMissingSources(t *testing.T) {
	_, err := New(Options{Sources: []string{"/etc", "/no/such/a", "/no/such/b", "relative"}})
	if !errors.Is(err, fs.ErrNotExist) || strings.Count(fmt.Sprint(err), "\n") != 2 {
		t.Errorf("error is %v", err)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("no source is no error")
	}
}

func mount(t *testing.T, fstype, dir string) {
	t.Helper()
	if err := unix.Mount(fstype, dir, fstype, 0, ""); err != nil {
		t.Skipf("cannot mount %s: %v", fstype, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func TestOtherFileSystems(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := tree(t, "a/tmp/", "a/proc/", "b")
	mount(t, "tmpfs", dir+"/a/tmp")
	mount(t, "proc", dir+"/a/proc")
	if err := os.MkdirAll(dir+"/a/tmp/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	check(t, walk(t, Options{Sources: []string{dir}}, dir), "a a/proc a/tmp a/tmp/sub b")
	check(t, walk(t, Options{Sources: []string{dir}, OneFileSystem: true}, dir), "a a/proc a/tmp b")
	check(t, walk(t, Options{Sources: []string{dir, dir + "/a/tmp/sub"}, OneFileSystem: true}, dir), "a a/proc a/tmp a/tmp/sub b")
	check(t, walk(t, Options{Sources: []string{dir + "/a/proc/version"}}, dir), "a a/proc a/proc/version")
}

func TestSourcesHaveAnIdentity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := tree(t, "src/")
	id := func() string {
		s, err := New(Options{Sources: []string{dir + "/src"}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Sources(t.Context())
	}
	first := id()
	if first == "" || id() != first {
		t.Errorf("identity is %q, then %q", first, id())
	}
	mount(t, "tmpfs", dir+"/src")
	if id() == first {
		t.Error("another file system has the same identity")
	}
}
