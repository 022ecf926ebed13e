package dedup

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/vfs"
)

func TestRefusals(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	run, err := s.Begin(ctx, RunOptions{ID: "hostile"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := run.Lane(LaneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k := s.Domain().Keys
	data, node := digest.NewHasher(k.Data), digest.NewHasher(k.Node)
	enc := frame.NewEncoder()
	one := func(d digest.Digest, p []byte) frame.Frame {
		return enc.Encode([]frame.Ref{{Digest: d, Length: uint32(len(p))}}, p, nil)
	}
	put := func(f frame.Frame) error { _, err := l.PutFrame(ctx, f); return err }

	chunk := []byte("some bytes of a file")
	wantKind(t, put(one(digest.Digest{1}, chunk)), WrongDigest)
	wantKind(t, put(one(node.Sum(chunk), chunk)), WrongDigest)
	bomb := enc.Encode([]frame.Ref{{Digest: data.Sum(make([]byte, 1<<20)), Length: 1 << 20}}, make([]byte, 1<<20), nil)
	bomb.Refs[0].Length = 10
	wantKind(t, put(bomb), BadFrame)
	wantKind(t, put(frame.Frame{}), BadFrame)

	nodeWith := func(kids ...recipe.Child) frame.Frame { return nodeFrame(t, enc, node, kids...) }
	unknown := recipe.Child{Digest: digest.Digest{2}, Length: 20}
	wantKind(t, run.PutNodes(ctx, nodeWith(unknown)), UnknownChild)
	if err := put(one(data.Sum(chunk), chunk)); err != nil {
		t.Fatal(err)
	}
	wantKind(t, run.PutNodes(ctx, nodeWith(recipe.Child{Digest: data.Sum(chunk), Length: 21})), BadNode)
	wantKind(t, run.PutNodes(ctx, one(node.Sum(chunk), chunk)), BadNode)
	wantKind(t, run.PutNodes(ctx, one(data.Sum(chunk), chunk)), WrongDigest)
	good := nodeWith(recipe.Child{Digest: data.Sum(chunk), Length: uint64(len(chunk))})
	if err := run.PutNodes(ctx, good); err != nil {
		t.Fatalf("the run does not go on after refusals: %v", err)
	}
	_, err = run.Commit(ctx, Draft{Root: recipe.Ref{Digest: data.Sum(chunk)}})
	wantKind(t, err, UnknownChild)
	wantKind(t, put(one(data.Sum(chunk), chunk)), Closed)
	if st := run.Stats(); st.Chunks != 1 || st.Nodes != 1 {
		t.Errorf("stats %+v", st)
	}
	if sets, _ := s.Savesets(ctx); len(sets) != 0 {
		t.Errorf("%d savesets", len(sets))
	}
}

// nodeFrame is a frame of one directory leaf whose files are the given chunks.
func nodeFrame(t *testing.T, enc *frame.Encoder, h *digest.Hasher, kids ...recipe.Child) frame.Frame {
	t.Helper()
	var sink agent
	b := recipe.NewDirBuilder(&sink, h)
	for i, c := range kids {
		e := recipe.Entry{Name: string(rune('a' + i)), Mode: recipe.ModeRegular, Size: c.Length, Content: recipe.Content{Kind: recipe.OneChunk, Digest: c.Digest}}
		if err := b.Add(t.Context(), e, recipe.Totals{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	var p frame.Packer
	for _, n := range sink.nodes {
		p.Add(n.d, n.rec)
	}
	return p.Encode(enc, nil)
}

func TestAbortKeepsWhatArrived(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	tree := randomTree(fixedRand(), 60)
	run, err := s.Begin(ctx, RunOptions{ID: "broken"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.backup(ctx, tree); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := run.Abort(gone, "cancelled"); err != nil {
		t.Fatal(err)
	}
	if err := run.Abort(ctx, "again"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, run.Have(ctx, []digest.Digest{{}}, make([]bool, 1)), Closed)
	if m := mustBackup(t, s, tree, 1); m.New != 0 {
		t.Errorf("the next run stored %d bytes anew", m.New)
	}
	if n := s.containers.pinned(); n != 0 {
		t.Errorf("%d containers are still pinned", n)
	}
}

func TestDurableAcknowledgements(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	run, err := s.Begin(ctx, RunOptions{ID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	acks := make(chan uint64, 64)
	l, err := run.Lane(LaneOptions{Durable: func(seq uint64) { acks <- seq }})
	if err != nil {
		t.Fatal(err)
	}
	h, enc, r := digest.NewHasher(s.Domain().Keys.Data), frame.NewEncoder(), fixedRand()
	for i := range uint64(9) {
		c := randomBytes(r, 60<<10)
		seq, err := l.PutFrame(ctx, enc.Encode([]frame.Ref{{Digest: h.Sum(c), Length: uint32(len(c))}}, c, nil))
		if err != nil || seq != i+1 {
			t.Fatalf("put %d: sequence %d, %v", i, seq, err)
		}
	}
	if err := l.Flush(ctx); err != nil || l.Durable() != 9 {
		t.Fatalf("durable %d after flush, %v", l.Durable(), err)
	}
	if err := l.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := run.Abort(ctx, "done"); err != nil {
		t.Fatal(err)
	}
	close(acks)
	last := uint64(0)
	for seq := range acks {
		if seq <= last {
			t.Errorf("acknowledged %d after %d", seq, last)
		}
		last = seq
	}
	if last != 9 {
		t.Errorf("last acknowledgement is %d", last)
	}
}

func TestPinsAndCondemn(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	tree := testTree{"d/f": {[]byte("hello, neighbour")}}
	mustBackup(t, s, tree, 1)
	h := digest.NewHasher(s.Domain().Keys.Data)
	ds := []digest.Digest{h.Sum([]byte("hello, neighbour"))}
	places, err := s.locate(ctx, ds)
	if err != nil || places[0].dir == nil {
		t.Fatal("chunk is not found", err)
	}
	id := places[0].dir.ID()
	have := func(r *Run) bool {
		out := make([]bool, 1)
		if err := r.Have(ctx, ds, out); err != nil {
			t.Fatal(err)
		}
		return out[0]
	}
	first, _ := s.Begin(ctx, RunOptions{ID: "first"})
	if !have(first) {
		t.Fatal("the chunk is missing")
	}
	wantKind(t, s.Condemn(ctx, id), InUse)
	if err := first.Abort(ctx, "done"); err != nil {
		t.Fatal(err)
	}
	if err := s.Condemn(ctx, id); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Condemn(ctx, id), InUse)
	second, _ := s.Begin(ctx, RunOptions{ID: "second"})
	if have(second) {
		t.Error("a condemned container is had")
	}
	// What is stored again while the old copy is condemned becomes the copy that counts.
	m, err := backupInto(ctx, s, second, tree, 1)
	if err != nil || m.New == 0 {
		t.Fatal("backup beside a condemned container:", m.New, err)
	}
	if places, _ := s.locate(ctx, ds); places[0].dir == nil || places[0].dir.ID() == id {
		t.Error("the index still names the condemned copy")
	}
	s.Reprieve(id)
	if err := s.Condemn(ctx, id); err != nil {
		t.Error(err)
	}
	wantKind(t, s.Condemn(ctx, container.MakeID(9, 9)), NotFound)
}

func (s *containerSet) pinned() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.m {
		if c.pins > 0 {
			n++
		}
	}
	return n
}

// Of pin and condemn exactly one wins, whatever the order.
func TestPinRacesCondemn(t *testing.T) {
	for range 200 {
		set := newContainerSet()
		set.add(1, 10, 0)
		p := newPinSet(set)
		won := make(chan bool, 2)
		go func() { won <- set.condemn(1) }()
		go func() { won <- p.pin(1) }()
		if a, b := <-won, <-won; a == b {
			t.Fatal("both won or both lost")
		}
	}
}

// After a restart, too, the neighbours of a chunk are answered from its container's directory.
func TestLocalityAfterReopen(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := randomTree(fixedRand(), 200)
	mustBackup(t, s, tree, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	mustBackup(t, s, tree, 1)
	// Once for each container, by a chunk or a small file's batch of them; the nodes ask the index anyway.
	if st := s.Stats(); st.LocalityMisses*4 > st.LocalityHits {
		t.Errorf("%d hits, %d misses in %d containers", st.LocalityHits, st.LocalityMisses, st.Containers)
	}
	for id := range s.containers.m {
		if !s.canonical(id) {
			t.Errorf("container %v is not canonical", id)
		}
		if err := s.Condemn(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if s.Reprieve(id); s.canonical(id) {
			t.Errorf("container %v was condemned and is canonical", id)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	for id := range s.containers.m {
		if !s.canonical(id) {
			t.Errorf("container %v is not canonical after it was entered anew", id)
		}
	}
}

// Two runs store the same new chunk. The copy that the index keeps is the first one's: the second run must have it
// pinned from then on, for its own copy is not found.
func TestKeptCopyIsPinned(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	c := []byte("the same new chunk")
	h, enc := digest.NewHasher(s.Domain().Keys.Data), frame.NewEncoder()
	ds := []digest.Digest{h.Sum(c)}
	f := enc.Encode([]frame.Ref{{Digest: ds[0], Length: uint32(len(c))}}, c, nil)
	var runs [2]*Run
	var lanes [2]*Lane
	for i := range runs {
		runs[i] = must(s.Begin(ctx, RunOptions{ID: "r"}))
		lanes[i] = must(runs[i].Lane(LaneOptions{}))
		if _, err := lanes[i].PutFrame(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := lanes[0].Flush(ctx); err != nil {
		t.Fatal(err)
	}
	first := must(s.locate(ctx, ds))[0].dir.ID()
	if err := errors.Join(lanes[1].Flush(ctx), runs[0].Abort(ctx, "done")); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Condemn(ctx, first), InUse)
	if err := runs[1].Abort(ctx, "done"); err != nil {
		t.Fatal(err)
	}
	if err := s.Condemn(ctx, first); err != nil {
		t.Error(err)
	}
}

func TestSpoolLeftoversAreCleared(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	run, err := s.Begin(t.Context(), RunOptions{ID: "dies"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), randomTree(fixedRand(), 10)); err != nil {
		t.Fatal(err)
	}
	o2 := testOptions(t, o.FS.(*vfs.Mem).Crash(vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept}), "/", filepath.Join(t.TempDir(), "i"))
	spool := func() int { return len(must(o2.FS.List("/spool"))) }
	if spool() < 3 {
		t.Fatalf("%d files in the spool, want some of the broken run", spool())
	}
	mustOpen(t, o2)
	if spool() != 1 {
		t.Errorf("spool: %v", must(o2.FS.List("/spool")))
	}
}
