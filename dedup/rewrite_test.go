package dedup

import (
	"context"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// agedImage is which container each block of an image lies in, as a store with the given rule makes it.
type agedImage struct {
	at      []container.ID
	next    uint32
	current container.ID
	room    int
}

const simBlock = 64 << 10

// put stores a block, in containers of 512 blocks: 32 MiB.
func (a *agedImage) put(i int) container.ID {
	if a.room == 0 {
		a.next++
		a.current, a.room = container.MakeID(1, a.next), 512
	}
	a.room--
	a.at[i] = a.current
	return a.current
}

func blockDigest(i int) (d digest.Digest) {
	binary.LittleEndian.PutUint64(d[:], uint64(i)+1)
	return d
}

// generation reads the image once, with some blocks changed, and returns switches a MiB and the share stored anew.
func (a *agedImage) generation(changed map[int]bool, rewrite bool) (switches, anew float64) {
	l := newLayout(rewrite)
	a.room = 0
	for i := range a.at {
		if changed[i] || a.at[i] == 0 {
			l.stored(a.put(i), simBlock)
		} else if l.asked(blockDigest(i), Loc{Container: a.at[i]}, simBlock) {
			l.stored(a.put(i), simBlock)
		}
	}
	n := uint64(len(a.at)) * simBlock
	return float64(l.total(n, 0)) * (1 << 20) / float64(n), float64(l.rewritten) / float64(n)
}

// ageImage ages an image of 1 GiB by 5 % a generation.
func ageImage(t *testing.T, generations int, rewrite bool) (switches float64) {
	t.Helper()
	r := mathrand.New(mathrand.NewPCG(1, 2))
	a := &agedImage{at: make([]container.ID, 1<<30/simBlock)}
	for gen := range generations {
		changed := make(map[int]bool)
		for gen > 0 && len(changed) < len(a.at)/20 {
			changed[r.IntN(len(a.at))] = true
		}
		var anew float64
		switches, anew = a.generation(changed, rewrite)
		if anew > 1.0/rewriteShare {
			t.Fatalf("generation %d stores %.1f %% anew", gen, 100*anew)
		}
		if gen%10 == 9 {
			t.Logf("generation %d: %.2f switches a MiB, %.1f %% anew", gen, switches, 100*anew)
		}
	}
	return switches
}

// TestRewriteCurve holds the rule against data whose changes lie everywhere, which is the worst that can be.
func TestRewriteCurve(t *testing.T) {
	without := ageImage(t, 50, false)
	with := ageImage(t, 50, true)
	if without < 0.7 || with > without/2 {
		t.Errorf("%.2f switches a MiB without rewriting, %.2f with it", without, with)
	}
	if again := ageImage(t, 50, true); again != with {
		t.Errorf("the same questions are answered in two ways: %.4f, %.4f", with, again)
	}
}

// TestRewriteCalm holds that a run spends nothing where there is little to gain: on data of few generations.
func TestRewriteCalm(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(3, 4))
	a := &agedImage{at: make([]container.ID, 1<<30/simBlock)}
	for gen := range 6 {
		changed := make(map[int]bool)
		for gen > 0 && len(changed) < len(a.at)/20 {
			changed[r.IntN(len(a.at))] = true
		}
		if _, anew := a.generation(changed, true); anew > 0 {
			t.Errorf("generation %d stores %.1f %% anew", gen, 100*anew)
		}
	}
}

// TestRewriteCopies holds that what the run meets a second time, as a copy of an earlier file, is not torn out of its
// container because the window has nothing else of that.
func TestRewriteCopies(t *testing.T) {
	l, block := newLayout(true), 0
	ask := func(container container.ID, blocks int) (anew int) {
		for range blocks {
			if block++; l.asked(blockDigest(block), Loc{Container: container}, simBlock) {
				anew++
			}
		}
		return anew
	}
	for i := range uint32(8) {
		if n := ask(container.MakeID(1, i), 512); n > 0 {
			t.Fatalf("%d blocks of what lies in order are stored anew", n)
		}
	}
	scattered := 0
	for i := range uint32(2048) {
		scattered += ask(container.MakeID(2, i%40), 1)
	}
	if scattered == 0 {
		t.Fatal("nothing is stored anew of what lies scattered")
	}
	if n := ask(container.MakeID(1, 0), 64); n > 0 {
		t.Errorf("%d of 64 blocks of a copy are stored anew", n)
	}
}

// smallLayout is for stores with containers of 128 KiB.
func smallLayout() layoutScale {
	return layoutScale{window: 256 << 10, step: 16 << 10, doubt: 16 << 10, calm: 3}
}

// agedTree has one directory of files of one chunk each, of which some change.
func agedTree(r *mathrand.Rand, t testTree) testTree {
	out := make(testTree)
	if t == nil {
		for i := range 700 {
			out[fmt.Sprintf("d/f%04d", i)] = [][]byte{randomBytes(r, 1000+r.IntN(2000))}
		}
		return out
	}
	for _, name := range t.names() {
		if out[name] = t[name]; r.IntN(20) == 0 {
			out[name] = [][]byte{randomBytes(r, 1000+r.IntN(2000))}
		}
	}
	return out
}

// rewritingRun opens a run with a small layout.
func rewritingRun(t *testing.T, s *Store) *Run {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "rewriting", Rewrite: true})
	if err != nil {
		t.Fatal(err)
	}
	run.layout.scale = smallLayout()
	return run
}

// TestRewrite ages a tree, and holds all that was ever committed against what it was: after every generation, after a
// collection that drops the old copies, with an index that was lost, and with only the newest saveset left.
func TestRewrite(t *testing.T) {
	o := memOptions(t)
	var days atomic.Int64
	o.Now = func() time.Time { return time.Unix(1_800_000_000, 0).AddDate(0, 0, int(days.Load())) }
	s := mustCreate(t, o)
	r := newRand(t)
	var tree testTree
	var sets []Manifest
	trees := make(map[SavesetID]testTree)
	taken := 0
	for range 16 {
		tree = agedTree(r, tree)
		run := rewritingRun(t, s)
		m, err := backupInto(t.Context(), s, run, tree, 1)
		if err != nil {
			t.Fatal(err)
		}
		l := run.layout
		if l.rewritten*rewriteShare > l.bytes {
			t.Fatalf("%d bytes of %d are stored anew", l.rewritten, l.bytes)
		}
		if len(l.moves) > 0 {
			t.Fatalf("%d chunks were to be stored anew, and were not", len(l.moves))
		}
		if l.rewritten > 0 {
			taken++
		}
		if m.Switches == 0 {
			t.Fatal("switches are not told")
		}
		sets, trees[m.ID] = append(sets, m), tree
	}
	if taken < 8 {
		t.Fatalf("%d of 16 generations stored something anew", taken)
	}
	all := func() {
		t.Helper()
		for _, m := range sets {
			mustCompare(t, s, m.ID, trees[m.ID])
		}
	}
	all()
	days.Add(4) // younger containers are kept for what broken runs left in them
	before := oldCopies(t, s)
	rep := mustCollect(t, s, CollectOptions{Sparse: 1})
	if after := oldCopies(t, s); before == 0 || after >= before || rep.Dead != uint64(after) {
		t.Fatalf("of %d old copies a collection leaves %d: %+v", before, after, rep)
	}
	all()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := index.Remove(o.IndexDir); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	all()
	for _, m := range sets[:len(sets)-1] {
		if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Deleted = true; return st }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := s.Collect(t.Context(), CollectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	sets = sets[len(sets)-1:]
	all()
}

// oldCopies counts the rows of data containers whose chunk the index names in another place.
func oldCopies(t *testing.T, s *Store) (n int) {
	t.Helper()
	for _, id := range s.containers.without(nil) {
		dir, err := s.directory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if dir.Kind() != container.Data {
			continue
		}
		ds := make([]digest.Digest, dir.Rows())
		for slot := range ds {
			ds[slot] = dir.Digest(uint32(slot))
		}
		for _, at := range placesOf(t, s, ds) {
			if at != id {
				n++
			}
		}
	}
	return n
}

// thinStore is a store with a tree in it, some of whose containers are thin for its next run.
func thinStore(t *testing.T) (*Store, testTree) {
	t.Helper()
	s := mustCreate(t, memOptions(t))
	r := newRand(t)
	var tree testTree
	for range 10 {
		tree = agedTree(r, tree)
		mustBackup(t, s, tree, 1)
	}
	return s, tree
}

// TestRewritePinned has another run rely on all containers: the entries stay what they are, and so does what it relies on.
func TestRewritePinned(t *testing.T) {
	s, tree := thinStore(t)
	other, err := s.Begin(t.Context(), RunOptions{ID: "other"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Abort(t.Context(), "done")
	h := digest.NewHasher(s.Domain().Keys.Data)
	var ds []digest.Digest
	for _, name := range tree.names() {
		ds = append(ds, h.Sum(tree[name][0]))
	}
	have := make([]bool, len(ds))
	if err := other.Have(t.Context(), ds, have); err != nil {
		t.Fatal(err)
	}
	before := placesOf(t, s, ds)
	run := rewritingRun(t, s)
	if _, err := backupInto(t.Context(), s, run, tree, 1); err != nil {
		t.Fatal(err)
	}
	if run.layout.rewritten == 0 {
		t.Fatal("nothing was stored anew")
	}
	for i, id := range placesOf(t, s, ds) {
		if id != before[i] {
			t.Fatalf("the index names %v for a chunk that another run has pinned in %v", id, before[i])
		}
	}
}

// TestRewriteMoves has nobody else rely on anything: what was stored anew is what the index names, and a later run that is
// told "have" pins that copy.
func TestRewriteMoves(t *testing.T) {
	s, tree := thinStore(t)
	h := digest.NewHasher(s.Domain().Keys.Data)
	var ds []digest.Digest
	for _, name := range tree.names() {
		ds = append(ds, h.Sum(tree[name][0]))
	}
	before := placesOf(t, s, ds)
	run := rewritingRun(t, s)
	if _, err := backupInto(t.Context(), s, run, tree, 1); err != nil {
		t.Fatal(err)
	}
	after := placesOf(t, s, ds)
	moved := 0
	later, err := s.Begin(t.Context(), RunOptions{ID: "later"})
	if err != nil {
		t.Fatal(err)
	}
	defer later.Abort(t.Context(), "done")
	for i := range ds {
		if before[i] == after[i] {
			continue
		}
		moved++
		have := make([]bool, 1)
		if err := later.Have(t.Context(), ds[i:i+1], have); err != nil || !have[0] {
			t.Fatalf("a chunk that was stored anew is not had: %v", err)
		}
		later.pins.mu.RLock()
		_, pinned := later.pins.held[after[i]]
		later.pins.mu.RUnlock()
		if !pinned {
			t.Fatalf("the copy in %v that the index names is not pinned", after[i])
		}
	}
	if moved == 0 {
		t.Fatal("no chunk moved")
	}
	t.Logf("%d chunks moved", moved)
}

// placesOf returns the containers that the index names.
func placesOf(t *testing.T, s *Store, ds []digest.Digest) []container.ID {
	t.Helper()
	places, err := s.indexed(context.Background(), ds)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]container.ID, len(ds))
	for i, at := range places {
		if at.dir == nil {
			t.Fatalf("chunk %d is not in the index", i)
		}
		ids[i] = at.dir.ID()
	}
	return ids
}
