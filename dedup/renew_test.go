package dedup

import (
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
)

// hide makes a container unreadable, and returns how it is put right.
func hide(t *testing.T, s *Store, o Options, id container.ID) (show func()) {
	t.Helper()
	name := id.Name()
	data, err := blob.ReadAll(t.Context(), o.Blob, name, container.MaxSize)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), data...)
	clear(bad[len(bad)-128:])
	replaceBlob(t, o.Blob, name, bad)
	s.dirs.forget(id)
	return func() { replaceBlob(t, o.Blob, name, data) }
}

// only returns the one container of a kind that was not there before.
func only(t *testing.T, o Options, kind container.Kind, before ...container.ID) container.ID {
	t.Helper()
	var fresh []container.ID
	for _, id := range containersOf(t, o, kind) {
		known := false
		for _, b := range before {
			known = known || b == id
		}
		if !known {
			fresh = append(fresh, id)
		}
	}
	if len(fresh) != 1 {
		t.Fatalf("%d new containers of %v", len(fresh), kind)
	}
	return fresh[0]
}

// Nodes that die while their container cannot be read are dead when it can: what is below them is gone.
func TestNodesThatDieUnread(t *testing.T) {
	for _, how := range []string{"found by a check", "found at a start", "found at a start without an index"} {
		t.Run(how, func(t *testing.T) {
			s, o, clock := gcStore(t)
			r := newRand(t)
			kept := randomTree(r, 20)
			trees := map[SavesetID]testTree{mustBackup(t, s, kept, 1).ID: kept}
			before := containersOf(t, o, container.Node)
			tree := randomTree(r, 20)
			m := mustBackup(t, s, tree, 1)
			id := only(t, o, container.Node, before...)
			show := hide(t, s, o, id)
			mustCheck(t, s)
			if s.containers.readable(id) {
				t.Fatal("the container can be read: the test tests nothing")
			}
			mustDelete(t, s, m.ID)
			clock.advance(remainsAge + time.Hour)
			mustCollect(t, s, CollectOptions{})
			show()
			if how != "found by a check" {
				s = collectReopen(t, s, o, how != "found at a start")
			}
			mustCheck(t, s)
			mustHold(t, s, trees)
			trees[mustBackup(t, s, tree, 1).ID] = tree
			mustHold(t, s, trees)
			mustCollect(t, s, CollectOptions{})
			if s.containers.has(id) || len(s.tombstones.all()) > 0 {
				t.Errorf("the container is there %v, %d tombstones", s.containers.has(id), len(s.tombstones.all()))
			}
			mustHold(t, collectReopen(t, s, o, true), trees)
		})
	}
}

// A container that proves to be readable while a collection runs is left for later: it would take entries over from places
// that are marked into its own, which are not.
func TestRenewedBesideCollection(t *testing.T) {
	for _, phase := range []string{"mark", "judge", "sweep", "copy"} {
		t.Run(phase, func(t *testing.T) {
			o, clock := memOptions(t), newTestClock()
			o.Now, o.ContainerSize = clock.now, 1<<20
			s := mustCreate(t, o)
			tree := randomTree(newRand(t), 6)
			first := mustBackup(t, s, tree, 1)
			id := only(t, o, container.Data)
			show := hide(t, s, o, id)
			mustCheck(t, s)
			second := mustBackup(t, s, tree, 1) // all is stored again
			again := only(t, o, container.Data, id)
			clock.advance(remainsAge + time.Hour)
			dir, err := s.directory(t.Context(), again)
			if err != nil || dir == nil {
				t.Fatal(err)
			}
			for frame := range uint32(dir.Frames()) {
				harmFrame(t, s, o, again, frame)
			}
			mustCheck(t, s) // the place that the index names is bad
			show()
			looked := false
			mustCollect(t, s, at(phase, func() {
				looked = true
				if _, err := s.Check(t.Context(), CheckOptions{Deep: true}); err != nil {
					t.Error(err)
				}
			}))
			if !looked {
				t.Fatal("the collection does not come to the phase")
			}
			mustCheck(t, s)
			if d := s.containers.readable(id); !d {
				t.Error("the next check does not take the container into use")
			}
			mustHold(t, s, map[SavesetID]testTree{first.ID: tree, second.ID: tree})
		})
	}
}
