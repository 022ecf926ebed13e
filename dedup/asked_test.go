package dedup

import (
	"bytes"
	"testing"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// TestAskedPlaces: the newest places are remembered, each once and as it was told last.
func TestAskedPlaces(t *testing.T) {
	s, _, _, _ := openView(t, memOptions(t))
	dir, err := s.directory(t.Context(), s.containers.without(nil)[0])
	if err != nil {
		t.Fatal(err)
	}
	var a askedPlaces
	name := func(i int) digest.Digest { return digest.Digest{byte(i), byte(i >> 8), 1} }
	for i := range askedKept + 10 {
		a.add([]digest.Digest{name(i), {9}}, []found{{dir: dir, slot: uint32(i)}, {}})
	}
	a.add([]digest.Digest{name(20)}, []found{{dir: dir, slot: 7}})
	for i := range askedKept + 10 {
		at, ok := a.find(name(i))
		want := uint32(i)
		if i == 20 {
			want = 7
		}
		if ok != (i >= 10) || ok && (at.slot != want || at.id != dir.ID()) {
			t.Fatalf("place %d: %+v, %v", i, at, ok)
		}
	}
	if _, ok := a.find(digest.Digest{9}); ok || len(a.at) != askedKept {
		t.Fatalf("%d places", len(a.at))
	}
}

// TestChunksMoveAfterReadAhead: what was brought in ahead is read where it is now, when a collection has moved it.
func TestChunksMoveAfterReadAhead(t *testing.T) {
	o := memOptions(t)
	s, v, ds, chunks := openView(t, o)
	v.ReadAhead(ds)
	recalled := 0
	read := func() {
		t.Helper()
		s.frames.clear()
		recalled = 0
		for i, d := range ds {
			if _, ok := v.recall(t.Context(), d, container.Data); ok {
				recalled++
			}
			b, err := v.Chunk(t.Context(), d)
			if err != nil || !bytes.Equal(b, chunks[i]) {
				t.Fatalf("chunk %d: %v", i, err)
			}
		}
	}
	if read(); recalled < len(ds)/2 {
		t.Fatalf("%d of %d chunks remembered", recalled, len(ds))
	}
	before := containersOf(t, o, container.Data)
	if _, err := s.RotateKey(t.Context()); err != nil { // so that every container is written anew
		t.Fatal(err)
	}
	mustCollect(t, s, CollectOptions{})
	for _, id := range containersOf(t, o, container.Data) {
		for _, old := range before {
			if id == old {
				t.Fatalf("container %v was not moved", id)
			}
		}
	}
	if read(); recalled > 0 {
		t.Fatalf("%d chunks read where they are no more", recalled)
	}
}
