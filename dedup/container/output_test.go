package container

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/vfs"
)

// directFS has files that can be written past a cache, or say so at first.
type directFS struct {
	vfs.FS
	refuseSwitch, refuseWrite bool

	mu             sync.Mutex // guards all below
	direct, cached int64      // bytes written
	bad            []int64    // offsets of writes past the cache that are not aligned
}

func (d *directFS) Create(name string) (vfs.File, error) {
	f, err := d.FS.Create(name)
	return &directFile{File: f, d: d}, err
}

type directFile struct {
	vfs.File
	d  *directFS
	on bool
}

func (f *directFile) SetDirect(on bool) error {
	if on && f.d.refuseSwitch {
		return &fs.PathError{Op: "set", Path: f.Name(), Err: syscall.EINVAL}
	}
	f.on = on
	return nil
}

func (f *directFile) WriteAt(p []byte, off int64) (int, error) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !f.on:
		d.cached += int64(len(p))
	case d.refuseWrite:
		return 0, &fs.PathError{Op: "write", Path: f.Name(), Err: syscall.EINVAL}
	default:
		d.direct += int64(len(p))
		if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%vfs.DirectAlign != 0 || len(p)%vfs.DirectAlign != 0 || off%vfs.DirectAlign != 0 {
			d.bad = append(d.bad, off)
		}
	}
	return f.File.WriteAt(p, off)
}

// largeFrames has frames of up to the largest chunk among small ones.
func largeFrames() []frame.Frame {
	frames := testFrames(200)
	h := digest.NewHasher([32]byte{5})
	for i, n := range []int{frame.MaxChunk, 3 << 20, frame.MaxChunk - 1, pieceSize} {
		p := bytes.Repeat([]byte{byte(i), 1, 2}, n/3+1)[:n]
		one := frame.Frame{Refs: []frame.Ref{{Digest: h.Sum(p), Length: uint32(n)}}, Codec: frame.Raw, Stored: p}
		frames = append(frames[:i*40], append([]frame.Frame{one}, frames[i*40:]...)...)
	}
	return frames
}

// TestPastCache writes the same container in each way that a file system allows: the bytes are the same.
func TestPastCache(t *testing.T) {
	frames, ring := largeFrames(), testRing(t, true)
	for _, c := range []struct {
		name   string
		kind   Kind
		fs     *directFS
		direct bool
	}{
		{"data", Data, &directFS{}, true},
		{"nodes", Node, &directFS{}, false},
		{"refused at once", Data, &directFS{refuseSwitch: true}, false},
		{"refused when written", Data, &directFS{refuseWrite: true}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			c.fs.FS = mem
			b, err := blob.OpenDir(mem, "/store")
			if err != nil {
				t.Fatal(err)
			}
			h := testHeader(ring)
			h.Kind = c.kind
			d, err := testStore{fs: c.fs, blob: b}.write(t.Context(), h, frames)
			if err != nil {
				t.Fatal(err)
			}
			checkAll(t, b, d, frames)
			if err := scanWhole(t.Context(), b, d.ID()); err != nil {
				t.Fatal(err)
			}
			if len(c.fs.bad) > 0 {
				t.Fatalf("written past the cache, but not aligned: at %v", c.fs.bad)
			}
			if got := c.fs.direct > c.fs.cached; got != c.direct || c.fs.direct+c.fs.cached != d.Size() {
				t.Fatalf("%d bytes past the cache, %d through it, of %d", c.fs.direct, c.fs.cached, d.Size())
			}
		})
	}
}

// TestAbandonWhileWriting abandons a writer at any time: nothing is left, and nothing is still being written.
func TestAbandonWhileWriting(t *testing.T) {
	frames, ring := testFrames(120), testRing(t, true)
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		mem := vfs.NewMem()
		w, err := NewWriter(&directFS{FS: mem}, "/c", testHeader(ring))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames[:rnd.IntN(len(frames))] {
			if _, err := w.Append(f); err != nil {
				t.Fatal(err)
			}
		}
		w.Abandon()
		w.Abandon()
		if names, _ := mem.List("/"); len(names) != 0 {
			t.Fatalf("spool is not empty: %v", names)
		}
		if _, err := w.Seal(t.Context()); !errors.Is(err, ErrClosed) {
			t.Fatalf("seal after it was abandoned: %v", err)
		}
	}
}

// TestDisk writes onto the disk of the machine, whatever that can do.
func TestDisk(t *testing.T) {
	dir, frames, ring := t.TempDir(), largeFrames(), testRing(t, true)
	b, err := blob.OpenDir(vfs.OS(), filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(vfs.OS(), filepath.Join(dir, "c"), testHeader(ring))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if _, err := w.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := w.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Store(t.Context(), vfs.OS(), b, sealed); err != nil {
		t.Fatal(err)
	}
	checkAll(t, b, sealed.Directory, frames)
	if err := scanWhole(t.Context(), b, sealed.Directory.ID()); err != nil {
		t.Fatal(err)
	}
}
