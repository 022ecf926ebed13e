package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// each runs a test on every file system, with a directory to work in.
func each(t *testing.T, f func(t *testing.T, fsys vfs.FS, dir string)) {
	t.Run("os", func(t *testing.T) { f(t, vfs.OS(), t.TempDir()) })
	t.Run("mem", func(t *testing.T) { f(t, vfs.NewMem(), "/") })
	t.Run("errorfs", func(t *testing.T) { f(t, errorfs.Wrap(vfs.NewMem(), errorfs.FailAt(-1)), "/") })
}

func write(t *testing.T, fsys vfs.FS, name, data string) {
	t.Helper()
	f, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantErr(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: %v, want %v", what, err, target)
	}
}

func TestFiles(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		_, err := fsys.Open(name)
		wantErr(t, "open", err, fs.ErrNotExist)
		_, err = fsys.OpenReadWrite(name)
		wantErr(t, "open for writing", err, fs.ErrNotExist)
		write(t, fsys, name, "hello")
		_, err = fsys.Create(name)
		wantErr(t, "create again", err, fs.ErrExist)

		f, err := fsys.OpenReadWrite(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("p!"), 6); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 4)
		if n, err := f.ReadAt(p, 5); n != 3 || err != io.EOF || string(p[:n]) != "\x00p!" {
			t.Fatalf("read %q, %v", p[:n], err)
		}
		if n, err := f.ReadAt(p, 100); n != 0 || err != io.EOF {
			t.Fatalf("read beyond the end: %d, %v", n, err)
		}
		if err := f.Truncate(3); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(5); err != nil {
			t.Fatal(err)
		}
		if n, err := f.Size(); err != nil || n != 5 {
			t.Fatalf("size %d, %v", n, err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(p, 0); err == nil {
			t.Fatal("a closed file can be read")
		}
		if got := read(t, fsys, name); got != "hel\x00\x00" {
			t.Fatalf("content %q", got)
		}
		r, err := fsys.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Write([]byte("x")); err == nil {
			t.Fatal("a file open for reading was written")
		}
		st, err := fsys.Stat(name)
		if err != nil || st.Size() != 5 || st.IsDir() || st.Name() != "f" {
			t.Fatalf("stat: %v, %v", st, err)
		}
	})
}

func TestNames(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		p := func(n string) string { return filepath.Join(dir, n) }
		wantErr(t, "mkdir", fsys.Mkdir(p("a/b")), fs.ErrNotExist)
		if err := fsys.MkdirAll(p("a/b")); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "mkdir again", fsys.Mkdir(p("a")), fs.ErrExist)
		write(t, fsys, p("a/x"), "x")
		write(t, fsys, p("a/y"), "y")
		wantErr(t, "rename to a name in use", fsys.RenameNew(p("a/x"), p("a/y")), fs.ErrExist)
		wantErr(t, "rename of nothing", fsys.RenameNew(p("a/z"), p("a/q")), fs.ErrNotExist)
		if err := fsys.RenameNew(p("a/x"), p("a/b/x")); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Rename(p("a/b/x"), p("a/y")); err != nil {
			t.Fatal(err)
		}
		if got := read(t, fsys, p("a/y")); got != "x" {
			t.Fatalf("content %q", got)
		}
		if names, err := fsys.List(p("a")); err != nil || !slices.Equal(names, []string{"b", "y"}) {
			t.Fatalf("list %q, %v", names, err)
		}
		_, err := fsys.List(p("nothing"))
		wantErr(t, "list", err, fs.ErrNotExist)
		wantErr(t, "sync", fsys.SyncDir(p("nothing")), fs.ErrNotExist)
		if err := fsys.Remove(p("a")); err == nil {
			t.Fatal("a directory that is not empty was removed")
		}
		for _, n := range []string{"a/y", "a/b", "a"} {
			if err := fsys.Remove(p(n)); err != nil {
				t.Fatal(err)
			}
		}
		wantErr(t, "remove", fsys.Remove(p("a")), fs.ErrNotExist)
		if err := vfs.MkdirAllSync(fsys, p("q/r/s")); err != nil {
			t.Fatal(err)
		}
		for _, data := range []string{"one", "two"} {
			if err := vfs.WriteFileSync(fsys, p("q/f"), []byte(data)); err != nil {
				t.Fatal(err)
			}
			if got := read(t, fsys, p("q/f")); got != data {
				t.Fatalf("content %q", got)
			}
		}
		if n, err := fsys.Free(dir); err != nil || n <= 0 {
			t.Fatalf("%d bytes free, %v", n, err)
		}
	})
}

func TestLock(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "lock")
		for range 2 {
			l, err := fsys.Lock(name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = fsys.Lock(name)
			wantErr(t, "second lock", err, vfs.ErrLocked)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCapacity(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(10)
	f, err := m.Create("/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Write(make([]byte, 12))
	if n != 10 || !vfs.IsNoSpace(err) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if n, err := f.WriteAt([]byte("over"), 3); n != 4 || err != nil {
		t.Fatalf("overwrote %d, %v", n, err)
	}
	if err := f.Truncate(4); err != nil {
		t.Fatal(err)
	}
	if free, _ := m.Free("/"); free != 6 {
		t.Fatalf("%d bytes free", free)
	}
	if err := m.Remove("/f"); err != nil {
		t.Fatal(err)
	}
	if free, _ := m.Free("/"); free != 10 {
		t.Fatalf("%d bytes free", free)
	}
	if !vfs.IsCrossDevice(&fs.PathError{Err: syscall.EXDEV}) || vfs.IsNoSpace(nil) {
		t.Fatal("errors are told apart wrongly")
	}
}

func TestCrash(t *testing.T) {
	m := vfs.NewMem()
	f, err := m.Create("/synced")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.Write([]byte("safe"))
	must(err)
	must(f.Sync())
	must(m.Mkdir("/dir"))
	must(m.SyncDir("/"))
	_, err = f.Write([]byte("12345678"))
	must(err)
	write(t, m, "/new", "new")
	must(m.Rename("/synced", "/dir/moved"))

	c := m.Crash(vfs.CrashOptions{})
	if names, _ := c.List("/"); !slices.Equal(names, []string{"dir", "synced"}) {
		t.Fatalf("lost: %q", names)
	}
	if got := read(t, c, "/synced"); got != "safe" {
		t.Fatalf("lost: %q", got)
	}
	c = m.Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept})
	if got := read(t, c, "/dir/moved"); got != "safe12345678" {
		t.Fatalf("kept: %q", got)
	}
	c = m.Crash(vfs.CrashOptions{Data: vfs.Torn, Entries: vfs.Kept})
	if got := read(t, c, "/dir/moved"); got != "safe1234" {
		t.Fatalf("torn: %q", got)
	}
	// What was written on goes its own way.
	write(t, c, "/new2", "")
	if _, err := m.Stat("/new2"); err == nil {
		t.Fatal("the clone is not a copy")
	}
	must(m.SyncDir("/"))
	c = m.Crash(vfs.CrashOptions{})
	if names, _ := c.List("/dir"); len(names) != 0 {
		t.Fatalf("a rename of which only the old side was synced left %q", names)
	}
	if got := read(t, c, "/new"); got != "" {
		t.Fatalf("a name without its bytes: %q", got)
	}
	must(m.SyncDir("/dir"))
	must(f.Sync())
	if got := read(t, m.Crash(vfs.CrashOptions{}), "/dir/moved"); got != "safe12345678" {
		t.Fatalf("all synced: %q", got)
	}
}

func TestTornWritesDiffer(t *testing.T) {
	m := vfs.NewMem()
	f, err := m.Create("/f")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := f.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
			t.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	seen, holes := map[int]bool{}, false
	for range 100 {
		b := read(t, m.Crash(vfs.CrashOptions{Data: vfs.Torn, Entries: vfs.Kept, Rand: rnd}), "/f")
		seen[len(b)] = true
		holes = holes || bytes.IndexByte([]byte(b), 0) >= 0
	}
	if len(seen) < 20 || !holes {
		t.Fatalf("%d lengths, holes: %v", len(seen), holes)
	}
}

// TestWriteFileSyncCrash: the small file is the old one or the new one at every instant.
func TestWriteFileSyncCrash(t *testing.T) {
	m := vfs.NewMem()
	if err := vfs.WriteFileSync(m, "/f", []byte("old")); err != nil {
		t.Fatal(err)
	}
	var crashes []*vfs.Mem
	rnd := rand.New(rand.NewPCG(1, 1))
	fsys := errorfs.Wrap(m, errorfs.Func(func(errorfs.Op, string) error {
		for _, fate := range []vfs.Fate{vfs.Lost, vfs.Kept, vfs.Torn} {
			crashes = append(crashes, m.Crash(vfs.CrashOptions{Data: fate, Entries: fate, Rand: rnd}))
		}
		return nil
	}))
	if err := vfs.WriteFileSync(fsys, "/f", []byte("new")); err != nil {
		t.Fatal(err)
	}
	for i, c := range crashes {
		if got := read(t, c, "/f"); got != "old" && got != "new" {
			t.Fatalf("crash %d: %q", i, got)
		}
	}
	if got := read(t, m.Crash(vfs.CrashOptions{}), "/f"); got != "new" {
		t.Fatalf("after it returned: %q", got)
	}
}

func TestInjection(t *testing.T) {
	m := vfs.NewMem()
	c := errorfs.FailFrom(1)
	fsys := errorfs.Wrap(m, c)
	f, err := fsys.Create("/a")
	if err != nil || c.Reached() {
		t.Fatalf("the first operation: %v", err)
	}
	for range 2 {
		_, err = f.Write([]byte("x"))
		wantErr(t, "write", err, errorfs.ErrInjected)
	}
	wantErr(t, "sync", f.Sync(), errorfs.ErrInjected)
	if err := f.Close(); err != nil || c.Count() != 4 || !c.Reached() {
		t.Fatalf("%d operations, close: %v", c.Count(), err)
	}
	if got := read(t, m, "/a"); got != "" {
		t.Fatalf("a failed write wrote %q", got)
	}
	if errorfs.OpSyncDir.String() != "syncdir" || errorfs.Op(200).String() != "op(0xc8)" {
		t.Fatal("names of operations")
	}
}

// TestPunchHole: a punched range reads as zeros, keeps the file's size, gives its space back, and is lost in a crash that
// comes before the sync.
func TestPunchHole(t *testing.T) {
	each(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f, err := fsys.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		full := bytes.Repeat([]byte("x"), 5*4096+100)
		if _, err := f.WriteAt(full, 0); err != nil {
			t.Fatal(err)
		}
		err = vfs.PunchHole(f, 4000, 2*4096)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skipf("the file system of %s has no holes: %v", dir, err)
		}
		if err != nil {
			t.Fatal(err)
		}
		clear(full[4000 : 4000+2*4096])
		got := make([]byte, len(full))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, full) {
			t.Fatalf("punched file differs, %v", err)
		}
		if n, err := f.Size(); err != nil || n != int64(len(full)) {
			t.Fatalf("size %d, %v", n, err)
		}
	})
	m := vfs.NewMem()
	m.SetCapacity(4 * 4096)
	f, err := m.Create("/f")
	if err != nil {
		t.Fatal(err)
	}
	free := func(fsys *vfs.Mem, want int64) {
		t.Helper()
		if n, _ := fsys.Free("/"); n != want {
			t.Fatalf("%d bytes free, want %d", n, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Truncate(100 * 4096))
	free(m, 4*4096)
	_, err = f.WriteAt(make([]byte, 3*4096), 10*4096+1)
	must(err)
	free(m, 0)
	n, err := f.WriteAt(make([]byte, 2*4096), 13*4096)
	if n != 4096 || !vfs.IsNoSpace(err) {
		t.Fatalf("wrote %d on a full disk, %v", n, err)
	}
	must(f.Sync())
	must(vfs.PunchHole(f, 10*4096, 2*4096+1))
	free(m, 2*4096)
	must(m.SyncDir("/"))
	free(m.Crash(vfs.CrashOptions{}), 0)
	must(f.Sync())
	free(m.Crash(vfs.CrashOptions{}), 2*4096)
	must(f.Truncate(0))
	free(m, 4*4096)
}
