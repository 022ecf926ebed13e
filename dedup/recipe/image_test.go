package recipe_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

// imageModel is a disk image as a list of chunks; the zero digest is a hole.
type imageModel struct {
	size   uint64
	chunk  int
	chunks []digest.Digest
}

func newImageModel(size uint64, chunk int) *imageModel {
	return &imageModel{size: size, chunk: chunk, chunks: make([]digest.Digest, (size+uint64(chunk)-1)/uint64(chunk))}
}

// fill puts runs of chunks and holes of all lengths into the image.
func (m *imageModel) fill(r *rand.Rand) {
	for i := 0; i < len(m.chunks); {
		n := min(1+r.IntN(1<<r.IntN(16)), len(m.chunks)-i)
		hole := r.IntN(2) == 0
		for range n {
			m.chunks[i] = digest.Digest{}
			if !hole {
				m.chunks[i] = fileDigest("chunk %d %d", i, r.IntN(3))
			}
			i++
		}
	}
}

func (m *imageModel) length(i int) uint64 {
	return min(uint64(m.chunk), m.size-uint64(i)*uint64(m.chunk))
}

func (m *imageModel) data() (count, bytes uint64) {
	for i, d := range m.chunks {
		if !d.IsZero() {
			count++
			bytes += m.length(i)
		}
	}
	return count, bytes
}

// extents are those of the image, holes whole.
func (m *imageModel) extents() (out []Extent) {
	for i, d := range m.chunks {
		x := Extent{Offset: uint64(i) * uint64(m.chunk), Length: m.length(i), Hole: d.IsZero(), Digest: d}
		if last := len(out) - 1; x.Hole && last >= 0 && out[last].Hole {
			out[last].Length += x.Length
			continue
		}
		out = append(out, x)
	}
	return out
}

// build builds the image; what old has too, it may take over.
func (m *imageModel) build(t testing.TB, r *rand.Rand, mem *memory, old *imageModel, oldImage *Image) Content {
	t.Helper()
	b := NewImageBuilder(mem, testHasher())
	if err := b.Start(m.size, m.chunk); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(m.chunks); {
		n := 1
		var err error
		switch {
		case old != nil && m.sameAs(old, i) && r.IntN(8) > 0:
			for i+n < len(m.chunks) && m.sameAs(old, i+n) && r.IntN(1<<12) > 0 {
				n++
			}
			err = b.Take(t.Context(), oldImage, uint64(n))
		case m.chunks[i].IsZero():
			for i+n < len(m.chunks) && m.chunks[i+n].IsZero() && r.IntN(1<<12) > 0 {
				n++
			}
			err = b.Hole(t.Context(), uint64(n))
		default:
			err = b.Add(t.Context(), m.chunks[i])
		}
		if err != nil {
			t.Fatal(err)
		}
		i += n
	}
	c, totals, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if count, _ := m.data(); totals != (Totals{Entries: count, Bytes: m.size}) {
		t.Fatalf("totals %+v of an image with %d chunks, %d bytes", totals, count, m.size)
	}
	return c
}

func (m *imageModel) sameAs(old *imageModel, i int) bool {
	return i < len(old.chunks) && m.chunks[i] == old.chunks[i] && m.length(i) == old.length(i)
}

// check reads the image in every way and holds it against the model.
func (m *imageModel) check(t testing.TB, r *rand.Rand, mem *memory, c Content) *Image {
	t.Helper()
	img, err := OpenImage(t.Context(), mem, c, m.size)
	if err != nil {
		t.Fatal(err)
	}
	if img.Size() != m.size || img.ChunkSize() != m.chunk {
		t.Fatalf("image of %d bytes in chunks of %d, want %d and %d", img.Size(), img.ChunkSize(), m.size, m.chunk)
	}
	if _, want := m.data(); true {
		if got, err := img.Data(t.Context()); err != nil || got != want {
			t.Fatalf("%d bytes of data (%v), want %d", got, err, want)
		}
	}
	m.checkChunks(t, r, img)
	m.checkRuns(t, r, img)
	m.checkExtents(t, r, mem, c)
	return img
}

func (m *imageModel) checkChunks(t testing.TB, r *rand.Rand, img *Image) {
	t.Helper()
	for range 50 {
		i := uint64(r.IntN(len(m.chunks)))
		c, err := img.Chunks(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if i < c.First || i-c.First >= c.Count {
			t.Fatalf("chunk %d is not among %d from %d on", i, c.Count, c.First)
		}
		for j := c.First; j < c.First+c.Count; j++ {
			if d, ok := c.At(j); d != m.chunks[j] || ok == d.IsZero() {
				t.Fatalf("chunk %d is %v, %t; want %v", j, d, ok, m.chunks[j])
			}
		}
	}
}

func (m *imageModel) checkRuns(t testing.TB, r *rand.Rand, img *Image) {
	t.Helper()
	for range 20 {
		from := r.IntN(len(m.chunks))
		to := from + r.IntN(len(m.chunks)-from) + 1
		at := from
		err := img.Runs(t.Context(), uint64(from), uint64(to), func(n uint64, hole bool) bool {
			for range n {
				if m.chunks[at].IsZero() != hole {
					t.Fatalf("chunk %d is in a run with hole %t", at, hole)
				}
				at++
			}
			return true
		})
		if err != nil || at != to {
			t.Fatalf("runs from %d to %d ended at %d: %v", from, to, at, err)
		}
	}
}

func (m *imageModel) checkExtents(t testing.TB, r *rand.Rand, mem *memory, c Content) {
	t.Helper()
	want := m.extents()
	it := NewStreamIter(mem, c, m.size)
	for i, x := range want {
		if got, err := it.Next(t.Context()); err != nil || got != x {
			t.Fatalf("extent %d is %+v (%v), want %+v", i, got, err, x)
		}
	}
	if x, err := it.Next(t.Context()); err != io.EOF {
		t.Fatalf("extent %+v after the last one: %v", x, err)
	}
	for range 50 {
		i := r.IntN(len(want))
		if err := it.Seek(t.Context(), want[i].Offset+r.Uint64N(want[i].Length)); err != nil {
			t.Fatal(err)
		}
		for _, x := range want[i:min(i+3, len(want))] {
			if got, err := it.Next(t.Context()); err != nil || got != x {
				t.Fatalf("after a seek: extent %+v (%v), want %+v", got, err, x)
			}
		}
	}
	if err := it.Seek(t.Context(), m.size); err != nil {
		t.Fatal(err)
	}
	if _, err := it.Next(t.Context()); err != io.EOF {
		t.Fatalf("after a seek to the end: %v", err)
	}
}

// TestImageModel builds images of random form, and later generations of them, and reads them back.
func TestImageModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 30 {
		const chunk = MinImageChunk
		m := newImageModel(1+r.Uint64N(chunk<<r.IntN(16)), chunk)
		m.fill(r)
		mem := newMemory()
		img := m.check(t, r, mem, m.build(t, r, mem, nil, nil))
		for range 3 {
			next := newImageModel(m.size, chunk)
			if r.IntN(2) == 0 {
				next = newImageModel(1+r.Uint64N(2*m.size), chunk)
			}
			next.fill(r)
			for i := range min(len(next.chunks), len(m.chunks)) {
				if r.IntN(200) > 0 {
					next.chunks[i] = m.chunks[i]
				}
			}
			taken := next.build(t, r, mem, m, img)
			if whole := next.build(t, r, newMemory(), nil, nil); taken != whole {
				t.Fatalf("with parts taken over the image is %v, without %v", taken, whole)
			}
			img = next.check(t, r, mem, taken)
			m = next
		}
		mem.check(t)
	}
}

// TestImageTakesSubtrees: a little change in a large image costs a few nodes, however large it is.
func TestImageTakesSubtrees(t *testing.T) {
	const size, chunk = 1 << 40, 128 << 10
	mem := newMemory()
	b := NewImageBuilder(mem, testHasher())
	build := func(change uint64, old *Image) Content {
		t.Helper()
		if err := b.Start(size, chunk); err != nil {
			t.Fatal(err)
		}
		steps := []func() error{
			func() error { return b.Hole(t.Context(), change) },
			func() error { return b.Add(t.Context(), fileDigest("chunk %d", change)) },
			func() error { return b.Hole(t.Context(), b.Chunks()-b.Next()) },
		}
		if old != nil {
			steps[0] = func() error { return b.Take(t.Context(), old, change) }
			steps[2] = func() error { return b.Take(t.Context(), old, b.Chunks()-b.Next()) }
		}
		for _, step := range steps {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		c, _, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := build(5_000_000, nil)
	if len(mem.nodes) != 4 {
		t.Errorf("one chunk in an image of a TiB takes %d nodes", len(mem.nodes))
	}
	old, err := OpenImage(t.Context(), mem, first, size)
	if err != nil {
		t.Fatal(err)
	}
	mem.puts, mem.reads = 0, 0
	second := build(1_000_000, old)
	if mem.puts != 4 || mem.reads > 100 {
		t.Errorf("a changed chunk takes %d nodes put and %d read", mem.puts, mem.reads)
	}
	img, err := OpenImage(t.Context(), mem, second, size)
	if err != nil || img.Totals().Entries != 2 {
		t.Fatalf("%v, %v", img, err)
	}
	var runs []string
	err = img.Runs(t.Context(), 0, b.Chunks(), func(n uint64, hole bool) bool {
		if !hole {
			runs = append(runs, fmt.Sprint(n))
		}
		return true
	})
	if err != nil || len(runs) != 2 {
		t.Errorf("runs of data: %v, %v", runs, err)
	}
	mem.puts = 0
	if err := b.Start(size, chunk); err != nil {
		t.Fatal(err)
	}
	if err := b.Take(t.Context(), img, b.Chunks()); err != nil {
		t.Fatal(err)
	}
	if same, _, err := b.Finish(); err != nil || same != second || mem.puts != 0 {
		t.Errorf("an image taken over as a whole is %v (%v, %d nodes put), want %v", same, err, mem.puts, second)
	}
}

// TestImageOfHoles: an image without data is one empty node, of any size.
func TestImageOfHoles(t *testing.T) {
	for _, size := range []uint64{1, 4096, 4097, 128 * 4096, 128*4096 + 1, 1 << 40, MaxTotal} {
		mem := newMemory()
		b := NewImageBuilder(mem, testHasher())
		if err := b.Start(size, MinImageChunk); err != nil {
			t.Fatal(err)
		}
		if err := b.Hole(t.Context(), b.Chunks()); err != nil {
			t.Fatal(err)
		}
		c, _, err := b.Finish()
		if err != nil || len(mem.nodes) != 1 {
			t.Fatalf("%d bytes: %d nodes, %v", size, len(mem.nodes), err)
		}
		mem.check(t)
		it := NewStreamIter(mem, c, size)
		if x, err := it.Next(t.Context()); err != nil || x != (Extent{Length: size, Hole: true}) {
			t.Errorf("%d bytes: extent %+v, %v", size, x, err)
		}
		img, err := OpenImage(t.Context(), mem, c, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(size, MinImageChunk); err != nil {
			t.Fatal(err)
		}
		if err := b.Take(t.Context(), img, b.Chunks()); err != nil {
			t.Fatal(err)
		}
		if again, _, err := b.Finish(); err != nil || again != c {
			t.Errorf("%d bytes taken over: %v, %v", size, again, err)
		}
	}
}

// TestImageBuilderRefuses what no image can be made of.
func TestImageBuilderRefuses(t *testing.T) {
	mem := newMemory()
	b := NewImageBuilder(mem, testHasher())
	for _, c := range []struct {
		size  uint64
		chunk int
	}{{0, 65536}, {MaxTotal + 1, 65536}, {1, 2048}, {1, MaxImageChunk * 2}, {1, 65537}, {1, 0}, {1, -4096}} {
		var e *Error
		if err := b.Start(c.size, c.chunk); !errors.As(err, &e) || e.Kind != BadEntry {
			t.Errorf("%d bytes in chunks of %d: %v", c.size, c.chunk, err)
		}
	}
	start := func() {
		t.Helper()
		if err := b.Start(10*65536+1, 65536); err != nil {
			t.Fatal(err)
		}
	}
	start()
	ctx := context.Background()
	if err := b.Add(ctx, digest.Digest{}); err == nil {
		t.Error("a chunk without a digest was taken")
	}
	if err := b.Hole(ctx, 12); err == nil {
		t.Error("a hole beyond the end was taken")
	}
	if _, _, err := b.Finish(); err == nil {
		t.Error("an image without its chunks was finished")
	}
	if err := b.Hole(ctx, 11); err != nil {
		t.Fatal(err)
	}
	c, _, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	old, err := OpenImage(ctx, mem, c, 10*65536+1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(11*65536, 65536); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := b.Take(ctx, old, 11); !errors.As(err, &e) || e.Kind != Mismatch {
		t.Errorf("a chunk of another length was taken over: %v", err)
	}
	if err := b.Take(ctx, old, 10); err != nil {
		t.Error(err)
	}
	if _, err := OpenImage(ctx, mem, c, 10*65536); !errors.As(err, &e) || e.Kind != Mismatch {
		t.Errorf("an image of another size was opened: %v", err)
	}
	start()
	mem.fail = errors.New("disk full")
	_ = b.Add(ctx, fileDigest("x"))
	if err := b.Hole(ctx, 10); !errors.Is(err, mem.fail) {
		t.Errorf("%v, want the sink's error", err)
	}
	if _, _, err := b.Finish(); !errors.Is(err, mem.fail) {
		t.Errorf("%v, want the sink's error", err)
	}
}
