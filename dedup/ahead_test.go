package dedup

import (
	"path/filepath"
	"testing"

	"coffer/dedup/vfs"
)

// earlier is a store's disk as it was at some time, which somebody puts back beside an index that went on.
type earlier struct {
	mem   *vfs.Mem
	trees map[SavesetID]testTree
}

// putBack opens the earlier store beside the index that the later one leaves.
func (e earlier) putBack(t *testing.T, later *Store, index string) *Store {
	t.Helper()
	if err := later.Close(); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, testOptions(t, e.mem, "/", index))
	for id, tree := range e.trees {
		mustCompare(t, s, id, tree)
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// An index that is ahead only by what left it: a collection took dead nodes out, and wrote no container. In the store that is
// put back those nodes live.
func TestIndexAheadByDeadNodes(t *testing.T) {
	for _, first := range []bool{true, false} {
		mem, index := newMem(t), filepath.Join(t.TempDir(), "index")
		s := mustCreate(t, testOptions(t, mem, "/", index))
		r := newRand(t)
		tree := randomTree(r, 60)
		trees := make(map[SavesetID]testTree)
		mustBackup(t, s, tree, 1) // keeps the containers alive
		forget := func() {
			tree = tree.mutate(r)
			mustDelete(t, s, mustBackup(t, s, tree, 1).ID)
			mustCollect(t, s, CollectOptions{Sparse: 0.01})
		}
		if !first { // the store that is put back has tombstones of its own
			forget()
		}
		tree = tree.mutate(r)
		gone := mustBackup(t, s, tree, 1)
		trees[gone.ID] = tree
		tree = tree.mutate(r)
		trees[mustBackup(t, s, tree, 1).ID] = tree // needs a part of the same nodes, so that their container stays
		before := earlier{mem.Crash(vfs.CrashOptions{}), trees}
		mustDelete(t, s, gone.ID)
		if rep := mustCollect(t, s, CollectOptions{Sparse: 0.01}); rep.Copied > 0 || rep.Manifests == 0 {
			t.Fatalf("%+v", rep)
		}
		s = before.putBack(t, s, index)
		if _, lost := s.tombstones.unsure(); lost != first {
			t.Errorf("tombstones lost: %v, want %v", lost, first)
		}
		mustCollect(t, s, CollectOptions{})
		before.mem = before.mem.Crash(vfs.CrashOptions{})
		before.putBack(t, s, index)
	}
}

// An index in which chunks were taken over by a container that was condemned later. The store that is put back does not have
// it, and has the chunks where they were.
func TestIndexAheadByTakeOver(t *testing.T) {
	mem, index := newMem(t), filepath.Join(t.TempDir(), "index")
	s := mustCreate(t, testOptions(t, mem, "/", index))
	r := newRand(t)
	var tree testTree
	trees := make(map[SavesetID]testTree)
	for range 10 {
		tree = agedTree(r, tree)
		trees[mustBackup(t, s, tree, 1).ID] = tree
	}
	before := earlier{mem.Crash(vfs.CrashOptions{}), trees}
	there := s.containers.without(nil)
	run := rewritingRun(t, s)
	if _, err := backupInto(t.Context(), s, run, tree, 1); err != nil {
		t.Fatal(err)
	}
	if oldCopies(t, s) == 0 {
		t.Fatal("nothing was taken over")
	}
	for _, id := range s.containers.without(nil)[len(there):] {
		if err := s.Condemn(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s.Reprieve(id)
	}
	before.putBack(t, s, index)
}
