package recipe_test

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldens are records of every kind, as built today.
func goldens(t testing.TB) map[string][]byte {
	m := newMemory()
	out := map[string][]byte{}
	take := func(name string, d digest.Digest, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = m.nodes[d]
	}
	sub := buildDir(t, m, bigDir(3))
	take("empty-dir", buildDir(t, m, nil).Digest, nil)
	b := NewDirBuilder(m, testHasher())
	for _, e := range sorted(everyField(sub)) {
		if err := b.Add(t.Context(), e, sub.Totals); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := b.Finish(t.Context())
	take("dir-leaf", ref.Digest, err)
	take("dir-inner", buildDir(t, m, bigDir(1500)).Digest, nil)

	s := NewStreamBuilder(m, testHasher())
	c, _ := buildStream(t, m, s, []Extent{holeOf(1 << 39), chunkOf(5, 1), chunkOf(MaxChunkLen, 2), holeOf(4096), chunkOf(6, 3)})
	take("stream-leaf", c.Digest, nil)
	c, _ = buildStream(t, m, s, manyChunks(1200))
	take("stream-inner", c.Digest, nil)
	take("side-leaf", buildSide(t, m, sideRows(8)).Digest, nil)
	take("side-inner", buildSide(t, m, sideRows(9000)).Digest, nil)
	goldenImages(t, m, take)
	return out
}

// goldenImages adds an image of one leaf, one of two levels with holes, an empty one, and the entry of an image.
func goldenImages(t testing.TB, m *memory, take func(string, digest.Digest, error)) {
	t.Helper()
	image := func(size uint64, chunk int, data ...uint64) Content {
		b := NewImageBuilder(m, testHasher())
		if err := b.Start(size, chunk); err != nil {
			t.Fatal(err)
		}
		for _, i := range append(data, b.Chunks()) {
			if err := b.Hole(t.Context(), i-b.Next()); err != nil {
				t.Fatal(err)
			}
			if i < b.Chunks() {
				if err := b.Add(t.Context(), fileDigest("chunk %d", i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		c, _, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	leaf := image(10*65536+4711, 65536, 0, 1, 5, 10)
	take("image-leaf", leaf.Digest, nil)
	take("image-inner", image(1<<30, 128<<10, 0, 1, 300, 301, 8191).Digest, nil)
	take("image-empty", image(1<<40, 128<<10).Digest, nil)
	take("image-entry", buildDir(t, m, []Entry{{Name: "vda.raw", Mode: ModeRegular | 0o600, Size: 10*65536 + 4711, Content: leaf}}).Digest, nil)
}

// TestGolden pins the bytes of every kind of node. A difference means that savesets written before this change are
// not read, or not deduplicated against, any more.
func TestGolden(t *testing.T) {
	got := goldens(t)
	for _, name := range slices.Sorted(maps.Keys(got)) {
		path := filepath.Join("testdata", name+".hex")
		text := hex.Dump(got[name])
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, text, want)
		}
	}
}

// TestGoldenCuts pins where nodes end: the roots of larger trees.
func TestGoldenCuts(t *testing.T) {
	m := newMemory()
	c, _ := buildStream(t, m, NewStreamBuilder(m, testHasher()), mixedStream(20_000))
	got := fmt.Sprintf("dir %v\nstream %v\nside %v\n", buildDir(t, m, bigDir(50_000)).Digest, c.Digest,
		buildSide(t, m, sideRows(50_000)).Digest)
	path := filepath.Join("testdata", "cuts.txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || got != string(want) {
		t.Errorf("%v\ngot\n%swant\n%s", err, got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, rec := range goldens(f) {
		f.Add(rec)
	}
	f.Add(record(DirLeaf, 0, Totals{Entries: 2}, nil, plain("a")+plain("b")))
	f.Add(record(StreamLeaf, 0, Totals{Entries: 2, Bytes: 12}, []uint64{5 << 1}, "\x01\x07"))
	f.Add(record(ImageLeaf, 0, Totals{Entries: 2, Bytes: 3*4096 + 5}, []uint64{4096 << 1, 5 << 1}, "\x0c\x0a"))
	f.Add(record(ImageInner, 1, Totals{Entries: 3, Bytes: 128*4096 + 5}, []uint64{4096<<8 | 1, 5<<1 | 1}, "\x0c\x03\x02\x01"))
	f.Add(record(SideLeaf, 0, Totals{Entries: 1}, nil, "\x03\x05\x02\x02\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, rec []byte) {
		if n, err := ParseClear(rec); err == nil && len(n.Children) > len(rec)/33 {
			t.Fatalf("%d children in %d bytes", len(n.Children), len(rec))
		}
		n, err := Parse(rec)
		if err != nil {
			return
		}
		if again, err := n.Encode(); err != nil || string(again) != string(rec) {
			t.Fatalf("encodes to %x: %v", again, err)
		}
		for i := range n.Children {
			_ = CheckChild(&n, i, &n)
		}
		m := newMemory()
		d := testHasher().Sum(rec)
		m.nodes[d] = rec
		rebuild(t, m, d, &n)
	})
}

// rebuild reads the items of a single leaf and holds the names against the rules.
func rebuild(t *testing.T, m *memory, d digest.Digest, n *Node) {
	switch n.Kind {
	case DirLeaf, DirInner:
		last := ""
		it := NewDirIter(m, d)
		for {
			e, _, err := it.Next(context.Background())
			if err != nil {
				return
			}
			if e.Name <= last || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
				t.Fatalf("name %q after %q", e.Name, last)
			}
			last = e.Name
			if got, _, err := Lookup(context.Background(), m, d, e.Name); err != nil || got.Name != e.Name {
				t.Fatalf("lookup %q: %v", e.Name, err)
			}
		}
	case StreamLeaf, StreamInner:
		it := NewStreamIter(m, Content{Kind: StreamTree, Digest: d}, n.Totals.Bytes)
		for off := uint64(0); ; {
			x, err := it.Next(context.Background())
			if err != nil {
				return
			}
			if x.Offset != off || x.Length == 0 {
				t.Fatalf("extent %v at %d", x, off)
			}
			off += x.Length
		}
	case ImageLeaf, ImageInner:
		rebuildImage(t, m, d, n)
	case SideLeaf, SideInner:
		it := NewSideIter(m, d)
		for {
			if _, err := it.Next(context.Background()); err != nil {
				return
			}
		}
	}
}

// rebuildImage reads an image whose root is the node, in all ways, as far as its form allows.
func rebuildImage(t *testing.T, m *memory, d digest.Digest, n *Node) {
	ctx := context.Background()
	c := Content{Kind: ImageTree, Digest: d}
	img, err := OpenImage(ctx, m, c, n.Totals.Bytes)
	if err != nil {
		return
	}
	total := (img.Size()-1)/uint64(img.ChunkSize()) + 1
	at := uint64(0)
	if err := img.Runs(ctx, 0, total, func(n uint64, _ bool) bool { at += n; return true }); err == nil && at != total {
		t.Fatalf("runs of %d chunks in an image of %d", at, total)
	}
	if _, err := img.Data(ctx); err == nil && n.Kind == ImageLeaf {
		for i := range total {
			if _, err := img.Chunks(ctx, i); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := NewImageBuilder(newMemory(), testHasher())
	if err := b.Start(img.Size(), img.ChunkSize()); err != nil {
		t.Fatal(err)
	}
	if err := b.Take(ctx, img, total); err != nil {
		t.Fatal(err)
	}
	if again, _, err := b.Finish(); n.Totals.Entries > 0 && (err != nil || again != c) {
		t.Fatalf("taken over it is %v, %v", again, err)
	}
	it := NewStreamIter(m, c, n.Totals.Bytes)
	for off := uint64(0); ; {
		x, err := it.Next(ctx)
		if err != nil {
			return
		}
		if x.Offset != off || x.Length == 0 {
			t.Fatalf("extent %v at %d", x, off)
		}
		off += x.Length
	}
}
