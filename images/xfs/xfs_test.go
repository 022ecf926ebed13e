package xfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coffer/images/volume"
	"coffer/images/volume/volumetest"
)

func open(t testing.TB, image string) *FS {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrees(t *testing.T) {
	o := volumetest.Options{Unix: true, Holes: true}
	dir := t.TempDir()
	volumetest.Make(t, dir, o)
	for _, args := range []string{"", "-m crc=0", "-b size=1024 -n size=4096", "-m crc=0 -n size=16384,ftype=0", "-i size=2048"} {
		t.Run(args, func(t *testing.T) {
			image := volumetest.XFS(t, "320M", func(mnt string) {
				volumetest.Command(t, "cp", "-a", "--sparse=always", dir+"/.", mnt)
			}, strings.Fields(args)...)
			volumetest.Compare(t, open(t, image), dir, o)
		})
	}
}

// A file in thousands of pieces needs a tree of extents of more than one level; a directory of many names an index of its own;
// one of long gone names has holes.
func TestFragmented(t *testing.T) {
	want := t.TempDir()
	image := volumetest.XFS(t, "320M", func(mnt string) {
		for _, root := range []string{mnt, want} {
			f, err := os.Create(filepath.Join(root, "pieces"))
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1024)
			for i := range int64(8000) { // every second block
				for j := range b {
					b[j] = byte(i*7 + int64(j))
				}
				if _, err := f.WriteAt(b, i*2048); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(root, "d"), 0o755); err != nil {
				t.Fatal(err)
			}
			for i := range 6000 {
				name := filepath.Join(root, "d", fmt.Sprintf("%0120d", i))
				if err := os.WriteFile(name, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range 3000 {
			for _, root := range []string{mnt, want} {
				if err := os.Remove(filepath.Join(root, "d", fmt.Sprintf("%0120d", i))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}, "-b", "size=1024")
	f := open(t, image)
	volumetest.Compare(t, f, want, volumetest.Options{Seconds: true})
	root, err := f.Root()
	if err != nil {
		t.Fatal(err)
	}
	n, err := root.Lookup("pieces")
	if err != nil {
		t.Fatal(err)
	}
	if x := n.(file); x.form != formTree || be.Uint16(x.fork) < 2 {
		t.Errorf("form %d, level %d: not what was to be tested", x.form, be.Uint16(x.fork))
	}
}

func TestRefused(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 4096), "sizes": append([]byte("XFSB"), make([]byte, 4096)...)} {
		_, err := Open(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, volume.ErrCorrupt) && !errors.Is(err, volume.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := small(t)
	b[216] = 0x80
	if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, volume.ErrUnsupported) || !strings.Contains(err.Error(), "0x80000000") {
		t.Error(err)
	}
}

// small is a file system with some of each: its first two megabytes.
func small(t testing.TB) []byte {
	packed, err := os.Open(filepath.Join("testdata", "small.img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A file system that Linux made, without mounting one: it runs on every machine.
func TestSmall(t *testing.T) {
	f, err := Open(bytes.NewReader(small(t)), 320<<20)
	if err != nil {
		t.Fatal(err)
	}
	root, err := f.Root()
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	if err := root.List(func(volume.Entry) bool { names++; return true }); err != nil || names != 65 {
		t.Errorf("%d names, %v", names, err)
	}
	for name, want := range map[string]string{"a": "hi\n", "file33": "33\n", "file60": "60\n"} {
		n, err := root.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(io.NewSectionReader(n.(volume.File), 0, n.Attr().Size)); err != nil || string(b) != want {
			t.Errorf("%s has %q, want %q: %v", name, b, want, err)
		}
	}
	for name, want := range map[string]string{"l": "a", "ll": strings.Repeat("x/", 300)} {
		n, err := root.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		if target, err := n.(volume.Link).Target(); err != nil || target != want {
			t.Errorf("%s leads to %.40q: %v", name, target, err)
		}
	}
}

// Whatever a file system says, reading it ends, without a panic and in bounded memory.
func FuzzFS(f *testing.F) {
	b := small(f)
	f.Add(uint32(4), []byte{0}, uint32(64<<10), []byte{0})
	f.Fuzz(func(t *testing.T, at uint32, change []byte, at2 uint32, change2 []byte) {
		if len(change)+len(change2) > 1<<12 {
			return
		}
		b := bytes.Clone(b)
		copy(b[int(at)%len(b):], change)
		copy(b[int(at2)%len(b):], change2)
		n, err := Open(bytes.NewReader(b), 320<<20)
		if err == nil {
			volumetest.Walk(n)
		}
	})
}
