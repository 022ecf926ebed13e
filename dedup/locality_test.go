package dedup

import (
	"testing"

	"coffer/dedup/digest"
)

// TestNeighbours asks a store that was just opened for all chunks of a tree: the index brings the directories in, and those
// answer for nearly all.
func TestNeighbours(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := agedTree(newRand(t), nil)
	mustBackup(t, s, tree, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	run, err := s.Begin(t.Context(), RunOptions{ID: "again"})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Abort(t.Context(), "done")
	h := digest.NewHasher(s.Domain().Keys.Data)
	var ds []digest.Digest
	for _, name := range tree.names() {
		ds = append(ds, h.Sum(tree[name][0]))
	}
	have := make([]bool, len(ds))
	if err := run.Have(t.Context(), ds, have); err != nil {
		t.Fatal(err)
	}
	for i := range have {
		if !have[i] {
			t.Fatalf("chunk %d is not had", i)
		}
	}
	st := s.Stats()
	if st.LocalityHits+st.LocalityMisses != uint64(len(ds)) || st.LocalityMisses > uint64(len(ds)/5) {
		t.Fatalf("%d digests: %d hits, %d misses", len(ds), st.LocalityHits, st.LocalityMisses)
	}
}
