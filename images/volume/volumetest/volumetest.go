// Package volumetest holds the readers of file systems against directories that Linux shows: it makes trees (Make), and
// compares a volume.FS with one (Compare). Every reader beside package volume must pass, with what its file system can hold.
package volumetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"coffer/images/volume"
)

// Options say what a file system can hold.
type Options struct {
	Files    int  // 0 = 1000
	Unix     bool // symbolic links, fifos, owners, modes, several names of a file
	Holes    bool
	LongName int  // bytes of the longest name; 0 = 255
	Seconds  bool // times are whole seconds, or coarser: they are not compared
	CaseFold bool // names that differ in case alone are one name
}

// Make fills dir, which exists, with a tree of files, and returns the seed that made it.
func Make(t testing.TB, dir string, o Options) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("COFFER_SEED"); s != "" {
		_, _ = fmt.Sscan(s, &seed)
	}
	t.Logf("COFFER_SEED=%d", seed)
	m := maker{t, rand.New(rand.NewPCG(seed, 0)), o}
	m.tree(dir)
}

type maker struct {
	t testing.TB
	r *rand.Rand
	o Options
}

func (m maker) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m maker) tree(dir string) {
	files := m.o.Files
	if files == 0 {
		files = 1000
	}
	long := m.o.LongName
	if long == 0 {
		long = 255
	}
	m.write(filepath.Join(dir, string(bytes.Repeat([]byte("n"), long))), 10)
	m.write(filepath.Join(dir, "empty"), 0)
	m.write(filepath.Join(dir, "large"), 3<<20+123)
	for _, name := range []string{"größe.txt", "日本語のファイル.dat", "файл с пробелами", "emoji 🎉.bin", "a+b,c;d=[e]"} {
		m.write(filepath.Join(dir, name), 100+m.r.IntN(9000))
	}
	deep := dir
	for i := range 12 {
		deep = filepath.Join(deep, fmt.Sprint("deep", i))
	}
	m.check(os.MkdirAll(deep, 0o755))
	m.write(filepath.Join(deep, "bottom"), 5000)
	m.check(os.Mkdir(filepath.Join(dir, "nothing"), 0o755))
	many := filepath.Join(dir, "many")
	m.check(os.Mkdir(many, 0o755))
	for i := range files * 3 / 4 { // one large directory
		m.write(filepath.Join(many, fmt.Sprintf("a file with a longer name, number %d", i)), m.r.IntN(3000))
	}
	for i := range files / 4 {
		d := filepath.Join(dir, fmt.Sprint("d", i%7), fmt.Sprint("e", i%3))
		m.check(os.MkdirAll(d, 0o755))
		m.write(filepath.Join(d, fmt.Sprint("f", i)), m.r.IntN(40<<10))
	}
	if m.o.Holes {
		m.sparse(filepath.Join(dir, "sparse"), 20<<20+77, 40)
		m.sparse(filepath.Join(dir, "only a hole"), 9<<20, 0)
	}
	if m.o.Unix {
		m.unix(dir)
	}
}

func (m maker) write(path string, n int) {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.r.Uint32())
	}
	m.check(os.WriteFile(path, b, 0o644))
	m.check(os.Chtimes(path, time.Time{}, time.Unix(1_600_000_000+int64(m.r.IntN(90_000_000)), 0)))
}

// sparse writes pieces in random places, which also fragments the file.
func (m maker) sparse(path string, size int64, pieces int) {
	f, err := os.Create(path)
	m.check(err)
	m.check(f.Truncate(size))
	for range pieces {
		b := bytes.Repeat([]byte{byte(1 + m.r.IntN(255))}, 1+m.r.IntN(20000))
		_, err := f.WriteAt(b, m.r.Int64N(size-int64(len(b))))
		m.check(err)
	}
	if pieces > 0 { // mke2fs drops a hole at the end of a file with inline data
		_, err := f.WriteAt([]byte("end"), size-3)
		m.check(err)
	}
	m.check(f.Close())
	m.check(os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000, 0)))
}

func (m maker) unix(dir string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	m.check(os.Symlink("large", in("short link")))
	m.check(os.Symlink(string(bytes.Repeat([]byte("long/"), 60)), in("long link")))
	m.check(os.Symlink("../no/such/file", in("dangling link")))
	m.check(os.Link(in("large"), in("another name")))
	m.check(os.Chmod(in("empty"), 0o4751))
	m.check(os.Chmod(in("nothing"), 0o1777))
	m.check(os.Lchown(in("large"), 1234567, 7654321))
}

// Compare holds all of a file system against a directory.
func Compare(t testing.TB, f volume.FS, dir string, o Options) {
	t.Helper()
	root, err := f.Root()
	if err != nil {
		t.Fatal(err)
	}
	c := comparer{t: t, o: o}
	c.dir(root, dir)
	t.Logf("%d files compared", c.files)
}

type comparer struct {
	t     testing.TB
	o     Options
	files int
}

// skipped are names that a file system has of its own.
var skipped = map[string]bool{"lost+found": true}

func (c *comparer) dir(d volume.Dir, path string) {
	c.t.Helper()
	var got []string
	entries := map[string]volume.Entry{}
	err := d.List(func(e volume.Entry) bool {
		if !skipped[e.Name] {
			got = append(got, e.Name)
			entries[e.Name] = e
		}
		return true
	})
	if err != nil {
		c.t.Fatalf("%s: %v", path, err)
	}
	sort.Strings(got)
	des, err := os.ReadDir(path)
	if err != nil {
		c.t.Fatal(err)
	}
	var want []string
	for _, de := range des {
		if !skipped[de.Name()] {
			want = append(want, de.Name())
		}
	}
	sort.Strings(want)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Fatalf("%s: %d names, want %d:\n%.2000q\n%.2000q", path, len(got), len(want), got, want)
	}
	for _, name := range want {
		n, err := d.Lookup(name)
		if err != nil {
			c.t.Fatalf("%s/%s: %v", path, name, err)
		}
		if same, err := d.Open(entries[name]); err != nil || same.Attr() != n.Attr() || same.Attr().Ino != entries[name].Ino {
			c.t.Errorf("%s/%s: %+v; as it is listed: %+v, %v", path, name, n.Attr(), same, err)
		}
		c.node(n, filepath.Join(path, name))
	}
	if _, err := d.Lookup("there is no such name"); !errors.Is(err, fs.ErrNotExist) {
		c.t.Errorf("%s: a name that is not there: %v", path, err)
	}
}

func (c *comparer) node(n volume.Node, path string) {
	c.t.Helper()
	c.files++
	st, err := os.Lstat(path)
	if err != nil {
		c.t.Fatal(err)
	}
	c.attr(n.Attr(), st, path)
	switch n := n.(type) {
	case volume.Dir:
		if !st.IsDir() {
			c.t.Fatalf("%s is a directory", path)
		}
		c.dir(n, path)
	case volume.Link:
		want, err := os.Readlink(path)
		if err != nil {
			c.t.Fatal(err)
		}
		if got, err := n.Target(); err != nil || got != want {
			c.t.Errorf("%s leads to %q, want %q: %v", path, got, want, err)
		}
	case volume.File:
		c.file(n, path)
	default:
		if st.Mode().IsRegular() || st.IsDir() {
			c.t.Errorf("%s is a %T", path, n)
		}
	}
}

func (c *comparer) attr(a volume.Attr, st os.FileInfo, path string) {
	c.t.Helper()
	if !st.IsDir() && a.Size != st.Size() {
		c.t.Errorf("%s has %d bytes, want %d", path, a.Size, st.Size())
	}
	if c.o.Unix {
		c.unix(a, st, path)
	}
	if !c.o.Seconds && st.Mode().IsRegular() && !a.MTime.Equal(st.ModTime()) {
		c.t.Errorf("%s is of %v, want %v", path, a.MTime, st.ModTime())
	}
}

func (c *comparer) file(f volume.File, path string) {
	c.t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Attr().Size))
	if err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("%s: %d bytes, want %d; equal: %v; %v", path, len(got), len(want), bytes.Equal(got, want), err)
	}
	at := int64(0)
	err = f.Extents(0, f.Attr().Size, func(n int64, hole bool) bool {
		if n <= 0 || at+n > int64(len(want)) || hole && len(bytes.Trim(want[at:at+n], "\x00")) > 0 {
			c.t.Fatalf("%s: extent of %d bytes at %d, hole: %v", path, n, at, hole)
		}
		at += n
		return true
	})
	if err != nil || at != int64(len(want)) {
		c.t.Fatalf("%s: extents end at %d of %d, %v", path, at, len(want), err)
	}
	for off := int64(len(want)) - 1; off > 0; off = off*2/3 - 1 {
		p := make([]byte, min(int64(len(want))-off, 10000))
		if _, err := f.ReadAt(p, off); err != nil && err != io.EOF || !bytes.Equal(p, want[off:off+int64(len(p))]) {
			c.t.Fatalf("%s: %d bytes at %d: %v", path, len(p), off, err)
		}
	}
	if n, err := f.ReadAt(make([]byte, 1), int64(len(want))); n != 0 || err != io.EOF {
		c.t.Errorf("%s: behind the end: %d, %v", path, n, err)
	}
}

// Walk reads all of a file system that may be damaged, within bounds, and wants no more than that it ends.
func Walk(f volume.FS) {
	root, err := f.Root()
	if err != nil {
		return
	}
	w := walk{left: 300}
	w.dir(root, 8)
}

type walk struct{ left int }

func (w *walk) dir(d volume.Dir, depth int) {
	var names []string
	_ = d.List(func(e volume.Entry) bool {
		names = append(names, e.Name)
		return len(names) < 50
	})
	for _, name := range names {
		if w.left--; w.left < 0 {
			return
		}
		n, err := d.Lookup(name)
		if err != nil {
			continue
		}
		switch n := n.(type) {
		case volume.Dir:
			if depth > 0 {
				w.dir(n, depth-1)
			}
		case volume.Link:
			_, _ = n.Target()
		case volume.File:
			b := make([]byte, 64<<10)
			size := n.Attr().Size
			for _, off := range []int64{0, size / 2, size - 100} {
				_, _ = n.ReadAt(b, off)
			}
			extents := 0
			_ = n.Extents(0, size, func(int64, bool) bool { extents++; return extents < 100 })
		}
	}
}
