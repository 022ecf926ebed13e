package recipe_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

func chunkOf(n uint64, id int) Extent {
	return Extent{Length: n, Digest: fileDigest("chunk %d", id)}
}

func holeOf(n uint64) Extent { return Extent{Length: n, Hole: true} }

func buildStream(t testing.TB, m *memory, b *StreamBuilder, xs []Extent) (Content, Totals) {
	t.Helper()
	for _, x := range xs {
		if err := b.Add(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	c, totals, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.check(t)
	return c, totals
}

// merged is what must come back: offsets set, holes that touch made one.
func merged(xs []Extent) (out []Extent, size uint64) {
	for _, x := range xs {
		x.Offset = size
		size += x.Length
		if n := len(out); x.Hole && n > 0 && out[n-1].Hole {
			out[n-1].Length += x.Length
			continue
		}
		out = append(out, x)
	}
	return out, size
}

func readStream(t *testing.T, it *StreamIter) (out []Extent) {
	t.Helper()
	for {
		x, err := it.Next(t.Context())
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
}

func mixedStream(n int) []Extent {
	rng := rand.New(rand.NewPCG(9, 9))
	var xs []Extent
	for i := range n {
		if rng.IntN(5) == 0 {
			xs = append(xs, holeOf(1+rng.Uint64N(1<<30)))
		} else {
			xs = append(xs, chunkOf(1+rng.Uint64N(MaxChunkLen), i))
		}
	}
	return xs
}

func manyChunks(n int) []Extent {
	xs := make([]Extent, n)
	for i := range xs {
		xs[i] = chunkOf(uint64(1<<20+i), i)
	}
	return xs
}

func TestStreams(t *testing.T) {
	for name, c := range map[string]struct {
		xs   []Extent
		kind ContentKind
	}{
		"empty":             {nil, NoContent},
		"one chunk":         {[]Extent{chunkOf(100, 1)}, OneChunk},
		"one hole":          {[]Extent{holeOf(1 << 40)}, StreamTree},
		"two chunks":        {[]Extent{chunkOf(100, 1), chunkOf(100, 1)}, StreamTree},
		"chunk, hole":       {[]Extent{chunkOf(100, 1), holeOf(1)}, StreamTree},
		"hole, chunk":       {[]Extent{holeOf(1), chunkOf(100, 1)}, StreamTree},
		"holes that touch":  {[]Extent{holeOf(1), holeOf(2), chunkOf(3, 1), holeOf(4), holeOf(5)}, StreamTree},
		"islands":           {[]Extent{holeOf(1 << 39), chunkOf(5, 1), holeOf(1 << 39), chunkOf(5, 2), chunkOf(5, 3), holeOf(7)}, StreamTree},
		"mixed":             {mixedStream(3000), StreamTree},
		"many chunks":       {manyChunks(50_000), StreamTree},
		"as long as can be": {[]Extent{holeOf(MaxTotal - 1), chunkOf(1, 1)}, StreamTree},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			b := NewStreamBuilder(m, testHasher())
			buildStream(t, m, b, []Extent{holeOf(3), chunkOf(4, 9)}) // reuse changes nothing
			content, totals := buildStream(t, m, b, c.xs)
			want, size := merged(c.xs)
			if content.Kind != c.kind || totals != (Totals{Entries: uint64(len(want)), Bytes: size}) {
				t.Fatalf("%v, totals %v, want %v, %d, %d", content.Kind, totals, c.kind, len(want), size)
			}
			it := NewStreamIter(m, content, size)
			if got := readStream(t, it); !slices.Equal(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
			seekEverywhere(t, m, it, want, size)
		})
	}
}

func seekEverywhere(t *testing.T, m *memory, it *StreamIter, want []Extent, size uint64) {
	t.Helper()
	offsets := []uint64{0, size / 2, size - min(size, 1), size, size + 1, 1<<64 - 1}
	for range 50 {
		offsets = append(offsets, rand.Uint64N(size+1))
	}
	for _, off := range offsets {
		m.reads = 0
		if err := it.Seek(t.Context(), off); err != nil {
			t.Fatal(err)
		}
		if m.reads > 3 {
			t.Errorf("seek to %d read %d nodes", off, m.reads)
		}
		i := slices.IndexFunc(want, func(x Extent) bool { return off < x.Offset+x.Length })
		if off >= size {
			i = len(want)
		}
		for ; i < len(want) && want[i].Offset < off+1<<35; i++ {
			if x, err := it.Next(t.Context()); err != nil || x != want[i] {
				t.Fatalf("after seek to %d: %v, %v, want %v", off, x, err, want[i])
			}
		}
		if i == len(want) {
			if x, err := it.Next(t.Context()); err != io.EOF {
				t.Fatalf("after seek to %d: %v, %v at the end", off, x, err)
			}
		}
	}
}

func TestStreamChangeCostsFewNodes(t *testing.T) {
	base := manyChunks(100_000)
	m := newMemory()
	b := NewStreamBuilder(m, testHasher())
	buildStream(t, m, b, base)
	for i := range 10 {
		before := len(m.nodes)
		changed := slices.Clone(base)
		changed[i*9_000+5] = chunkOf(77, -i)
		for _, x := range slices.Insert(changed, i*9_000+3, chunkOf(78, -i)) {
			if err := b.Add(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := b.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(m.nodes) - before; n > 8 {
			t.Errorf("change %d cost %d nodes", i, n)
		}
	}
}

func TestRefusedExtents(t *testing.T) {
	m := newMemory()
	b := NewStreamBuilder(m, testHasher())
	for name, x := range map[string]Extent{
		"no length":       {Digest: fileDigest("x")},
		"no digest":       {Length: 1},
		"hole of a chunk": {Length: 1, Hole: true, Digest: fileDigest("x")},
		"long chunk":      {Length: MaxChunkLen + 1, Digest: fileDigest("x")},
		"long hole":       {Length: MaxTotal + 1, Hole: true},
		"huge hole":       {Length: 1<<64 - 1, Hole: true},
	} {
		var typed *Error
		if err := b.Add(t.Context(), x); !errors.As(err, &typed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Add(t.Context(), holeOf(MaxTotal)); err != nil {
		t.Error(err)
	}
	if err := b.Add(t.Context(), holeOf(1)); err == nil {
		t.Error("a stream longer than the format allows")
	}
}

func TestStreamIterRefusesWhatIsNoStream(t *testing.T) {
	m := newMemory()
	d := buildDir(t, m, bigDir(3))
	c, totals := buildStream(t, m, NewStreamBuilder(m, testHasher()), manyChunks(5))
	for name, it := range map[string]*StreamIter{
		"directory":         NewStreamIter(m, Content{Kind: DirTree, Digest: d.Digest}, 0),
		"nodes of one":      NewStreamIter(m, Content{Kind: StreamTree, Digest: d.Digest}, d.Totals.Bytes),
		"wrong size":        NewStreamIter(m, c, totals.Bytes+1),
		"size of nothing":   NewStreamIter(m, Content{}, 1),
		"chunk of no bytes": NewStreamIter(m, Content{Kind: OneChunk, Digest: digest.Digest{1}}, 0),
	} {
		var typed *Error
		for range 2 {
			if _, err := it.Next(t.Context()); !errors.As(err, &typed) || typed.Kind != Mismatch {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
