package savesetdev

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/nbd"
)

// memory is a saveset in memory.
type memory struct {
	data, node *digest.Hasher
	nodes      map[digest.Digest][]byte
	chunks     map[digest.Digest][]byte
	broken     error
}

func newMemory() *memory {
	k := digest.Derive(digest.DomainKey{1})
	return &memory{data: digest.NewHasher(k.Data), node: digest.NewHasher(k.Node), nodes: map[digest.Digest][]byte{}, chunks: map[digest.Digest][]byte{}}
}

func (m *memory) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	m.nodes[d] = bytes.Clone(rec)
	return nil
}

func (m *memory) Node(_ context.Context, d digest.Digest) ([]byte, error) {
	return m.nodes[d], m.broken
}

func (m *memory) Chunk(_ context.Context, d digest.Digest) ([]byte, error) {
	return m.chunks[d], m.broken
}

func (m *memory) ReadAhead([]digest.Digest) {}

const chunkSize = 4096

// image is a disk of so many chunks, every third a hole.
func (m *memory) image(t *testing.T, name string, chunks int) (recipe.Entry, []byte) {
	t.Helper()
	ctx := t.Context()
	content := make([]byte, chunks*chunkSize)
	b := recipe.NewImageBuilder(m, m.node)
	must(t, b.Start(uint64(len(content)), chunkSize))
	for i := range chunks {
		part := content[i*chunkSize : (i+1)*chunkSize]
		if i%3 == 2 {
			must(t, b.Hole(ctx, 1))
			continue
		}
		for k := range part {
			part[k] = byte(i + k | 1)
		}
		d := m.data.Sum(part)
		m.chunks[d] = part
		must(t, b.Add(ctx, d))
	}
	c, _, err := b.Finish()
	must(t, err)
	return recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o600, Size: uint64(len(content)), Content: c}, content
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree has vda.raw, empty, and dir/vdb.raw.
func (m *memory) tree(t *testing.T) (root digest.Digest, vda, vdb []byte) {
	t.Helper()
	a, vda := m.image(t, "vda.raw", 10)
	b, vdb := m.image(t, "vdb.raw", 400)
	below := recipe.NewDirBuilder(m, m.node)
	must(t, below.Add(t.Context(), b, recipe.Totals{}))
	dir, err := below.Finish(t.Context())
	must(t, err)
	top := recipe.NewDirBuilder(m, m.node)
	must(t, top.Add(t.Context(), recipe.Entry{Name: "dir", Mode: recipe.ModeDir | 0o755,
		Content: recipe.Content{Kind: recipe.DirTree, Digest: dir.Digest}}, dir.Totals))
	must(t, top.Add(t.Context(), recipe.Entry{Name: "empty", Mode: recipe.ModeRegular | 0o600}, recipe.Totals{}))
	must(t, top.Add(t.Context(), a, recipe.Totals{}))
	ref, err := top.Finish(t.Context())
	must(t, err)
	return ref.Digest, vda, vdb
}

func TestDevice(t *testing.T) {
	m := newMemory()
	root, vda, vdb := m.tree(t)
	for path, want := range map[string][]byte{"vda.raw": vda, "/vda.raw": vda, "./dir//vdb.raw": vdb} {
		d, err := Open(t.Context(), m, root, path)
		must(t, err)
		got := make([]byte, d.Size())
		must(t, d.ReadAt(t.Context(), got, 0))
		if !bytes.Equal(got, want) {
			t.Fatalf("%s has other bytes", path)
		}
		at, holes := int64(0), int64(0)
		must(t, d.Extents(t.Context(), chunkSize/2, d.Size()-chunkSize, func(n int64, f nbd.ExtentFlags) bool {
			if f != 0 {
				holes += n
				if f != nbd.Hole|nbd.Zero || len(bytes.Trim(want[chunkSize/2+at:chunkSize/2+at+n], "\x00")) > 0 {
					t.Fatalf("extent at %d of %d: %v", at, n, f)
				}
			}
			at += n
			return true
		}))
		if at != d.Size()-chunkSize || holes == 0 {
			t.Fatalf("extents of %d bytes, %d in holes", at, holes)
		}
	}
	if names, err := Disks(t.Context(), m, root, 5); err != nil || !slices.Equal(names, []string{"vda.raw"}) {
		t.Fatalf("disks %q, %v", names, err)
	}
}

func TestNoDevice(t *testing.T) {
	m := newMemory()
	root, _, _ := m.tree(t)
	for path, want := range map[string]Kind{"": NotFound, "/": NotFound, "..": NotFound, "dir/../vda.raw": NotFound, "x": NotFound,
		"vda.raw/x": NotFound, "dir/x": NotFound, "empty": NoDisk, "dir": NoDisk, "vda.raw\x00": NotFound} {
		if _, err := Open(t.Context(), m, root, path); KindOf(err) != want || err == nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	m.broken = errors.New("the disk is gone")
	if _, err := Open(t.Context(), m, root, "vda.raw"); KindOf(err) != Other || !errors.Is(err, m.broken) {
		t.Errorf("broken store: %v", err)
	}
	if _, err := Disks(t.Context(), m, root, 5); !errors.Is(err, m.broken) {
		t.Errorf("broken store: %v", err)
	}
}
