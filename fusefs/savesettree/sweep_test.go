//go:build linux

package savesettree_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/fusefs"
	"coffer/fusefs/savesettree"
	"coffer/fusefs/savesettree/savesettreetest"
)

// fakeCache is the kernel's cache of a kernel that holds what was listed.
type fakeCache struct {
	mu   sync.Mutex // guards what follows
	held map[fusefs.ID]string
	got  map[string]string // content by name
}

func (c *fakeCache) Holds(id fusefs.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.held[id]
	return ok
}

func (c *fakeCache) Fill(id fusefs.ID, content []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got[c.held[id]] = string(content)
	return true
}

func (c *fakeCache) filled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

func (c *fakeCache) has(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.got[name]
	return ok
}

// list looks at a directory as the kernel does, which then holds its files.
func (c *fakeCache) list(t *testing.T, d fusefs.Node) (files []fusefs.File) {
	t.Helper()
	if err := d.(fusefs.Dir).List(t.Context(), 0, func(e fusefs.Dirent) bool {
		c.mu.Lock()
		c.held[e.Node.ID()] = e.Name
		c.mu.Unlock()
		if f, ok := e.Node.(fusefs.File); ok {
			files = append(files, f)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// sweepTree is a saveset of two directories of small files.
func sweepTree(t *testing.T, size int) (*savesettreetest.Store, *savesettree.Tree, *fakeCache) {
	t.Helper()
	src := t.TempDir()
	for _, dir := range []string{"a", "b"} {
		for i := range 300 {
			p := filepath.Join(src, dir, fmt.Sprintf("%s%03d", dir, i))
			content := fmt.Appendf(make([]byte, size), "content of %s%03d", dir, i)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, content, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := savesettreetest.NewStore()
	root, err := m.Capture(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	m.Add("c", "t", "FULL", at("2026-11-22T02:15:00Z"), root.Digest)
	tree := testTree(t, m, savesettree.Options{Logger: discard()})
	cache := &fakeCache{held: map[fusefs.ID]string{}, got: map[string]string{}}
	tree.Root().(fusefs.Caching).UseCache(cache)
	return m, tree, cache
}

func readAll(t *testing.T, f fusefs.File) string {
	t.Helper()
	b, err := f.Read(t.Context(), make([]byte, 1<<20), 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// TestSweepFillsTheKernelsCache reads some files in order: those that follow come by themselves, in both directories, but
// only where the kernel knows them.
func TestSweepFillsTheKernelsCache(t *testing.T) {
	m, tree, cache := sweepTree(t, 100)
	set := "c/t/2026-11-22T02.15.00Z_FULL/"
	a := cache.list(t, find(t, tree, set+"a"))
	for _, f := range a[:3] {
		readAll(t, f)
	}
	waitFor(t, "the rest of the directory is not given to the kernel", func() bool { return cache.filled() == 297 })
	waitFor(t, "the chunks of the next directory are not asked for ahead", func() bool { return m.Ahead.Load() >= 500 })
	cache.list(t, find(t, tree, set+"b"))
	readAll(t, find(t, tree, set+"b/b000").(fusefs.File))
	waitFor(t, "the next directory is not given to the kernel", func() bool { return cache.filled() == 297+299 })
	for name, content := range cache.got {
		if want := "content of " + name; content[100:] != want {
			t.Errorf("%s: %q", name, content[100:])
		}
	}
}

// TestSweepIsBounded has files of which the whole directory is more than may be given at a time.
func TestSweepIsBounded(t *testing.T) {
	_, tree, cache := sweepTree(t, 20000)
	files := cache.list(t, find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/a"))
	for _, f := range files[:3] {
		readAll(t, f)
	}
	const most = 1 << 20 / 20000
	waitFor(t, "nothing is given to the kernel", func() bool { return cache.filled() >= most-5 })
	time.Sleep(50 * time.Millisecond)
	if n := cache.filled(); n > most {
		t.Errorf("%d files were given ahead of the reader, %d are a MiB", n, most)
	}
	readAll(t, files[40]) // the kernel has those between
	waitFor(t, "no more is given to the kernel", func() bool { return cache.filled() > most+20 })
}

// TestAttributesCarryASweep reads nothing but the first files: whose other reads the kernel answers by itself is seen by
// what he asks beside, as cp -a does.
func TestAttributesCarryASweep(t *testing.T) {
	m, tree, cache := sweepTree(t, 20000)
	files := cache.list(t, find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/a"))
	for _, f := range files[:3] {
		readAll(t, f)
	}
	reads := m.Chunks.Load() // those of the sweep come on top
	for i, f := range files {
		waitFor(t, fmt.Sprintf("file %d is not given to the kernel", i), func() bool { return i < 3 || cache.has(fmt.Sprintf("a%03d", i)) })
		f.(fusefs.Xattrs).XattrNames()
	}
	if n := m.Chunks.Load() - reads; n > 300 {
		t.Errorf("%d chunks were read for 297 files", n)
	}
}

// TestListingCarriesASweep reads in one directory and lists the next: its first files are given once the kernel holds
// them, which it shows by asking for the rest of the listing.
func TestListingCarriesASweep(t *testing.T) {
	_, tree, cache := sweepTree(t, 100)
	set := "c/t/2026-11-22T02.15.00Z_FULL/"
	for _, f := range cache.list(t, find(t, tree, set+"a")) {
		readAll(t, f)
	}
	b := find(t, tree, set+"b").(fusefs.Dir)
	cache.list(t, b)
	if err := b.List(t.Context(), 600, func(e fusefs.Dirent) bool { t.Errorf("%q comes after the end", e.Name); return true }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the listed directory is not given to the kernel", func() bool { return cache.has("b000") && cache.has("b299") })
}

// TestAttributesAloneFillNothing asks for attributes as ls -l and rsync do that read nothing: without reads there is no
// sweep, and one that was is not carried on and on.
func TestAttributesAloneFillNothing(t *testing.T) {
	const size = 60000
	_, tree, cache := sweepTree(t, size)
	files := cache.list(t, find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/a"))
	for _, f := range files {
		f.(fusefs.Xattrs).XattrNames()
	}
	time.Sleep(20 * time.Millisecond)
	if n := cache.filled(); n != 0 {
		t.Fatalf("%d files were given to the kernel, none was read", n)
	}
	for _, f := range files[:3] {
		readAll(t, f)
	}
	const most = 16 << 20 / size
	for i, f := range files[:most] {
		waitFor(t, fmt.Sprintf("file %d is not given to the kernel", i), func() bool { return i < 3 || cache.has(fmt.Sprintf("a%03d", i)) })
		f.(fusefs.Xattrs).XattrNames()
	}
	for _, f := range files[most:] {
		f.(fusefs.Xattrs).XattrNames()
	}
	time.Sleep(50 * time.Millisecond)
	if n := cache.filled(); n > most {
		t.Errorf("%d files were given since the last read, %d are 16 MiB", n, most)
	}
}

func TestReadsHereAndThereFillNothing(t *testing.T) {
	_, tree, cache := sweepTree(t, 100)
	a := cache.list(t, find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/a"))
	for i := range a {
		readAll(t, a[(299-i*7%300)%300])
		readAll(t, a[299-i])
	}
	time.Sleep(20 * time.Millisecond)
	if n := cache.filled(); n > 100 {
		t.Errorf("%d files were given to the kernel", n)
	}
}

func TestDamageEndsASweep(t *testing.T) {
	m, tree, cache := sweepTree(t, 100)
	a := cache.list(t, find(t, tree, "c/t/2026-11-22T02.15.00Z_FULL/a"))
	readAll(t, a[0])
	readAll(t, a[1])
	m.Fail(errors.New("container is damaged"))
	if b, err := a[2].Read(t.Context(), make([]byte, 1000), 0); err == nil {
		t.Errorf("read %d bytes of a damaged store", len(b))
	}
	time.Sleep(20 * time.Millisecond)
	if n := cache.filled(); n != 0 {
		t.Errorf("%d files of a damaged store were given to the kernel", n)
	}
}
