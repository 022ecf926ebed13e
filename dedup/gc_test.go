package dedup

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// testClock is a clock that tests move.
type testClock struct{ ns atomic.Int64 }

func newTestClock() *testClock {
	c := new(testClock)
	c.ns.Store(time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *testClock) now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *testClock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// gcStore is a store with a clock, on memory.
func gcStore(t testing.TB) (*Store, Options, *testClock) {
	t.Helper()
	o := memOptions(t)
	clock := newTestClock()
	o.Now = clock.now
	return mustCreate(t, o), o, clock
}

func mustCollect(t testing.TB, s *Store, o CollectOptions) CollectReport {
	t.Helper()
	r, err := s.Collect(t.Context(), o)
	if err != nil {
		t.Fatalf("collect: %v (%+v)", err, r)
	}
	if !r.Complete {
		t.Fatalf("collection is not complete: %+v", r)
	}
	return r
}

func mustDelete(t testing.TB, s *Store, id SavesetID) {
	t.Helper()
	if err := s.Delete(t.Context(), id, "test"); err != nil {
		t.Fatal(err)
	}
}

// collectReopen closes and opens a store, with the index lost if wanted.
func collectReopen(t testing.TB, s *Store, o Options, lose bool) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if lose {
		if err := os.RemoveAll(o.IndexDir); err != nil {
			t.Fatal(err)
		}
	}
	return mustOpen(t, o)
}

// All that only deleted savesets had goes, at once, and what is left reads.
func TestCollectAfterDelete(t *testing.T) {
	r := newRand(t)
	for _, lose := range []bool{false, true} {
		t.Run(fmt.Sprint("index lost ", lose), func(t *testing.T) {
			s, o, _ := gcStore(t)
			first := randomTree(r, 60).withDisk(r)
			second := first.mutate(r).mutate(r)
			a := mustBackup(t, s, first, 2)
			b := mustBackupOn(t, s, second, 2, base{id: a.ID, tree: first})
			before := s.Stats().StoredBytes
			mustCollect(t, s, CollectOptions{})
			mustCompare(t, s, a.ID, first)
			mustDelete(t, s, a.ID)
			rep := mustCollect(t, s, CollectOptions{Sparse: 1})
			if rep.Deleted+rep.Copied == 0 || rep.Manifests != 1 || rep.Memory == 0 {
				t.Fatalf("%+v", rep)
			}
			if after := s.Stats().StoredBytes; after >= before {
				t.Fatalf("%d bytes are stored, there were %d: %+v", after, before, rep)
			}
			mustCompare(t, s, b.ID, second)
			if err := checkClosure(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			s = collectReopen(t, s, o, lose)
			mustCompare(t, s, b.ID, second)
			if _, err := s.Saveset(t.Context(), a.ID); KindOf(err) != NotFound {
				t.Fatalf("the deleted saveset's manifest is there: %v", err)
			}
			mustDelete(t, s, b.ID)
			if rep = mustCollect(t, s, CollectOptions{}); s.Stats().Containers != 0 {
				t.Fatalf("%d containers are left of nothing: %+v", s.Stats().Containers, rep)
			}
			again := mustBackup(t, s, first, 1)
			mustCompare(t, s, again.ID, first)
		})
	}
}

// What a broken run left stays three days, and the nodes of it with all below them.
func TestRemainsStayThreeDays(t *testing.T) {
	r := newRand(t)
	s, o, clock := gcStore(t)
	tree := randomTree(r, 50)
	run, err := s.Begin(t.Context(), RunOptions{ID: "breaks"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.backup(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	if err := run.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	n := s.Stats().Containers
	clock.advance(remainsAge - time.Hour)
	if rep := mustCollect(t, s, CollectOptions{}); s.Stats().Containers != n || rep.Remains != n {
		t.Fatalf("%d containers, there were %d: %+v", s.Stats().Containers, n, rep)
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	m := mustBackup(t, s, tree, 2)
	if m.Stored != 0 {
		t.Errorf("the next run stored %d bytes of what was there", m.Stored)
	}
	mustDelete(t, s, m.ID)
	clock.advance(2 * time.Hour)
	if rep := mustCollect(t, s, CollectOptions{}); s.Stats().Containers != 0 {
		t.Fatalf("%d containers are left: %+v", s.Stats().Containers, rep)
	}
	_ = collectReopen(t, s, o, true)
}

// Nodes that a broken run left keep what is below them, however old it is and whoever had it.
func TestRemainsKeepWhatTheyNeed(t *testing.T) {
	r := newRand(t)
	s, o, clock := gcStore(t)
	tree := randomTree(r, 60)
	old := mustBackup(t, s, tree, 1)
	clock.advance(2 * remainsAge)
	tree = tree.mutate(r)
	if err := sendAll(t, s, tree).run.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	mustDelete(t, s, old.ID)
	if rep := mustCollect(t, s, CollectOptions{}); rep.Remains == 0 {
		t.Fatalf("%+v", rep)
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s = collectReopen(t, s, o, false)
	run := sendAll(t, s, tree)
	nodes := uint64(0)
	if run.draft.Side == old.Side {
		nodes = 1 // no node names it: where the broken run sent none of its own, it went with the old saveset
	}
	if st := run.run.Stats(); st.NewBytes > 0 || st.Nodes > nodes {
		t.Errorf("%+v was sent that is there", st)
	}
	mustCompare(t, s, run.commit(t), tree)
}

// Many small backups leave few containers, and none is written again and again.
func TestSmallContainersMerge(t *testing.T) {
	r := newRand(t)
	s, _, clock := gcStore(t)
	tree := randomTree(r, 40)
	days, runs := 6, 25
	if long() {
		days, runs = 10, 200
	}
	copied, last := int64(0), SavesetID{}
	for range days {
		for range runs {
			tree = tree.mutate(r)
			last = mustBackup(t, s, tree, 1).ID
		}
		clock.advance(24 * time.Hour)
		copied += mustCollect(t, s, CollectOptions{}).CopiedBytes
	}
	mustCompare(t, s, last, tree)
	clock.advance(remainsAge)
	mustCollect(t, s, CollectOptions{})
	st := s.Stats()
	if st.Containers > 60+int(st.StoredBytes/uint64(s.opts.ContainerSize)*2) {
		t.Errorf("%d containers of %d bytes after %d backups", st.Containers, st.StoredBytes, days*runs)
	}
	if copied > 4*int64(st.StoredBytes) {
		t.Errorf("%d bytes were copied for %d that are stored", copied, st.StoredBytes)
	}
	t.Logf("%d backups, %d containers, %d bytes stored, %d copied", days*runs, st.Containers, st.StoredBytes, copied)
}
