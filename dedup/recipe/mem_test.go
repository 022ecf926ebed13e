package recipe_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

// memory is a Sink and Source that counts.
type memory struct {
	nodes map[digest.Digest][]byte
	puts  int
	reads int
	fail  error
}

func newMemory() *memory { return &memory{nodes: map[digest.Digest][]byte{}} }

func (m *memory) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	if m.fail != nil {
		return m.fail
	}
	m.puts++
	m.nodes[d] = slices.Clone(rec)
	return nil
}

func (m *memory) Node(_ context.Context, d digest.Digest) ([]byte, error) {
	m.reads++
	rec, ok := m.nodes[d]
	if !ok {
		return nil, errors.New("no such node")
	}
	return rec, nil
}

// check parses every node and holds every child against its parent.
func (m *memory) check(t testing.TB) {
	t.Helper()
	parsed := map[digest.Digest]*Node{}
	for d, rec := range m.nodes {
		n, err := Parse(rec)
		if err != nil {
			t.Fatalf("node %v: %v", d, err)
		}
		if again, err := n.Encode(); err != nil || string(again) != string(rec) {
			t.Fatalf("node %v encodes to something else: %v", d, err)
		}
		parsed[d] = &n
	}
	for _, n := range parsed {
		for i, c := range n.Children {
			if child := parsed[c.Digest]; c.Node && child != nil {
				if err := CheckChild(n, i, child); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func testHasher() *digest.Hasher {
	return digest.NewHasher(digest.Derive(digest.DomainKey{1, 2, 3}).Node)
}

// fileDigest makes something like a digest out of a text.
func fileDigest(format string, args ...any) digest.Digest {
	return sha256.Sum256(fmt.Appendf(nil, format, args...))
}

func file(name string, size uint64) Entry {
	e := Entry{Name: name, Mode: ModeRegular | 0o644, MTime: Time{Sec: 1_700_000_000, Nsec: 123456789}, Size: size}
	if size > 0 {
		e.Content = Content{Kind: OneChunk, Digest: fileDigest("%s %d", name, size)}
	}
	return e
}

func dir(name string, ref Ref) Entry {
	return Entry{Name: name, Mode: ModeDir | 0o755, Content: Content{Kind: DirTree, Digest: ref.Digest}}
}

func buildDir(t testing.TB, m *memory, entries []Entry) Ref {
	t.Helper()
	b := NewDirBuilder(m, testHasher())
	for _, e := range entries {
		if err := b.Add(t.Context(), e, Totals{}); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func bigDir(n int) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = file(fmt.Sprintf("file-%07d.txt", i), uint64(i%5000))
	}
	return entries
}
