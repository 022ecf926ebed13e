package dedup

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// halfRun stores two trees in one run, the first of which no saveset has: its nodes die in the containers of the second.
func halfRun(t testing.TB, s *Store, lost, kept testTree) Manifest {
	t.Helper()
	return halfRunApart(t, s, lost, kept, func(*agent) {})
}

// halfRunApart is halfRun with something done between the two trees.
func halfRunApart(t testing.TB, s *Store, lost, kept testTree, between func(a *agent)) Manifest {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "both"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.backup(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	between(a)
	m, err := backupInto(t.Context(), s, run, kept, 1)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// partsOf returns the names of the objects that the tombstones are in.
func partsOf(t testing.TB, b blob.Store) (names []string) {
	t.Helper()
	for _, prefix := range []string{tombstonePrefix, tombstonePartPrefix} {
		for info, err := range b.List(t.Context(), prefix, "") {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, info.Name)
		}
	}
	return names
}

// diesInParts is a store with dead nodes in several containers, whose tombstones do not fit into one object.
func diesInParts(t testing.TB) (*Store, Options, *sickDisk, map[SavesetID]testTree) {
	t.Helper()
	s, o, clock, disk := sickStore(t)
	r := newRand(t)
	trees := make(map[SavesetID]testTree)
	for range 4 {
		lost := randomTree(r, 20)
		kept := lost.mutate(r)
		trees[halfRun(t, s, lost, kept).ID] = kept
	}
	clock.advance(remainsAge + time.Hour)
	s.tombstones.limit = 1
	return s, o, disk, trees
}

// Tombstones that one object does not take lie in several; the store opens with them, and they go when they are not needed.
func TestTombstonesInParts(t *testing.T) {
	s, o, _, trees := diesInParts(t)
	mustCollect(t, s, CollectOptions{Sparse: 0.01})
	names := partsOf(t, o.Blob)
	if len(names) != 5 {
		t.Fatalf("objects %v, want one and 4 parts", names)
	}
	for _, lose := range []bool{false, true} {
		dead := s.tombstones.all()
		s = collectReopen(t, s, o, lose)
		if got := s.tombstones.all(); !sameGraves(got, dead) {
			t.Errorf("tombstones come back as %v, want %v", got, dead)
		}
		if n := indexedDead(t, s, dead); n > 0 {
			t.Errorf("index lost %v: it names %d dead nodes", lose, n)
		}
		mustHold(t, s, trees)
	}
	if err := s.rebury(t.Context(), ""); err != nil { // with the limit that stores have
		t.Fatal(err)
	}
	if names := partsOf(t, o.Blob); len(names) != 1 || !strings.HasPrefix(names[0], tombstonePrefix) {
		t.Errorf("objects %v, want one", names)
	}
	for id := range trees {
		mustDelete(t, s, id)
	}
	mustCollect(t, s, CollectOptions{})
	if n := len(s.tombstones.all()); n > 0 {
		t.Errorf("tombstones of %d containers that are gone", n)
	}
}

// Tombstones of which an object is damaged or missing are lost as a whole when the store opens, and written anew by the next
// collection; while the store knows them a healing does that.
func TestTombstonePartDamaged(t *testing.T) {
	for i := range 5 {
		for how, harm := range map[string]func(blob.Store, string){
			"damaged": func(b blob.Store, name string) { flipBlob(t, b, name, -5) },
			"gone": func(b blob.Store, name string) {
				if err := b.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			},
		} {
			if how == "gone" && i == 0 {
				continue // nobody can tell that there were any
			}
			s, o, _, trees := diesInParts(t)
			mustCollect(t, s, CollectOptions{Sparse: 0.01})
			name := partsOf(t, o.Blob)[i]
			harm(o.Blob, name)
			if how == "damaged" {
				if rep := mustCheck(t, s); len(rep.Found) != 1 || rep.Found[0].Object != name {
					t.Fatalf("%s %s: found %+v", name, how, rep.Found)
				}
				if _, err := s.Heal(t.Context(), nil, nil); err != nil || len(s.Damage()) > 0 {
					t.Fatalf("%s %s: heal: %v, left %+v", name, how, err, s.Damage())
				}
				harm(o.Blob, partsOf(t, o.Blob)[i])
			}
			s = collectReopen(t, s, o, true)
			if _, lost := s.tombstones.unsure(); !lost {
				t.Errorf("%s %s: not lost", name, how)
			}
			mustCompareAll(t, s, trees)
			mustCollect(t, s, CollectOptions{Sparse: 0.01})
			mustHold(t, collectReopen(t, s, o, true), trees)
		}
	}
}

func mustCompareAll(t testing.TB, s *Store, trees map[SavesetID]testTree) {
	t.Helper()
	for id, tree := range trees {
		mustCompare(t, s, id, tree)
	}
}

// A crash at any operation of a collection whose tombstones are in parts leaves the old ones or the new ones.
func TestCrashBetweenTombstoneParts(t *testing.T) {
	s, o, disk, trees := diesInParts(t)
	var mu sync.Mutex
	var crashes []*vfs.Mem
	disk.fail(func(op errorfs.Op, _ string) bool {
		if op.Changes() {
			mu.Lock()
			defer mu.Unlock()
			fate := [...]vfs.Fate{vfs.Lost, vfs.Kept}[len(crashes)%2]
			crashes = append(crashes, disk.mem.Crash(vfs.CrashOptions{Data: fate, Entries: fate}))
		}
		return false
	})
	mustCollect(t, s, CollectOptions{Sparse: 0.01})
	disk.fail(nil)
	t.Logf("%d crashes", len(crashes))
	for i := 0; i < len(crashes); i += forms(4, 1, 1) {
		again := (&sickDisk{mem: crashes[i]}).afterPowerLoss(t, o, vfs.Kept)
		if _, lost := again.tombstones.unsure(); lost {
			t.Errorf("crash %d: the tombstones are lost", i)
		}
		mustHold(t, again, trees)
		for _, name := range partsOf(t, again.blob) {
			if !strings.Contains(name, fmt.Sprintf("/%08x", again.tombstones.number)) {
				t.Errorf("crash %d: %s is left", i, name)
			}
		}
	}
}
