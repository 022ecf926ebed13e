package seal_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func testKey(b byte) seal.Key {
	k := seal.Key{b}
	for i := range k[1:] {
		k[i+1] = byte(i)
	}
	return k
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

// memory is a sink and a source.
type memory map[digest.Digest][]byte

func (m memory) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	m[d] = slices.Clone(rec)
	return nil
}

func (m memory) Node(_ context.Context, d digest.Digest) ([]byte, error) {
	rec, ok := m[d]
	if !ok {
		return nil, errors.New("no such node")
	}
	return rec, nil
}

func hasher() *digest.Hasher { return digest.NewHasher([32]byte{3}) }

// tree makes a directory of n files in a sink, and returns its root.
func tree(t testing.TB, sink recipe.Sink, n int) recipe.Ref {
	t.Helper()
	b := recipe.NewDirBuilder(sink, hasher())
	for i := range n {
		e := recipe.Entry{Name: fmt.Sprintf("secret-%05d", i), Mode: recipe.ModeRegular | 0o600, Size: uint64(i)}
		if i > 0 {
			e.Content = recipe.Content{Kind: recipe.OneChunk, Digest: hasher().Sum(fmt.Append(nil, i))}
		}
		if err := b.Add(t.Context(), e, recipe.Totals{}); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// goldens are boxes and records as they are made today.
func goldens(t testing.TB) map[string][]byte {
	s := seal.NewSealer(testKey(1))
	out := map[string][]byte{"key-file": testKey(1).File()}
	box := func(name string, plain []byte) {
		sealed, err := s.SealChunk(nil, plain)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = sealed
	}
	box("chunk-raw", []byte("raw"))
	box("chunk-zstd", bytes.Repeat([]byte("zstd "), 100))
	m := memory{}
	out["node-empty"] = m[tree(t, seal.NewSink(m, testKey(1)), 0).Digest]
	out["node"] = m[tree(t, seal.NewSink(m, testKey(1)), 4).Digest]
	return out
}

// TestGolden pins the format. That a chunk compressed by another encoder has another box costs space, not reading.
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
		if err != nil || string(want) != text {
			t.Errorf("%s is\n%s\nwant\n%s%v", name, text, want, err)
		}
	}
}

func TestChunks(t *testing.T) {
	s, other := seal.NewSealer(testKey(1)), seal.NewSealer(testKey(2))
	for name, plain := range map[string][]byte{
		"one byte": {7}, "text": bytes.Repeat([]byte("text "), 30_000), "noise": noise(700_000), "longest": noise(seal.MaxPlain),
		"longest zeros": make([]byte, seal.MaxPlain),
	} {
		t.Run(name, func(t *testing.T) {
			box, err := s.SealChunk([]byte("before"), plain)
			if err != nil || string(box[:6]) != "before" {
				t.Fatal(err)
			}
			box = box[6:]
			if len(box) > len(plain)+seal.Overhead {
				t.Errorf("%d bytes in a box of %d", len(plain), len(box))
			}
			if again, _ := seal.NewSealer(testKey(1)).SealChunk(nil, plain); !bytes.Equal(again, box) {
				t.Error("the same bytes give another box")
			}
			if foreign, _ := other.SealChunk(nil, plain); bytes.Equal(foreign, box) {
				t.Error("another key gives the same box")
			}
			got, err := s.OpenChunk([]byte("x"), box)
			if err != nil || string(got[:1]) != "x" || !bytes.Equal(got[1:], plain) {
				t.Fatalf("open: %d bytes, %v", len(got), err)
			}
			if _, err := other.OpenChunk(nil, box); !errors.Is(err, seal.ErrKey) {
				t.Errorf("other key: %v", err)
			}
		})
	}
	if _, err := s.SealChunk(nil, make([]byte, seal.MaxPlain+1)); err == nil {
		t.Error("a chunk too long for a frame is sealed")
	}
}

// TestTampering: no byte of a box or of a sealed record can be changed, cut off or added.
func TestTampering(t *testing.T) {
	s := seal.NewSealer(testKey(1))
	box, err := s.SealChunk(nil, bytes.Repeat([]byte("plain "), 50))
	if err != nil {
		t.Fatal(err)
	}
	m := memory{}
	rec := m[tree(t, seal.NewSink(m, testKey(1)), 3).Digest]
	for name, c := range map[string]struct {
		good []byte
		open func(dst, b []byte) ([]byte, error)
	}{"chunk": {box, s.OpenChunk}, "node": {rec, s.OpenNode}} {
		if _, err := c.open(nil, c.good); err != nil {
			t.Fatal(err)
		}
		for i := range c.good {
			bad := slices.Clone(c.good)
			bad[i] ^= 1 << (i % 8)
			if got, err := c.open(nil, bad); err == nil || len(got) > 0 {
				t.Errorf("%s with byte %d changed opens", name, i)
			}
			if _, err := c.open(nil, c.good[:i]); err == nil {
				t.Errorf("%s of %d bytes opens", name, i)
			}
		}
		if _, err := c.open(nil, append(slices.Clone(c.good), 0)); err == nil {
			t.Errorf("%s with one byte more opens", name)
		}
	}
	if _, err := s.OpenChunk(nil, rec[len(rec)-len(box):]); err == nil {
		t.Error("a part of a node opens as a chunk")
	}
}

// TestTree: a sealed tree reads like the open one, tells nothing without the key, and is the same when it is made again.
func TestTree(t *testing.T) {
	open, sealed := memory{}, memory{}
	want := tree(t, open, 5000)
	root := tree(t, seal.NewSink(sealed, testKey(1)), 5000)
	if root.Totals != want.Totals || len(sealed) != len(open) || len(open) < 10 {
		t.Fatalf("root %+v, %d nodes; want %+v, %d", root, len(sealed), want, len(open))
	}
	if again := tree(t, seal.NewSink(memory{}, testKey(1)), 5000); again != root {
		t.Error("sealed again it is another tree")
	}
	for d, rec := range sealed {
		if strings.Contains(string(rec), "secret") {
			t.Fatal("a sealed node has a name in it")
		}
		parent, err := recipe.ParseClear(rec)
		if err != nil || seal.ID(parent.SealedBy) != testKey(1).ID() {
			t.Fatalf("node %v: %v", d, err)
		}
		for i, c := range parent.Children {
			if !c.Node {
				continue
			}
			child, err := recipe.ParseClear(sealed[c.Digest])
			if err != nil || recipe.CheckChild(&parent, i, &child) != nil {
				t.Fatalf("child %v: %v", c.Digest, err)
			}
		}
	}
	a, b := recipe.NewDirIter(open, want.Digest), recipe.NewDirIter(seal.NewOpener(testKey(1)).Source(sealed), root.Digest)
	for i := range 5000 {
		x, _, err := a.Next(t.Context())
		y, _, err2 := b.Next(t.Context())
		if err != nil || err2 != nil || x.Name != y.Name || x.Content != y.Content || x.Size != y.Size {
			t.Fatalf("entry %d: %+v, %v; want %+v, %v", i, y, err2, x, err)
		}
	}
	if _, _, err := recipe.NewDirIter(seal.NewOpener(testKey(2)).Source(sealed), root.Digest).Next(t.Context()); !errors.Is(err, seal.ErrKey) {
		t.Errorf("another key: %v", err)
	}
	var typed *recipe.Error
	if _, _, err := recipe.NewDirIter(seal.NewOpener(testKey(1)).Source(open), want.Digest).Next(t.Context()); !errors.As(err, &typed) || typed.Kind != recipe.Mismatch {
		t.Errorf("open nodes in the place of sealed ones: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	k := seal.NewKey()
	got, err := seal.ParseFile(k.File())
	if err != nil || got != k {
		t.Fatalf("%v", err)
	}
	if id, err := seal.ParseID(strings.ToUpper(k.ID().String())); err != nil || id != k.ID() {
		t.Errorf("id: %v", err)
	}
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v", k, k)} {
		if strings.Contains(text, hex.EncodeToString(k[:4])) || !strings.Contains(text, "hidden") {
			t.Errorf("a key prints as %s", text)
		}
	}
	good := string(k.File())
	for name, text := range map[string]string{
		"empty": "", "title": strings.Replace(good, "task", "", 1), "short": good[:len(good)-3], "mistyped": flip(good, 25),
		"id": flip(good, len(good)-5), "more": good + "x", "long": good + strings.Repeat("\n", seal.MaxFile), "newer": strings.Replace(good, "v1", "v2", 1),
	} {
		if _, err := seal.ParseFile([]byte(text)); !errors.Is(err, seal.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if seal.NewKey() == k {
		t.Error("two keys are the same")
	}
}

func flip(s string, at int) string {
	b := []byte(s)
	if b[at] == '0' {
		b[at] = '1'
	} else {
		b[at] = '0'
	}
	return string(b)
}

func FuzzOpen(f *testing.F) {
	for _, b := range goldens(f) {
		f.Add(b)
	}
	s := seal.NewSealer(testKey(1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if plain, err := s.OpenChunk(nil, b); err == nil {
			if len(plain) > seal.MaxPlain {
				t.Fatal("too long")
			}
		}
		if rec, err := s.OpenNode(nil, b); err == nil {
			again, err := s.SealNode(nil, rec)
			if err != nil || len(again) == 0 {
				t.Fatalf("an opened node does not seal: %v", err)
			}
		}
		if k, err := seal.ParseFile(b); err == nil && k != testKey(1) {
			if _, err := seal.ParseFile(k.File()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkSealChunk(b *testing.B) {
	s := seal.NewSealer(testKey(1))
	for name, p := range map[string][]byte{"text": bytes.Repeat([]byte("static int f(void);\n"), 50_000), "noise": noise(1 << 20)} {
		b.Run(name, func(b *testing.B) {
			var dst []byte
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				dst, _ = s.SealChunk(dst[:0], p)
			}
		})
	}
}
