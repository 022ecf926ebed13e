package blob_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/blob/blobtest"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

func openDir(t *testing.T, fsys vfs.FS, root string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(fsys, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestContract(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T) blob.Store { return openDir(t, vfs.NewMem(), "/deep/store") })
	})
	t.Run("os", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T) blob.Store { return openDir(t, vfs.OS(), t.TempDir()) })
	})
}

func writeFile(t *testing.T, fsys vfs.FS, name, data string) {
	t.Helper()
	f, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func wantBlob(t *testing.T, s blob.Store, name, want string) {
	t.Helper()
	if got, err := blob.ReadAll(t.Context(), s, name, 1<<20); err != nil || string(got) != want {
		t.Fatalf("%s: %q, %v; want %q", name, got, err, want)
	}
}

func TestAdopt(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		name  string
		fsys  vfs.FS
		spool string
	}{
		{"mem", vfs.NewMem(), "/spool"},
		{"os", vfs.OS(), filepath.Join(root, "spool")},
		{"other device", crossDevice{vfs.NewMem()}, "/spool"},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := "/store"
			if c.name == "os" {
				store = filepath.Join(root, "store")
			}
			d := openDir(t, c.fsys, store)
			if err := c.fsys.MkdirAll(c.spool); err != nil {
				t.Fatal(err)
			}
			spool := filepath.Join(c.spool, "c")
			writeFile(t, c.fsys, spool, "container")
			if err := d.Adopt(t.Context(), "a/b", spool); err != nil {
				t.Fatal(err)
			}
			wantBlob(t, d, "a/b", "container")
			if _, err := c.fsys.Stat(spool); err == nil {
				t.Fatal("the spool file is still there")
			}
			writeFile(t, c.fsys, spool, "another")
			if err := d.Adopt(t.Context(), "a/b", spool); !errors.Is(err, blob.ErrExists) {
				t.Fatalf("adopted over a blob: %v", err)
			}
			wantBlob(t, d, "a/b", "container")
		})
	}
}

// crossDevice has its spool in another file system than its store.
type crossDevice struct{ *vfs.Mem }

func (c crossDevice) RenameNew(oldname, newname string) error {
	if strings.HasPrefix(oldname, "/spool") {
		return syscall.EXDEV
	}
	return c.Mem.RenameNew(oldname, newname)
}

func TestLock(t *testing.T) {
	mem := vfs.NewMem()
	d := openDir(t, mem, "/store")
	writeFile(t, mem, "/store/.tmp/left", "half")
	l, err := d.Lock(t.Context(), "host 1, pid 2")
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := mem.List("/store/.tmp"); len(names) != 0 {
		t.Fatalf("what a dead writer left is still there: %v", names)
	}
	_, err = openDir(t, mem, "/store").Lock(t.Context(), "second")
	if !errors.Is(err, blob.ErrLocked) || !strings.Contains(err.Error(), "host 1, pid 2") {
		t.Fatalf("second lock: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = d.Lock(t.Context(), "third")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	put(t, d, "a", "1") // a name that clashes with a temporary file's is no obstacle
}

func put(t *testing.T, s blob.Store, name, data string) {
	t.Helper()
	if err := blob.PutBytes(t.Context(), s, name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull(t *testing.T) {
	mem := vfs.NewMem()
	d := openDir(t, mem, "/store")
	put(t, d, "a", "1")
	mem.SetCapacity(1000)
	err := blob.PutBytes(t.Context(), d, "b", make([]byte, 2000))
	if !vfs.IsNoSpace(err) {
		t.Fatalf("put on a full disk: %v", err)
	}
	wantBlob(t, d, "a", "1")
	if n, err := d.FreeSpace(t.Context()); err != nil || n != 999 {
		t.Fatalf("%d bytes are free, %v", n, err)
	}
	put(t, d, "c", strings.Repeat("x", 999))
}

// TestFailEachOperation fails every operation of a Put and an Adopt in turn: what was reported stored is whole, what was
// not is whole or absent, and the next try works.
func TestFailEachOperation(t *testing.T) {
	for i := int64(0); ; i++ {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("/spool"); err != nil {
			t.Fatal(err)
		}
		writeFile(t, mem, "/spool/c", "adopted")
		c := errorfs.FailAt(i)
		var errPut, errAdopt error
		d, err := blob.OpenDir(errorfs.Wrap(mem, c), "/store")
		if err == nil {
			errPut = blob.PutBytes(t.Context(), d, "x/y/put", []byte("data"))
			errAdopt = d.Adopt(t.Context(), "x/z/adopted", "/spool/c")
		}
		if !c.Reached() {
			if err := errors.Join(err, errPut, errAdopt); err != nil {
				t.Fatal(err)
			}
			if i < 10 {
				t.Fatalf("only %d operations", i)
			}
			return
		}
		after := openDir(t, mem.Crash(vfs.CrashOptions{}), "/store")
		if err == nil && errPut == nil {
			wantBlob(t, after, "x/y/put", "data")
		}
		if err == nil && errAdopt == nil {
			wantBlob(t, after, "x/z/adopted", "adopted")
		}
		l, err := after.Lock(t.Context(), "next")
		if err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
		wholeOrAbsent(t, after, "x/y/put", "data")
		wholeOrAbsent(t, after, "x/z/adopted", "adopted")
		_ = l.Close()
	}
}

// wholeOrAbsent puts the blob if it is absent, and looks.
func wholeOrAbsent(t *testing.T, s blob.Store, name, data string) {
	t.Helper()
	if err := blob.PutBytes(t.Context(), s, name, []byte(data)); err != nil && !errors.Is(err, blob.ErrExists) {
		t.Fatal(err)
	}
	wantBlob(t, s, name, data)
}

// TestCrash loses power before every change of a few Puts, in all ways.
func TestCrash(t *testing.T) {
	mem := vfs.NewMem()
	type crash struct {
		fs   *vfs.Mem
		done int // Puts that had returned
	}
	var crashes []crash
	done := 0
	rnd := rand.New(rand.NewPCG(1, 1))
	fsys := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, _ string) error {
		if op.Changes() {
			for _, data := range []vfs.Fate{vfs.Lost, vfs.Kept, vfs.Torn} {
				for _, entries := range []vfs.Fate{vfs.Lost, vfs.Kept, vfs.Torn} {
					crashes = append(crashes, crash{mem.Crash(vfs.CrashOptions{Data: data, Entries: entries, Rand: rnd}), done})
				}
			}
		}
		return nil
	}))
	d := openDir(t, fsys, "/deep/store")
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 3000) }
	name := func(i int) string { return fmt.Sprintf("d%d/sub/blob", i%2) + fmt.Sprint(i) }
	for i := range 4 {
		if err := blob.PutBytes(t.Context(), d, name(i), content(i)); err != nil {
			t.Fatal(err)
		}
		done++
	}
	crashes = append(crashes, crash{mem.Crash(vfs.CrashOptions{}), done})
	for k, c := range crashes {
		s := openDir(t, c.fs, "/deep/store")
		if l, err := s.Lock(t.Context(), ""); err != nil {
			t.Fatal(err)
		} else {
			defer l.Close()
		}
		for i := range 4 {
			got, err := blob.ReadAll(t.Context(), s, name(i), 1<<20)
			if errors.Is(err, blob.ErrNotExist) && i >= c.done {
				continue
			}
			if err != nil || !bytes.Equal(got, content(i)) {
				t.Fatalf("crash %d after %d puts: blob %d has %d bytes, %v", k, c.done, i, len(got), err)
			}
		}
	}
}

// TestManyFiles reads more blobs than are kept open, and deletes one that is.
func TestManyFiles(t *testing.T) {
	d := openDir(t, vfs.OS(), t.TempDir())
	for i := range 200 {
		put(t, d, fmt.Sprintf("b%d", i), fmt.Sprint(i))
	}
	for round := range 2 {
		for i := range 200 {
			wantBlob(t, d, fmt.Sprintf("b%d", i), fmt.Sprint(i))
		}
		if err := d.Delete(t.Context(), fmt.Sprintf("b%d", 199-round)); err != nil {
			t.Fatal(err)
		}
		if err := d.ReadRange(t.Context(), fmt.Sprintf("b%d", 199-round), make([]byte, 1), 0); !errors.Is(err, blob.ErrNotExist) {
			t.Fatalf("read of a deleted blob: %v", err)
		}
		put(t, d, fmt.Sprintf("b%d", 199-round), fmt.Sprint(199-round))
	}
}
