package dedup

import (
	"context"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// at returns options that call a function once when a collection comes to a phase.
func at(phase string, f func()) CollectOptions {
	done := false
	return CollectOptions{Sparse: 1, Progress: func(p Progress) {
		if p.Phase == phase && !done {
			done = true
			f()
		}
	}}
}

// openRun is a run that sent all of a tree and did not commit.
type openRun struct {
	run   *Run
	draft Draft
}

func sendAll(t *testing.T, s *Store, tree testTree) openRun {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "open"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	root, side, err := a.backup(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return openRun{run, Draft{Root: root, Side: side}}
}

func (r openRun) commit(t *testing.T) SavesetID {
	t.Helper()
	m, err := r.run.Commit(t.Context(), r.draft)
	if err != nil {
		t.Fatal(err)
	}
	return m.ID
}

// INVARIANTs G1, G2 and G4: a run that finds what is about to be collected, at any moment of a collection, and commits, stays
// open or breaks off, has relied on nothing that goes.
func TestRunsBesideCollection(t *testing.T) {
	r := newRand(t)
	for _, phase := range []string{"mark", "judge", "sweep", "copy"} {
		for _, fate := range []string{"commits", "stays open", "breaks off", "breaks off with a node of its own"} {
			t.Run(phase+", "+fate, func(t *testing.T) {
				s, o, _ := gcStore(t)
				old := randomTree(r, 40)
				kept := old.mutate(r).mutate(r)
				a, b := mustBackup(t, s, old, 1), mustBackup(t, s, kept, 1)
				mustDelete(t, s, a.ID)
				again := old
				if fate == "breaks off with a node of its own" {
					again = old.mutate(r)
				}
				var run openRun
				trees := map[SavesetID]testTree{b.ID: kept}
				mustCollect(t, s, at(phase, func() {
					run = sendAll(t, s, again)
					switch fate {
					case "commits":
						trees[run.commit(t)] = again
					case "stays open":
					default:
						if err := run.run.Abort(t.Context(), "test"); err != nil {
							t.Fatal(err)
						}
					}
				}))
				if fate == "stays open" {
					mustCollect(t, s, CollectOptions{Sparse: 1})
					trees[run.commit(t)] = again
				}
				for _, lose := range []bool{false, true} {
					if err := checkClosure(t.Context(), s); err != nil {
						t.Fatal(err)
					}
					for id, tree := range trees {
						mustCompare(t, s, id, tree)
					}
					mustCollect(t, s, CollectOptions{Sparse: 1})
					s = collectReopen(t, s, o, lose)
				}
			})
		}
	}
}

// INVARIANT G4: a dead chunk in a container that stays is had.
func TestDeadChunksAreHad(t *testing.T) {
	s, _, _ := gcStore(t)
	r := newRand(t)
	old := evenTree(r, 80)
	kept := old.without(4)
	a := mustBackup(t, s, old, 1)
	b := mustBackup(t, s, kept, 1)
	mustDelete(t, s, a.ID)
	if rep := mustCollect(t, s, CollectOptions{Sparse: 0.1}); rep.Dead != 20 {
		t.Fatalf("the dead chunks did not stay: %+v", rep)
	}
	run := sendAll(t, s, old)
	if st := run.run.Stats(); st.NewBytes > 0 {
		t.Errorf("%d bytes were sent that are there", st.NewBytes)
	}
	id := run.commit(t)
	mustCollect(t, s, CollectOptions{Sparse: 1})
	mustCompare(t, s, id, old)
	mustCompare(t, s, b.ID, kept)
}

// INVARIANT G6: the manifest stays until a collection is complete, and takes the states with it.
func TestManifestsGoLast(t *testing.T) {
	s, o, _ := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 30)
	a := mustBackup(t, s, tree, 1)
	b := mustBackup(t, s, tree.mutate(r), 1)
	mustDelete(t, s, a.ID)
	ctx, cancel := context.WithCancel(t.Context())
	opts := at("sweep", cancel)
	if rep, err := s.Collect(ctx, opts); err == nil || rep.Complete || rep.Manifests > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if m, err := s.Saveset(t.Context(), a.ID); err != nil || !m.State.Deleted {
		t.Fatalf("%+v, %v", m.State, err)
	}
	// A state without its manifest is what a crash leaves.
	orphan := stateName(SavesetID{9}, 1)
	if err := s.putObject(t.Context(), stateKind, orphan, State{Number: 1}.object(SavesetID{9})); err != nil {
		t.Fatal(err)
	}
	if rep := mustCollect(t, s, CollectOptions{}); rep.Manifests != 1 {
		t.Fatalf("%+v", rep)
	}
	for o, err := range s.objects(t.Context(), statePrefix) {
		t.Errorf("state %v stays, %v", o.name, err)
	}
	s = collectReopen(t, s, o, false)
	if sets, err := s.Savesets(t.Context()); err != nil || len(sets) != 1 || sets[0].ID != b.ID {
		t.Fatalf("%v, %v", sets, err)
	}
}

// INVARIANT G7: marks that were set in a wrong place are found out.
func TestMarksAgree(t *testing.T) {
	s, _, _ := gcStore(t)
	mustBackup(t, s, randomTree(newRand(t), 20), 1)
	id := s.containers.without(nil)[0]
	dir, err := s.directory(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		slot uint32
		of   uint32
		want bool
	}{{"right", 1, 1, true}, {"wrong place", 1, 2, false}, {"beyond the end", uint32(dir.Rows()), 0, false}} {
		m := newMarks()
		d := dir.Digest(c.of)
		m.setLive(place{id, c.slot, dir.Kind()}, &d)
		if got := m.agrees(dir); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// INVARIANT G7: a chunk that the index lost is not lost for good.
func TestChunkMissingInIndexStays(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 40)
	m := mustBackup(t, s, tree, 1)
	for _, id := range s.containers.without(nil) {
		dir, err := s.directory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if dir.Kind() == container.Data {
			locs := []index.Loc{{Container: id, Slot: 0, Kind: container.Data}}
			if err := s.index.DeleteIf(t.Context(), []digest.Digest{dir.Digest(0)}, locs); err != nil {
				t.Fatal(err)
			}
		}
	}
	clock.advance(remainsAge + time.Hour)
	s.dirs = newDirCache(s.blob, s.ring, s.opts.LocalityMemory, func(container.ID) bool { return false })
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 1}); err != nil {
		t.Fatal(err)
	}
	s = collectReopen(t, s, o, true)
	mustCompare(t, s, m.ID, tree)
}

// INVARIANT G7: while it is not known what a saveset needs, nothing goes.
func TestCollectRefusesTheUnknown(t *testing.T) {
	r := newRand(t)
	tree := randomTree(r, 40)
	t.Run("manifest", func(t *testing.T) {
		s, o, clock := gcStore(t)
		m := mustBackup(t, s, tree, 1)
		n := s.Stats().Containers
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		damageBlob(t, o.Blob, manifestName(m.ID))
		loseCopy(t, o.Blob, manifestName(m.ID))
		s = mustOpen(t, o)
		clock.advance(2 * remainsAge)
		_, err := s.Collect(t.Context(), CollectOptions{})
		wantKind(t, err, Damaged)
		if s.Stats().Containers != n {
			t.Error("containers went")
		}
	})
	t.Run("node", func(t *testing.T) {
		s, o, clock := gcStore(t)
		mustBackup(t, s, tree, 1)
		n := s.Stats().Containers
		for _, id := range s.containers.without(nil) {
			if dir, err := s.directory(t.Context(), id); err == nil && dir.Kind() == container.Node {
				damageBlob(t, o.Blob, id.Name())
			}
		}
		s = collectReopen(t, s, o, false)
		clock.advance(2 * remainsAge)
		_, err := s.Collect(t.Context(), CollectOptions{})
		wantKind(t, err, Damaged)
		if s.Stats().Containers != n {
			t.Error("containers went")
		}
	})
}

// One operation at a time; closing the store ends it, and nothing stays condemned.
func TestCollectIsOneAndStops(t *testing.T) {
	s, _, _ := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 40)
	a := mustBackup(t, s, tree, 1)
	mustBackup(t, s, tree.mutate(r), 1)
	mustDelete(t, s, a.ID)
	mustCollect(t, s, at("sweep", func() {
		_, err := s.Collect(t.Context(), CollectOptions{})
		wantKind(t, err, InUse)
		_, err = s.Usage(t.Context(), nil)
		wantKind(t, err, InUse)
	}))
	a = mustBackup(t, s, tree, 1)
	mustDelete(t, s, a.ID)
	closed := make(chan error, 1)
	_, err := s.Collect(t.Context(), at("copy", func() {
		go func() { closed <- s.Close() }()
		for s.alive() == nil {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond) // stop comes right after
	}))
	if err != nil && KindOf(err) != Closed {
		t.Fatal(err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	for _, id := range s.containers.without(nil) {
		if !s.containers.usable(id) {
			t.Errorf("container %v is condemned", id)
		}
	}
	_, err = s.Collect(t.Context(), CollectOptions{})
	wantKind(t, err, Closed)
}

// evenTree has files of one chunk of one size each, so that what goes with some of them does not hang on the draw.
func evenTree(r *mathrand.Rand, files int) testTree {
	t := make(testTree)
	for i := range files {
		t[fmt.Sprintf("d%02d/f%04d", i%7, i)] = [][]byte{randomBytes(r, 4<<10)}
	}
	return t
}

// without returns a tree less one in n of its files: where they lie in the order of a run, they lie evenly.
func (t testTree) without(n int) testTree {
	out := make(testTree)
	for i, name := range t.names() {
		if i%n > 0 {
			out[name] = t[name]
		}
	}
	return out
}

// On a full disk, what is empty goes, and what would have to be copied stays. When there is room it is copied: the chunks
// whose nodes went before are not taken for what a broken run left.
func TestCollectOnAFullDisk(t *testing.T) {
	s, _, _ := gcStore(t)
	r := newRand(t)
	gone, kept := evenTree(r, 80), evenTree(r, 80)
	half := kept.without(2)
	a, b := mustBackup(t, s, gone, 1), mustBackup(t, s, kept, 1)
	c := mustBackup(t, s, half, 1)
	mustDelete(t, s, a.ID)
	mustDelete(t, s, b.ID)
	s.opts.Reserve = math.MaxInt64 // all that is free
	rep, err := s.Collect(t.Context(), CollectOptions{})
	wantKind(t, err, NoSpace)
	if rep.Deleted == 0 || rep.Copied > 0 || rep.Complete || rep.FreedBytes == 0 || rep.Dead != 40 {
		t.Fatalf("%+v", rep)
	}
	mustCompare(t, s, c.ID, half)
	s.opts.Reserve = 0
	if rep := mustCollect(t, s, CollectOptions{}); rep.Copied == 0 || rep.Dead > 0 || rep.Remains > 0 {
		t.Fatalf("%+v", rep)
	}
	mustCompare(t, s, c.ID, half)
}

// A reader whose container goes between plan and read looks the chunk up once more.
func TestPlanGoesStale(t *testing.T) {
	s, _, _ := gcStore(t)
	r := newRand(t)
	tree := evenTree(r, 80)
	half := tree.without(2)
	a, b := mustBackup(t, s, tree, 1), mustBackup(t, s, half, 1)
	v, err := s.View(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	h := digest.NewHasher(s.domain.Keys.Data)
	var ds []digest.Digest
	for _, chunks := range half {
		for _, c := range chunks {
			ds = append(ds, h.Sum(c))
		}
	}
	plan, err := v.Plan(t.Context(), ds)
	if err != nil {
		t.Fatal(err)
	}
	mustDelete(t, s, a.ID)
	if rep := mustCollect(t, s, CollectOptions{Sparse: 1}); rep.Copied == 0 {
		t.Fatalf("nothing was copied: %+v", rep)
	}
	stale := 0
	for _, it := range plan {
		if _, err := v.Frame(t.Context(), it.Loc, nil); KindOf(err) == NotFound {
			stale++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if stale == 0 {
		t.Fatal("no place of the plan went stale: the test tests nothing")
	}
	if plan, err = v.Plan(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	for _, it := range plan {
		if _, err := v.Frame(t.Context(), it.Loc, nil); err != nil {
			t.Errorf("a new plan: %v", err)
		}
	}
	for _, d := range ds {
		if _, err := v.Chunk(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
}

func TestDeleteAndPurge(t *testing.T) {
	s, _, clock := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 10)
	var ids []SavesetID
	for range 6 {
		ids = append(ids, mustBackup(t, s, tree, 1).ID)
	}
	set := func(id SavesetID, change func(*State)) {
		t.Helper()
		if _, err := s.SetState(t.Context(), id, func(st State) State { change(&st); return st }); err != nil {
			t.Fatal(err)
		}
	}
	set(ids[0], func(st *State) { st.Locked = true })
	set(ids[1], func(st *State) { st.ImmutableUntil = clock.now().Add(time.Hour) })
	v, err := s.View(t.Context(), ids[2])
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range []Kind{Retained, Immutable, InUse} {
		wantKind(t, s.Delete(t.Context(), ids[i], "test"), k)
	}
	wantKind(t, s.Delete(t.Context(), SavesetID{1}, "test"), NotFound)
	refusal := errors.New("it is the newest")
	n := 0
	rep, err := s.Purge(t.Context(), PurgeOptions{IDs: append(ids, SavesetID{1}), Cause: "purge",
		May: func(m Manifest) error {
			if m.ID == ids[3] {
				return refusal
			}
			return nil
		},
		Enough: func() bool { n++; return n > 6 }})
	if err != nil || len(rep.Deleted) != 2 || !rep.Enough || len(rep.Kept) != 4 || !errors.Is(rep.Kept[ids[3]], refusal) {
		t.Fatalf("%+v, %v", rep, err)
	}
	if m, err := s.Saveset(t.Context(), ids[4]); err != nil || m.State.Cause != "purge" || !m.State.Deleted {
		t.Fatalf("%+v, %v", m.State, err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	clock.advance(2 * time.Hour)
	for i, k := range []Kind{Retained, Other, Other, Other, NotFound} {
		if err := s.Delete(t.Context(), ids[i], "test"); KindOf(err) != k {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestPacerKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pacer{rate: 1 << 20}
		start := time.Now()
		for range 50 {
			if err := p.take(t.Context(), 64<<10); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took < 2900*time.Millisecond || took > 3200*time.Millisecond {
			t.Errorf("50 × 64 KiB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.take(ctx, 1<<30); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestOperationsBarEachOther(t *testing.T) {
	for _, c := range []struct {
		a, b operation
		bar  bool
	}{
		{collecting, collecting, true}, {collecting, checking, false}, {collecting, healing, true}, {collecting, rekeying, false},
		{checking, checking, true}, {checking, healing, true}, {checking, rekeying, false},
		{healing, healing, true}, {healing, rekeying, false}, {rekeying, rekeying, true},
	} {
		if c.a.bars(c.b) != c.bar || c.b.bars(c.a) != c.bar {
			t.Error(fmt.Sprint(c.a, " and ", c.b, ": want ", c.bar))
		}
	}
}

// hookBlob calls a function before it reads a part of one blob.
type hookBlob struct {
	blob.Store
	name string
	hook func()
}

func (b *hookBlob) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	if f := b.hook; f != nil && name == b.name {
		b.hook = nil
		f()
	}
	return b.Store.ReadRange(ctx, name, p, off)
}

// INVARIANT G2: a node whose entry goes between look-up and pin, with its container condemned and reprieved meanwhile, is not
// had.
func TestEntryGoesBeforePin(t *testing.T) {
	s, o, _ := gcStore(t)
	mustBackup(t, s, randomTree(newRand(t), 30), 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b := &hookBlob{Store: o.Blob}
	o.Blob = b
	s = mustOpen(t, o)
	var dir *container.Directory
	for _, id := range s.containers.without(nil) {
		if d, err := container.OpenDirectory(t.Context(), b.Store, id, s.ring); err == nil && d.Kind() == container.Node {
			dir = d
		}
	}
	b.name, b.hook = dir.ID().Name(), func() {
		if err := s.Condemn(t.Context(), dir.ID()); err != nil {
			t.Error(err)
		}
		if err := s.dropRows(t.Context(), dir, func(slot uint32) bool { return slot == 0 }); err != nil {
			t.Error(err)
		}
		s.Reprieve(dir.ID())
	}
	run, err := s.Begin(t.Context(), RunOptions{ID: "late"})
	if err != nil {
		t.Fatal(err)
	}
	have := make([]bool, 2)
	if err := run.Have(t.Context(), []digest.Digest{dir.Digest(0), dir.Digest(1)}, have); err != nil {
		t.Fatal(err)
	}
	if b.hook != nil {
		t.Fatal("the directory was not read: the test tests nothing")
	}
	if have[0] || !have[1] {
		t.Errorf("have %v, want only the node whose entry stayed", have)
	}
}

// A collection that begins while a node container is on its way into the index looks at its nodes: they may take over entries
// of others that the collection takes for dead.
func TestCollectionKnowsWhatIsOnItsWay(t *testing.T) {
	s := newContainerSet()
	p := newPinSet(s)
	early, late, data := container.MakeID(1, 1), container.MakeID(1, 2), container.MakeID(1, 3)
	p.adopt(early, 10, container.Node)
	p.adopt(data, 10, container.Data)
	s.watch(true)
	p.adopt(late, 10, container.Node)
	if got := s.arrivals(); !slices.Equal(got, []container.ID{early, late}) {
		t.Fatalf("arrived: %v", got)
	}
	if got := s.arrivals(); len(got) > 0 {
		t.Fatalf("arrived again: %v", got)
	}
	s.watch(false)
	s.entered(early)
	s.entered(late)
	s.watch(true)
	if got := s.arrivals(); len(got) > 0 {
		t.Fatalf("entered, and on its way: %v", got)
	}
}
