package dedup

import (
	"bytes"
	"context"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// fileMemory is a FileSource, and takes what a file is made of.
type fileMemory struct {
	hash, node *digest.Hasher

	mu     sync.Mutex // guards all below
	nodes  map[digest.Digest][]byte
	chunks map[digest.Digest][]byte
	ahead  map[digest.Digest]int // how often a chunk was asked for ahead
}

func newFileMemory() *fileMemory {
	k := digest.Derive(digest.DomainKey{7})
	return &fileMemory{hash: digest.NewHasher(k.Data), node: digest.NewHasher(k.Node),
		nodes: map[digest.Digest][]byte{}, chunks: map[digest.Digest][]byte{}, ahead: map[digest.Digest]int{}}
}

func (m *fileMemory) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	m.nodes[d] = slices.Clone(rec)
	return nil
}

func (m *fileMemory) Node(_ context.Context, d digest.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec, ok := m.nodes[d]; ok {
		return rec, nil
	}
	return nil, errors.New("no such node")
}

func (m *fileMemory) Chunk(_ context.Context, d digest.Digest) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.chunks[d]; ok {
		return b, nil
	}
	return nil, errors.New("no such chunk")
}

func (m *fileMemory) ReadAhead(ds []digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range ds {
		m.ahead[d]++
	}
}

// zeroRuns are lengths to cut content into: holes where it is all zeros.
func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// image makes a disk image of content.
func (m *fileMemory) image(t testing.TB, content []byte, chunk int) recipe.Entry {
	t.Helper()
	e := recipe.Entry{Name: "disk.raw", Mode: recipe.ModeRegular | 0o600, Size: uint64(len(content))}
	b := recipe.NewImageBuilder(m, m.node)
	if err := b.Start(e.Size, chunk); err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(content, chunk) {
		var err error
		if isZero(part) {
			err = b.Hole(t.Context(), 1)
		} else {
			err = b.Add(t.Context(), m.put(part))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if e.Content, _, err = b.Finish(); err != nil {
		t.Fatal(err)
	}
	return e
}

func (m *fileMemory) put(b []byte) digest.Digest {
	d := m.hash.Sum(b)
	m.chunks[d] = slices.Clone(b)
	return d
}

// stream makes a file of content, in chunks of random lengths.
func (m *fileMemory) stream(t testing.TB, r *mathrand.Rand, content []byte, longest int) recipe.Entry {
	t.Helper()
	e := recipe.Entry{Name: "file", Mode: recipe.ModeRegular | 0o600, Size: uint64(len(content))}
	b := recipe.NewStreamBuilder(m, m.node)
	for len(content) > 0 {
		n := min(1+r.IntN(longest), len(content))
		x := recipe.Extent{Length: uint64(n), Hole: isZero(content[:n])}
		if !x.Hole {
			x.Digest = m.put(content[:n])
		}
		if err := b.Add(t.Context(), x); err != nil {
			t.Fatal(err)
		}
		content = content[n:]
	}
	var err error
	if e.Content, _, err = b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

// sparseBytes makes content of runs of data and of zeros, that begin and end anywhere.
func sparseBytes(r *mathrand.Rand, n int) []byte {
	out := make([]byte, n)
	for at := 0; at < n; {
		run := min(1+r.IntN(1<<r.IntN(20)), n-at)
		if r.IntN(2) == 0 {
			for i := range run {
				out[at+i] = byte(1 + r.IntN(255))
			}
		}
		at += run
	}
	return out
}

// checkFile reads the file anywhere, from several goroutines, and holds it against its content.
func checkFile(t *testing.T, seed uint64, m *fileMemory, e recipe.Entry, content []byte) {
	t.Helper()
	f, err := OpenFile(m, e)
	if err != nil {
		t.Fatal(err)
	}
	if f.Size() != int64(len(content)) {
		t.Fatalf("%d bytes, want %d", f.Size(), len(content))
	}
	var g errgroup.Group
	for i := range uint64(4) {
		g.Go(func() error {
			r := mathrand.New(mathrand.NewPCG(seed, i))
			for range 60 {
				off := r.IntN(len(content) + 1)
				p := make([]byte, r.IntN(min(len(content)-off, 1<<r.IntN(22))+1))
				if err := f.ReadAt(context.Background(), p, int64(off)); err != nil {
					return err
				}
				if !bytes.Equal(p, content[off:off+len(p)]) {
					return errors.New("other bytes")
				}
				got, err := f.Bytes(context.Background(), p, int64(off))
				if err != nil || !bytes.Equal(got, content[off:off+len(p)]) {
					return errors.Join(err, errors.New("other bytes without a copy"))
				}
				lent, err := f.Lend(context.Background(), int64(off), int64(len(p)))
				if err != nil || len(lent) > len(p) || !bytes.Equal(lent, p[:len(lent)]) {
					return errors.Join(err, errors.New("other bytes are lent"))
				}
				if len(lent) == 0 && len(p) > 0 && p[0] != 0 {
					return errors.New("nothing is lent where there is no hole")
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	checkExtents(t, mathrand.New(mathrand.NewPCG(seed, 9)), f, content)
	checkBeyond(t, f)
}

// checkExtents holds the runs of a file against its content: what is a hole has zeros, and runs alternate.
func checkExtents(t *testing.T, r *mathrand.Rand, f *File, content []byte) {
	t.Helper()
	holes := false
	for i := range 20 {
		from, to := 0, len(content)
		if i > 0 && to > 0 {
			from = r.IntN(to)
			to = from + r.IntN(to-from+1)
		}
		at, last := from, -1
		err := f.Extents(t.Context(), int64(from), int64(to-from), func(n int64, hole bool) bool {
			kind := map[bool]int{false: 0, true: 1}[hole]
			if n <= 0 || kind == last || hole && !isZero(content[at:at+int(n)]) {
				t.Fatalf("run of %d bytes at %d, hole %t after %d", n, at, hole, last)
			}
			at, last, holes = at+int(n), kind, holes || hole
			return true
		})
		if err != nil || at != to {
			t.Fatalf("runs from %d to %d end at %d: %v", from, to, at, err)
		}
	}
	sp, err := f.Space(t.Context())
	if err != nil || sp.Holes != holes || sp.Data > roundUp(uint64(len(content))) {
		t.Errorf("space %+v of %d bytes with holes %t: %v", sp, len(content), holes, err)
	}
}

func checkBeyond(t *testing.T, f *File) {
	t.Helper()
	for _, c := range []struct{ off, n int64 }{{f.Size(), 1}, {f.Size() + 1, 0}, {-1, 1}, {0, f.Size() + 1}, {1 << 62, 1}} {
		err := f.ReadAt(t.Context(), make([]byte, c.n), c.off)
		if KindOf(err) != Invalid || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes at %d of %d: %v", c.n, c.off, f.Size(), err)
		}
		if _, err := f.Lend(t.Context(), c.off, c.n); KindOf(err) != Invalid {
			t.Errorf("lend %d bytes at %d of %d: %v", c.n, c.off, f.Size(), err)
		}
	}
}

func TestFileModel(t *testing.T) {
	r := newRand(t)
	for range 12 {
		content := sparseBytes(r, 1+r.IntN(6<<20))
		seed := r.Uint64()
		m := newFileMemory()
		checkFile(t, seed, m, m.image(t, content, recipe.MinImageChunk<<r.IntN(8)), content)
		checkFile(t, seed, m, m.stream(t, r, content, 1<<(8+r.IntN(12))), content)
		one := content[:min(len(content), 1<<20)]
		one[0] = 1
		checkFile(t, seed, m, m.stream(t, mathrand.New(fixedLongest{}), one, len(one)), one)
	}
	m := newFileMemory()
	checkFile(t, 1, m, m.stream(t, r, nil, 1), nil)
	zeros := make([]byte, 1<<20)
	checkFile(t, 1, m, m.image(t, zeros, 64<<10), zeros)
}

// fixedLongest makes IntN return the largest number.
type fixedLongest struct{}

func (fixedLongest) Uint64() uint64 { return 1<<64 - 1 }

func TestOpenFileRefusesOthers(t *testing.T) {
	for _, mode := range []uint32{recipe.ModeDir, recipe.ModeSymlink, recipe.ModeBlock, recipe.ModeFifo} {
		if _, err := OpenFile(newFileMemory(), recipe.Entry{Name: "x", Mode: mode}); KindOf(err) != Invalid {
			t.Errorf("mode 0%o: %v", mode, err)
		}
	}
}

// TestFileReadsAhead: reads in sequence have what follows brought in, interleaved ones too; random reads do not.
func TestFileReadsAhead(t *testing.T) {
	r := newRand(t)
	const chunk, size = 64 << 10, 64 << 20
	content := make([]byte, size)
	for i := 0; i < size; i += chunk {
		content[i], content[i+1] = byte(i/chunk), byte(i/chunk>>8)|1
	}
	m := newFileMemory()
	e := m.image(t, content, chunk)
	read := func(f *File, off int64, n int) {
		t.Helper()
		if err := f.ReadAt(t.Context(), make([]byte, n), off); err != nil {
			t.Fatal(err)
		}
	}
	asked := func() (n int) {
		n = len(m.ahead)
		clear(m.ahead)
		return n
	}
	f, _ := OpenFile(m, e)
	for i := range 64 { // two readers, a third of the disk apart
		read(f, int64(i)*chunk, chunk)
		read(f, size/3&^(chunk-1)+int64(i^1)*chunk, chunk)
	}
	if n := asked(); n < 128 {
		t.Errorf("two sequences of 64 chunks: %d chunks were asked for ahead", n)
	}
	f, _ = OpenFile(m, e)
	for range 1000 {
		read(f, int64(r.IntN(size/4096))*4096, 4096)
	}
	if n := asked(); n > 100 {
		t.Errorf("random reads: %d chunks were asked for ahead", n)
	}
	f, _ = OpenFile(m, e)
	read(f, 10*chunk, 8*chunk)
	if n := asked(); n != 7 {
		t.Errorf("one read of 8 chunks: %d were asked for beside the first", n)
	}
}
