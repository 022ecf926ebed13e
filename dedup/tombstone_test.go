package dedup

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
)

func bitsWith(slots ...uint32) (b slotBits) {
	for _, s := range slots {
		b = b.with(s, 0)
	}
	return b
}

func TestTombstoneGolden(t *testing.T) {
	dead := map[container.ID]slotBits{
		container.MakeID(2, 1): bitsWith(0, 9, 64), container.MakeID(1, 7): bitsWith(3), container.MakeID(1, 8): nil}
	got := golden(t, "tombstones.json", newTombstonesObject(5, time.Unix(1_800_000_000, 5), dead))
	var o tombstonesObject
	if err := decodeObject(tombstoneKind, "", got, &o); err != nil {
		t.Fatal(err)
	}
	back, err := o.decode()
	delete(dead, container.MakeID(1, 8))
	if err != nil || !maps.EqualFunc(back, dead, slices.Equal) {
		t.Errorf("comes back as %v, %v", back, err)
	}
}

func TestTombstonesRefused(t *testing.T) {
	for name, text := range map[string]string{
		"not a container":   `{"version":1,"number":1,"containers":[{"container":"7","dead":"AQ=="}]}`,
		"upper case":        `{"version":1,"number":1,"containers":[{"container":"000000010000000A","dead":"AQ=="}]}`,
		"twice":             `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":"AQ=="},{"container":"0000000100000001","dead":"AQ=="}]}`,
		"no slots":          `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":""}]}`,
		"zeros at the end":  `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":"AQA="}]}`,
		"an unknown member": `{"version":1,"number":1,"containers":[],"more":1}`,
	} {
		var o tombstonesObject
		err := decodeObject(tombstoneKind, "", []byte(text), &o)
		if err == nil {
			_, err = o.decode()
		}
		if err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
}

func FuzzTombstones(f *testing.F) {
	b, err := json.Marshal(newTombstonesObject(5, time.Unix(1, 2), map[container.ID]slotBits{container.MakeID(1, 7): bitsWith(3, 90)}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var o tombstonesObject
		if decodeObject(tombstoneKind, "", b, &o) != nil {
			return
		}
		dead, err := o.decode()
		if err != nil {
			return
		}
		again, err := json.Marshal(newTombstonesObject(o.Number, o.Time, dead))
		if err != nil {
			t.Fatal(err)
		}
		var p tombstonesObject
		if err := decodeObject(tombstoneKind, "", again, &p); err != nil {
			t.Fatal(err)
		}
		if back, err := p.decode(); err != nil || !maps.EqualFunc(back, dead, slices.Equal) {
			t.Fatalf("%v comes back as %v, %v", dead, back, err)
		}
	})
}

// buryOne makes a store in which a node container stays with dead nodes in it, and returns what still reads.
func buryOne(t *testing.T) (*Store, Options, Manifest, testTree) {
	t.Helper()
	s, o, _ := gcStore(t)
	r := newRand(t)
	first := randomTree(r, 60)
	second := first.mutate(r)
	run, err := s.Begin(t.Context(), RunOptions{ID: "both"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.backup(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	m, err := backupInto(t.Context(), s, run, second, 1)
	if err != nil {
		t.Fatal(err)
	}
	// The nodes of the first tree are remains in the containers of the second.
	clock := s.opts.Now()
	s.opts.Now = func() time.Time { return clock.Add(remainsAge + time.Hour) }
	mustCollect(t, s, CollectOptions{Sparse: 0.01})
	if len(s.tombstones.all()) == 0 {
		t.Fatal("nothing was buried: the test tests nothing")
	}
	return s, o, m, second
}

// indexedDead counts the buried nodes that the index names.
func indexedDead(t *testing.T, s *Store, graves map[container.ID]slotBits) (n int) {
	t.Helper()
	for id, bits := range graves {
		dir, err := s.directory(t.Context(), id)
		if err != nil || dir == nil {
			t.Fatal(err)
		}
		for slot := range uint32(dir.Rows()) {
			if !bits.has(slot) {
				continue
			}
			at, err := s.indexed(t.Context(), []digest.Digest{dir.Digest(slot)})
			if err != nil {
				t.Fatal(err)
			}
			if at[0].dir != nil {
				n++
			}
		}
	}
	return n
}

// INVARIANT G3: dead nodes do not come back, also not when the index is made anew.
func TestBuriedNodesDoNotReturn(t *testing.T) {
	for _, lose := range []bool{false, true} {
		s, o, m, tree := buryOne(t)
		graves := s.tombstones.all()
		if n := indexedDead(t, s, graves); n > 0 {
			t.Errorf("the index names %d dead nodes", n)
		}
		s = collectReopen(t, s, o, lose)
		if n := indexedDead(t, s, graves); n > 0 {
			t.Errorf("index lost %v: it names %d dead nodes", lose, n)
		}
		mustCompare(t, s, m.ID, tree)
		if err := checkClosure(t.Context(), s); err != nil {
			t.Error(err)
		}
	}
}

// Tombstones that cannot be read cost that nothing is had from the node containers that have to be indexed anew; savesets
// read, and the next collection puts things right.
func TestTombstonesDamaged(t *testing.T) {
	s, o, m, tree := buryOne(t)
	graves := s.tombstones.all()
	name := tombstoneName(s.tombstones.number)
	damageBlob(t, o.Blob, name)
	s = collectReopen(t, s, o, true)
	mustCompare(t, s, m.ID, tree)
	run, err := s.Begin(t.Context(), RunOptions{ID: "asks"})
	if err != nil {
		t.Fatal(err)
	}
	var nodes []digest.Digest
	for id := range graves {
		dir, err := s.directory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for slot := range uint32(dir.Rows()) {
			nodes = append(nodes, dir.Digest(slot))
		}
	}
	have := make([]bool, len(nodes))
	if err := run.Have(t.Context(), nodes, have); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(have, true) {
		t.Error("a node is had although nobody knows which are dead")
	}
	if err := run.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	again := mustBackup(t, s, tree, 1)
	mustCollect(t, s, CollectOptions{})
	mustCompare(t, s, again.ID, tree)
	mustCompare(t, s, m.ID, tree)
	for _, lose := range []bool{false, true} {
		s = collectReopen(t, s, o, lose)
		if err := checkClosure(t.Context(), s); err != nil {
			t.Error(err)
		}
		mustCompare(t, s, m.ID, tree)
		for _, id := range s.containers.without(nil) {
			if s.containers.isBarred(id) {
				t.Errorf("container %v is barred still", id)
			}
		}
	}
}

// damageBlob changes a byte in the middle of a blob.
func damageBlob(t *testing.T, b blob.Store, name string) {
	t.Helper()
	p, err := blob.ReadAll(t.Context(), b, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	if err := b.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := blob.PutBytes(t.Context(), b, name, p); err != nil {
		t.Fatal(err)
	}
}
