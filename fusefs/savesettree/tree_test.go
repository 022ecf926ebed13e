//go:build linux

package savesettree_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"coffer/dedup/digest"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
	"coffer/fusefs/savesettree/savesettreetest"
)

// listEvery is more than the age that the list of savesets may have.
const listEvery = 1100 * time.Millisecond

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testTree(t testing.TB, m *savesettreetest.Store, o savesettree.Options) *savesettree.Tree {
	t.Helper()
	tree := savesettree.New(m.Source(), o)
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		if n := m.Open.Load(); n != 0 {
			t.Errorf("%d views are open after Close", n)
		}
	})
	return tree
}

// find walks a path through the unmounted tree.
func find(t testing.TB, tree *savesettree.Tree, path string) fusefs.Node {
	t.Helper()
	n, err := lookup(t.Context(), tree, path)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func lookup(ctx context.Context, tree *savesettree.Tree, path string) (fusefs.Node, error) {
	n := fusefs.Node(tree.Root())
	for name := range strings.SplitSeq(path, "/") {
		next, err := n.(fusefs.Dir).Lookup(ctx, name)
		if err != nil {
			return nil, err
		}
		n = next
	}
	return n, nil
}

func names(t testing.TB, n fusefs.Node) []string {
	t.Helper()
	var all []string
	if err := n.(fusefs.Dir).List(t.Context(), 0, func(d fusefs.Dirent) bool {
		all = append(all, d.Name)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// at is a moment of a test's life.
func at(s string) time.Time {
	when, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return when
}

// small makes a saveset's tree of a directory with few files.
func small(t testing.TB, m *savesettreetest.Store) digest.Digest {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/fstab": "none", "etc/hosts": "localhost", "readme": "hello"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := m.Capture(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return root.Digest
}

func TestNamesOfSavesets(t *testing.T) {
	m := savesettreetest.NewStore()
	root := small(t, m)
	m.Add("web1", "etc", "full", at("2026-11-22T02:15:00Z"), root)
	m.Add("web1", "etc", "incr", at("2026-11-23T03:15:00.9+01:00"), root)
	m.Add("web1", "etc", "INCR", at("2026-11-23T02:15:00Z"), root)
	m.Add("web1", "home", "FULL", at("1969-11-22T02:15:00Z"), root)
	m.Add("a/b", "..", "FULL", at("2026-11-22T02:15:00Z"), root)
	tree := testTree(t, m, savesettree.Options{})
	for path, want := range map[string]string{
		"web1":      "[etc home]",
		"web1/etc":  "[2026-11-22T02.15.00Z_FULL 2026-11-23T02.15.00Z_INCR 2026-11-23T02.15.00Z_INCR-2 latest]",
		"web1/home": "[1969-11-22T02.15.00Z_FULL latest]",
		"a%2Fb":     "[%..]",
	} {
		if got := fmt.Sprint(names(t, find(t, tree, path))); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := fmt.Sprint(names(t, tree.Root())); got != "[a%2Fb web1]" {
		t.Errorf("clients: %s", got)
	}
	target, err := find(t, tree, "web1/etc/latest").(fusefs.Symlink).Target(t.Context())
	if err != nil || target != "2026-11-23T02.15.00Z_INCR-2" {
		t.Errorf("latest is %q, %v", target, err)
	}
	if got := fmt.Sprint(names(t, find(t, tree, "web1/etc/"+target))); got != "[etc readme]" {
		t.Errorf("saveset: %s", got)
	}
	for _, path := range []string{"none", "web1/none", "web1/etc/2026-11-22T02.15.00Z_INCR", "web1/etc/" + target + "/none"} {
		if _, err := lookup(t.Context(), tree, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestSavesetsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := savesettreetest.NewStore()
		first := m.Add("c", "t", "FULL", at("2026-11-22T02:15:00Z"), small(t, m))
		tree := testTree(t, m, savesettree.Options{})
		d := find(t, tree, "c/t")
		before, _ := d.Attr(t.Context())
		link := find(t, tree, "c/t/latest")
		m.Add("c", "t", "INCR", at("2026-11-23T02:15:00Z"), first.Root)
		time.Sleep(2 * listEvery)
		added, _ := d.Attr(t.Context())
		if len(names(t, d)) != 3 || added.MTime == before.MTime {
			t.Errorf("%q, changed %v, before %v", names(t, d), added.MTime, before.MTime)
		}
		if now := find(t, tree, "c/t/latest"); now.ID() == link.ID() {
			t.Error("the link to a newer saveset is the same file as that to the older one")
		}
		m.RemoveLast()
		time.Sleep(2 * listEvery)
		gone, _ := d.Attr(t.Context())
		if len(names(t, d)) != 2 || gone.MTime == added.MTime {
			t.Errorf("%q, changed %v, before %v", names(t, d), gone.MTime, added.MTime)
		}
	})
}

func TestLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := savesettreetest.NewStore()
		m.Add("c", "t", "FULL", at("2026-11-22T02:15:00Z"), small(t, m))
		var accessed []string
		tree := testTree(t, m, savesettree.Options{IdleRelease: time.Minute, Accessed: func(s savesettree.Saveset) { accessed = append(accessed, s.Task) }})
		names(t, find(t, tree, "c/t"))
		if m.Open.Load() != 0 {
			t.Fatal("listing savesets leases one")
		}
		set := find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL")
		file := find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/readme").(fusefs.File)
		time.Sleep(30 * time.Second)
		if m.Open.Load() != 1 {
			t.Fatalf("%d leases while in use", m.Open.Load())
		}
		time.Sleep(2 * time.Minute)
		if m.Open.Load() != 0 {
			t.Fatalf("%d leases after idling", m.Open.Load())
		}
		if data, err := file.Read(t.Context(), make([]byte, 10), 1); err != nil || string(data) != "ello" {
			t.Fatalf("%q, %v", data, err)
		}
		if m.Opened.Load() != 2 || len(accessed) != 2 {
			t.Errorf("opened %d times, told %d times", m.Opened.Load(), len(accessed))
		}
		if len(names(t, set)) != 2 {
			t.Error("the saveset lost its names")
		}
	})
}

func TestInodeNumbers(t *testing.T) {
	m := savesettreetest.NewStore()
	root := small(t, m)
	m.Add("c", "t", "FULL", at("2026-11-22T02:15:00Z"), root)
	m.Add("c", "t", "FULL", at("2026-11-23T02:15:00Z"), root)
	// Their ids differ in the part only that does not go into inode numbers.
	inos := map[uint64]string{}
	for range 2 { // two trees: the numbers stay
		tree := savesettree.New(m.Source(), savesettree.Options{})
		for _, path := range []string{"c", "c/t", "c/t/latest", "c/t/2026-11-22T02.15.00Z_FULL", "c/t/2026-11-23T02.15.00Z_FULL",
			"c/t/2026-11-22T02.15.00Z_FULL/etc", "c/t/2026-11-22T02.15.00Z_FULL/etc/fstab", "c/t/2026-11-22T02.15.00Z_FULL/etc/hosts",
			"c/t/2026-11-22T02.15.00Z_FULL/readme", "c/t/2026-11-23T02.15.00Z_FULL/readme"} {
			a, err := find(t, tree, path).Attr(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if other, ok := inos[a.Ino]; ok && other != path {
				t.Errorf("%s and %s have inode number %d", path, other, a.Ino)
			}
			inos[a.Ino] = path
		}
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(inos) != 10 {
		t.Errorf("%d inode numbers for 10 files: %v", len(inos), inos)
	}
}

// mounted mounts a tree; tests that call it need FUSE.
func mounted(t *testing.T, tree *savesettree.Tree) string {
	t.Helper()
	if err := fusefs.Available(); err != nil {
		if os.Getenv("COFFER_REQUIRE_FUSE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	mnt, err := fusefs.Mount(t.Context(), dir, tree.Root(), fusefs.Options{Logger: discard()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mnt.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDamageIsEIO(t *testing.T) {
	m := savesettreetest.NewStore()
	m.Add("c", "t", "FULL", at("2026-11-22T02:15:00Z"), small(t, m))
	dir := mounted(t, testTree(t, m, savesettree.Options{}))
	set := filepath.Join(dir, "c/t/latest")
	m.Fail(errors.New("container is damaged"))
	if _, err := os.ReadDir(set); !errors.Is(err, syscall.EIO) {
		t.Errorf("list: %v, want EIO", err)
	}
	if _, err := os.ReadFile(filepath.Join(set, "readme")); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
	m.Fail(nil)
	if b, err := os.ReadFile(filepath.Join(set, "readme")); err != nil || string(b) != "hello" {
		t.Errorf("after repair: %q, %v", b, err)
	}
}
