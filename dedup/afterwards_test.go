package dedup

import (
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// sickDisk is a disk whose operations fail as long as a rule says so.
type sickDisk struct {
	mem  *vfs.Mem
	rule atomic.Pointer[func(op errorfs.Op, name string) bool]
	met  atomic.Int64 // operations that failed
}

// Before implements errorfs.Injector.
func (d *sickDisk) Before(op errorfs.Op, name string) error {
	if rule := d.rule.Load(); rule != nil && (*rule)(op, name) {
		d.met.Add(1)
		return errorfs.ErrInjected
	}
	return nil
}

// fail sets the rule; nil: all works.
func (d *sickDisk) fail(rule func(op errorfs.Op, name string) bool) {
	d.met.Store(0)
	if rule == nil {
		d.rule.Store(nil)
		return
	}
	d.rule.Store(&rule)
}

// failBelow has the given kinds of operation fail on what lies below a directory of the store.
func (d *sickDisk) failBelow(prefix string, ops ...errorfs.Op) {
	d.fail(func(op errorfs.Op, name string) bool {
		for _, o := range ops {
			if o == op && strings.HasPrefix(name+"/", "/store/"+prefix) {
				return true
			}
		}
		return false
	})
}

// sickStore is a store with a clock on a sick disk, which works so far.
func sickStore(t testing.TB) (*Store, Options, *testClock, *sickDisk) {
	t.Helper()
	d := &sickDisk{mem: newMem(t)}
	o := testOptions(t, errorfs.Wrap(d.mem, d), "/", filepath.Join(t.TempDir(), "index"))
	clock := newTestClock()
	o.Now = clock.now
	return mustCreate(t, o), o, clock, d
}

// afterPowerLoss opens the store that a loss of power leaves now, with the index lost.
func (d *sickDisk) afterPowerLoss(t testing.TB, o Options, fate vfs.Fate) *Store {
	t.Helper()
	lost := testOptions(t, d.mem.Crash(vfs.CrashOptions{Data: fate, Entries: fate}), "/", filepath.Join(t.TempDir(), "index"))
	lost.Now, lost.ContainerSize = o.Now, o.ContainerSize
	return mustOpen(t, lost)
}

// A deletion that failed, and whose object is on the disk all the same, does not win over the lock that came after it and
// was acknowledged.
func TestStateThatFailsAfterwards(t *testing.T) {
	lock := func(s *Store, id SavesetID) error {
		_, err := s.SetState(t.Context(), id, func(st State) State { st.Locked = true; return st })
		return err
	}
	for name, fails := range map[string][]errorfs.Op{
		"it stays":                     {errorfs.OpSyncDir, errorfs.OpRemove},
		"its removal is not synced":    {errorfs.OpSyncDir},
		"it is asked for in vain, too": {errorfs.OpSyncDir, errorfs.OpRemove, errorfs.OpStat},
	} {
		t.Run(name, func(t *testing.T) {
			s, o, _, disk := sickStore(t)
			tree := randomTree(newRand(t), 10)
			m := mustBackup(t, s, tree, 1)
			if err := lock(s, m.ID); err != nil { // the directory of its states is there
				t.Fatal(err)
			}
			if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Locked = false; return st }); err != nil {
				t.Fatal(err)
			}
			disk.failBelow(statePrefix, fails[:min(2, len(fails))]...) // it is asked first whether the name is free
			if err := s.Delete(t.Context(), m.ID, "test"); err == nil {
				t.Fatal("the deletion does not fail")
			}
			disk.failBelow(statePrefix, fails...)
			if err := lock(s, m.ID); err == nil {
				t.Fatal("a lock is acknowledged behind a deletion that may be there")
			}
			disk.fail(nil)
			if err := lock(s, m.ID); err != nil {
				t.Fatal(err)
			}
			for _, fate := range []vfs.Fate{vfs.Lost, vfs.Kept} {
				again := disk.afterPowerLoss(t, o, fate)
				mustCompare(t, again, m.ID, tree)
				if got, err := again.Saveset(t.Context(), m.ID); err != nil || !got.State.Locked || got.State.Deleted {
					t.Errorf("entries %v: state %+v, %v", fate, got.State, err)
				}
			}
		})
	}
}

// mustHold holds a store to what it was told, and its index to its word: by itself, and for a collection.
func mustHold(t testing.TB, s *Store, trees map[SavesetID]testTree) {
	t.Helper()
	for range 2 {
		for id, tree := range trees {
			mustCompare(t, s, id, tree)
		}
		if err := checkClosure(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		mustCollect(t, s, CollectOptions{Sparse: 0.01})
	}
}

// A container whose removal is not synced comes back in a power loss. Until it cannot, no collection goes on: what is said of
// its dead nodes would be forgotten, and nodes that die later would not be named in it.
func TestContainerThatComesBack(t *testing.T) {
	s, o, clock, disk := sickStore(t)
	r := newRand(t)
	old := randomTree(r, 30)
	trees := map[SavesetID]testTree{mustBackup(t, s, old, 1).ID: old}
	s = collectReopen(t, s, o, false)
	// In the directory of this epoch come to lie the nodes of two trees, and the data of one that is not kept.
	moved := make(testTree)
	for name, chunks := range old {
		moved[name+" moved"] = chunks
	}
	m := halfRun(t, s, randomTree(r, 60), moved)
	clock.advance(remainsAge + time.Hour)
	mustCollect(t, s, CollectOptions{Sparse: 0.01})
	if len(s.tombstones.all()) == 0 {
		t.Fatal("nothing was buried: the test tests nothing")
	}
	mustDelete(t, s, m.ID)
	dir := path.Dir(container.MakeID(s.epoch, 1).Name())
	disk.failBelow(dir, errorfs.OpSyncDir)
	s = collectReopen(t, s, o, false) // what is new lies elsewhere
	for range 10 {
		if _, err := s.Collect(t.Context(), CollectOptions{}); err == nil {
			break
		}
	}
	if disk.met.Load() == 0 {
		t.Fatal("no removal failed: the test tests nothing")
	}
	mustHold(t, disk.afterPowerLoss(t, o, vfs.Lost), trees)
	disk.fail(nil)
	mustCollect(t, s, CollectOptions{})
	mustHold(t, disk.afterPowerLoss(t, o, vfs.Lost), trees)
	if n := len(s.tombstones.all()); n > 0 {
		t.Errorf("tombstones of %d containers that are gone", n)
	}
}

// Tombstones whose writing failed, and which are there all the same: nobody is told that the store has what they name.
func TestTombstonesThatFailAfterwards(t *testing.T) {
	s, o, clock, disk := sickStore(t)
	r := newRand(t)
	tree := randomTree(r, 40)
	kept := tree.mutate(r)
	m := halfRun(t, s, tree, kept)
	clock.advance(remainsAge + time.Hour)
	disk.failBelow(tombstonePrefix, errorfs.OpSyncDir, errorfs.OpRemove)
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 0.01}); err == nil || disk.met.Load() == 0 {
		t.Fatalf("the collection does not meet the fault: %v", err)
	}
	trees := map[SavesetID]testTree{m.ID: kept, mustBackup(t, s, tree, 1).ID: tree}
	for _, fate := range []vfs.Fate{vfs.Lost, vfs.Kept} {
		mustHold(t, disk.afterPowerLoss(t, o, fate), trees)
	}
	disk.fail(nil)
	mustCollect(t, s, CollectOptions{Sparse: 0.01})
	if doubt, lost := s.tombstones.unsure(); doubt || lost {
		t.Errorf("in doubt %v, lost %v after a collection", doubt, lost)
	}
	for _, id := range s.containers.without(nil) {
		if s.containers.isBarred(id) {
			t.Errorf("container %v is barred still", id)
		}
	}
	mustHold(t, disk.afterPowerLoss(t, o, vfs.Lost), trees)
	mustHold(t, collectReopen(t, s, o, true), trees)
}
