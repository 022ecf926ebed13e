package dedup

import (
	"testing"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/vfs"
)

// TestReindex makes the index anew on demand, and tells how far it is. Nodes that a collection took out do not come back.
func TestReindex(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	r := newRand(t)
	tree := randomTree(r, 150).withDisk(r)
	old := mustBackup(t, s, tree, 1)
	kept := tree.mutate(r)
	m := mustBackupOn(t, s, kept, 1, base{id: old.ID, tree: tree})
	mustDelete(t, s, old.ID)
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 0.01}); err != nil { // dead nodes stay in live containers
		t.Fatal(err)
	}
	before := nodesHad(t, s, o)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var last Progress
	o.Reindex, o.ReindexProgress = true, func(p Progress) { last = p }
	s = mustOpen(t, o)
	if last.Phase != "reindex" || last.Total == 0 {
		t.Errorf("progress %+v", last)
	}
	if after := nodesHad(t, s, o); after != before {
		t.Errorf("%d nodes are had, before the index was made anew %d", after, before)
	}
	mustCompare(t, s, m.ID, kept)
	if rep := mustCheck(t, s); len(rep.Found) != 0 {
		t.Errorf("check: %+v", rep.Found)
	}
}

// nodesHad counts the rows of node containers that a run would be told to be there.
func nodesHad(t *testing.T, s *Store, o Options) int {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "count"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = run.Abort(t.Context(), "test") }()
	n := 0
	for _, id := range containersOf(t, o, container.Node) {
		dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
		if err != nil {
			t.Fatal(err)
		}
		have := make([]bool, dir.Rows())
		ds := make([]digest.Digest, dir.Rows())
		for slot := range ds {
			ds[slot] = dir.Digest(uint32(slot))
		}
		if err := run.Have(t.Context(), ds, have); err != nil {
			t.Fatal(err)
		}
		for _, ok := range have {
			if ok {
				n++
			}
		}
	}
	return n
}

// TestSpoolIsSalvaged: what arrived before the process died need not be sent again.
func TestSpoolIsSalvaged(t *testing.T) {
	o := memOptions(t)
	o.ContainerSize = 32 << 20
	s := mustCreate(t, o)
	tree := make(testTree)
	r := newRand(t)
	for _, name := range []string{"a/1", "a/2", "b/3"} {
		for range 200 {
			tree[name] = append(tree[name], randomBytes(r, 10<<10))
		}
	}
	run, err := s.Begin(t.Context(), RunOptions{ID: "dies"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	fsys := o.FS.(*vfs.Mem).Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept}) // the process dies, the machine lives
	p := testOptions(t, fsys, "/", t.TempDir()+"/index")
	p.ContainerSize = o.ContainerSize
	s = mustOpen(t, p)
	h := digest.NewHasher(s.Domain().Keys.Data)
	again, err := s.Begin(t.Context(), RunOptions{ID: "again"})
	if err != nil {
		t.Fatal(err)
	}
	var ds []digest.Digest
	for _, name := range tree.names() {
		for _, c := range tree[name] {
			ds = append(ds, h.Sum(c))
		}
	}
	have, n := make([]bool, len(ds)), 0
	if err := again.Have(t.Context(), ds, have); err != nil {
		t.Fatal(err)
	}
	for _, ok := range have {
		if ok {
			n++
		}
	}
	t.Logf("%d of %d chunks are there", n, len(ds))
	if n < len(ds)/2 {
		t.Errorf("only %d of %d chunks were salvaged", n, len(ds))
	}
	if left, err := fsys.List("/spool"); err != nil || len(left) > 1 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
	m, err := backupInto(t.Context(), s, again, tree, 1)
	if err != nil {
		t.Fatal(err)
	}
	mustCompare(t, s, m.ID, tree)
}
