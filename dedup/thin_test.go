package dedup

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"coffer/dedup/digest"
)

// TestThinOf picks the thinnest frames first, none that is half used, and no more than may be stored anew.
func TestThinOf(t *testing.T) {
	at := func(i uint32) Loc { return Loc{Frame: i} }
	frames := map[Loc]frameUse{
		at(0): {given: 400, plain: 400}, at(1): {given: 200, plain: 400}, // not thin
		at(2): {given: 30, plain: 400}, at(3): {given: 40, plain: 1000}, at(4): {given: 100, plain: 400},
	}
	for _, c := range []struct {
		full uint32 // more of the saveset
		want []uint32
	}{
		{0, nil}, // a twentieth is 38 bytes
		{100, []uint32{3}},
		{800, []uint32{2, 3}},
		{2800, []uint32{2, 3, 4}},
	} {
		frames[at(9)] = frameUse{given: c.full, plain: c.full}
		var got []uint32
		for loc := range maps.Keys(thinOf(frames)) {
			got = append(got, loc.Frame)
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("beside %d bytes frames %v, want %v", c.full, got, c.want)
		}
	}
}

// TestThinFrames ages a tree, and holds what a reader has to decode against what it wants: a run that knows how the last saveset
// lies stores thin frames anew, within its twentieth. Whatever was committed reads back.
func TestThinFrames(t *testing.T) {
	age := func(known bool) (decoded float64) {
		s := mustCreate(t, memOptions(t))
		r := newRand(t)
		var tree testTree
		var last Manifest
		trees := make(map[SavesetID]testTree)
		for gen := range 24 {
			tree = agedTree(r, tree)
			opts := RunOptions{ID: "run", Rewrite: true}
			if known {
				opts.Previous = last.ID
			}
			run, err := s.Begin(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			if known && !last.ID.IsZero() {
				waitForThin(t, run)
			}
			if last, err = backupInto(t.Context(), s, run, tree, 1); err != nil {
				t.Fatal(err)
			}
			if l := run.layout; l.rewritten*rewriteShare > l.bytes {
				t.Fatalf("%d bytes of %d are stored anew", l.rewritten, l.bytes)
			}
			if gen%6 == 5 {
				trees[last.ID] = tree
			}
		}
		for id, tree := range trees {
			mustCompare(t, s, id, tree)
		}
		v, err := s.View(t.Context(), last.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		var given, plain uint64
		for _, u := range must(s.countFrames(t.Context(), v)) {
			given, plain = given+uint64(u.given), plain+uint64(u.plain)
		}
		return float64(plain) / float64(given)
	}
	without, with := age(false), age(true)
	t.Logf("a reader decodes %.2f times what it wants, and %.2f times where thin frames are stored anew", without, with)
	if with > 0.75*without {
		t.Errorf("a reader decodes %.2f times what it wants, and %.2f times where thin frames are stored anew", without, with)
	}
}

// TestReadAheadOfMovedChunks has a whole frame stored anew, in a container of which other frames are read: what is read ahead
// is what is read then, not the old copy.
func TestReadAheadOfMovedChunks(t *testing.T) {
	o := memOptions(t)
	o.ContainerSize = 32 << 20
	s := mustCreate(t, o)
	r := newRand(t)
	tree := make(testTree)
	for i := range 400 {
		tree[fmt.Sprintf("d/f%04d", i)] = [][]byte{randomBytes(r, 20<<10)}
	}
	mustBackup(t, s, tree, 1)
	h := digest.NewHasher(s.Domain().Keys.Data)
	var ds []digest.Digest
	for _, name := range tree.names() {
		ds = append(ds, h.Sum(tree[name][0]))
	}
	old := must(s.locate(t.Context(), ds[390:391]))[0].loc()
	run, err := s.Begin(t.Context(), RunOptions{ID: "anew", Rewrite: true})
	if err != nil {
		t.Fatal(err)
	}
	run.layout.setThin(thinFrames{old: {}})
	last, err := backupInto(t.Context(), s, run, tree, 1)
	if err != nil {
		t.Fatal(err)
	}
	if now := must(s.locate(t.Context(), ds[390:391]))[0].loc(); now == old {
		t.Fatal("nothing was stored anew")
	}
	loads := func(ahead int) uint64 {
		s = reopen(t, s, o)
		v, err := s.View(t.Context(), last.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		for i, d := range ds {
			if ahead > 0 && i%ahead == 0 {
				v.ReadAhead(ds[i:min(len(ds), i+ahead)])
			}
			if _, err := v.Chunk(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		_, misses, _ := s.frames.stats()
		return misses
	}
	if with, without := loads(16), loads(0); with != without {
		t.Errorf("%d frames are decoded with read-ahead, %d without", with, without)
	}
}

// waitForThin waits until a run knows the thin frames.
func waitForThin(t *testing.T, r *Run) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.layout.mu.Lock()
		known := r.layout.frames != nil
		r.layout.mu.Unlock()
		switch {
		case known:
			return
		case time.Now().After(deadline):
			t.Fatal("the thin frames are not found")
		}
	}
}

// TestThinFramesKeepNothing deletes and collects the saveset that a run looks back at.
func TestThinFramesKeepNothing(t *testing.T) {
	s, tree := thinStore(t)
	last := mustBackup(t, s, tree, 1)
	s.thinking <- struct{}{} // the look waits
	run, err := s.Begin(t.Context(), RunOptions{ID: "later", Rewrite: true, Previous: last.ID})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	mustDelete(t, s, last.ID)
	mustCollect(t, s, CollectOptions{})
	<-s.thinking
	m, err := backupInto(t.Context(), s, run, tree, 1)
	if err != nil {
		t.Fatal(err)
	}
	mustCompare(t, s, m.ID, tree)
}

// TestThinFramesEndWithTheRun opens runs that are over at once, or whose previous saveset is gone, and closes the store.
func TestThinFramesEndWithTheRun(t *testing.T) {
	s, tree := thinStore(t)
	last := mustBackup(t, s, tree, 1)
	for i := range 20 {
		run, err := s.Begin(t.Context(), RunOptions{ID: "short", Rewrite: true, Previous: last.ID})
		if err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			mustDelete(t, s, last.ID)
		}
		if err := run.Abort(t.Context(), "over at once"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
