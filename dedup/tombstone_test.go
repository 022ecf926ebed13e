package dedup

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
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

func sameGraves(a, b graves) bool {
	return maps.EqualFunc(a, b, func(x, y grave) bool { return x.all == y.all && slices.Equal(x.dead, y.dead) })
}

func decodeTombstones(b []byte) (o tombstonesObject, dead graves, err error) {
	dead = make(graves)
	if err = decodeObject(tombstoneKind, "", b, &o); err == nil {
		err = o.check()
	}
	if err == nil {
		_, err = dead.add(o.Containers, 0)
	}
	return o, dead, err
}

func TestTombstoneGolden(t *testing.T) {
	dead := graves{container.MakeID(2, 1): {dead: bitsWith(0, 9, 64)}, container.MakeID(1, 7): {dead: bitsWith(3)}, container.MakeID(1, 8): {}}
	o, parts := newTombstones(5, time.Unix(1_800_000_000, 5), dead, maxObject)
	_, back, err := decodeTombstones(golden(t, "tombstones.json", o))
	delete(dead, container.MakeID(1, 8))
	if err != nil || len(parts) > 0 || !sameGraves(back, dead) {
		t.Errorf("comes back as %v, %v", back, err)
	}
	dead[container.MakeID(1, 9)] = grave{all: true}
	o, _ = newTombstones(5, time.Unix(1_800_000_000, 5), dead, maxObject)
	if _, back, err = decodeTombstones(golden(t, "tombstones-whole.json", o)); err != nil || !sameGraves(back, dead) {
		t.Errorf("comes back as %v, %v", back, err)
	}
	o, parts = newTombstones(5, time.Unix(1_800_000_000, 5), dead, 1)
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	if _, back, err = decodeTombstones(golden(t, "tombstones-parts.json", o)); err != nil || len(back) > 0 {
		t.Errorf("comes back as %v, %v", back, err)
	}
	var p tombstonePart
	if err := decodeObject(tombstonePartKind, "", golden(t, "tombstone-part.json", parts[1]), &p); err != nil || p.Part != 1 {
		t.Errorf("comes back as %+v, %v", p, err)
	}
}

// No object grows beyond what a reader takes, whatever lies in it, and a few large entries are not scattered.
func TestTombstonesAreCut(t *testing.T) {
	dead := make(graves)
	all := slotBits(bytesOf(0xff, container.MaxSize/minRow/8))
	for i := range uint32(2000) {
		dead[container.MakeID(1, i)] = grave{dead: bitsWith(0, i*100)}
	}
	dead[container.MakeID(1, 1000)] = grave{dead: all}
	dead[container.MakeID(1, 1001)] = grave{all: true}
	o, parts := newTombstones(math.MaxUint32, time.Unix(1_800_000_000, 999_999_999), dead, maxObject)
	if o.Version != tombstonesInParts || int(o.Parts) != len(parts) || len(parts) < 3 || len(parts) > 20 {
		t.Fatalf("version %d, %d parts, %d made", o.Version, o.Parts, len(parts))
	}
	back, last := make(graves), container.ID(0)
	for _, p := range parts {
		b, err := json.Marshal(p)
		if err != nil || len(b) > maxObject {
			t.Fatalf("part %d: %d bytes, %v", p.Part, len(b), err)
		}
		if last, err = back.add(p.Containers, last); err != nil {
			t.Fatal(err)
		}
	}
	if !sameGraves(back, dead) {
		t.Error("the parts are not the whole")
	}
}

func bytesOf(x byte, n int) slotBits { return bitsOf(bytes.Repeat([]byte{x}, n)) }

func TestTombstonesRefused(t *testing.T) {
	for name, text := range map[string]string{
		"not a container":             `{"version":1,"number":1,"containers":[{"container":"7","dead":"AQ=="}]}`,
		"upper case":                  `{"version":1,"number":1,"containers":[{"container":"000000010000000A","dead":"AQ=="}]}`,
		"twice":                       `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":"AQ=="},{"container":"0000000100000001","dead":"AQ=="}]}`,
		"no slots":                    `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":""}]}`,
		"zeros at the end":            `{"version":1,"number":1,"containers":[{"container":"0000000100000001","dead":"AQA="}]}`,
		"an unknown member":           `{"version":1,"number":1,"containers":[],"more":1}`,
		"whole, of version 1":         `{"version":1,"number":1,"containers":[{"container":"0000000100000001","all":true}]}`,
		"whole and not":               `{"version":2,"number":1,"containers":[{"container":"0000000100000001","dead":"AQ==","all":true}]}`,
		"parts of version 1":          `{"version":1,"number":1,"parts":1,"containers":[]}`,
		"parts and more":              `{"version":2,"number":1,"parts":1,"containers":[{"container":"0000000100000001","dead":"AQ=="}]}`,
		"more parts than anybody has": `{"version":2,"number":1,"parts":4000000000,"containers":[]}`,
	} {
		if _, _, err := decodeTombstones([]byte(text)); err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
}

func FuzzTombstones(f *testing.F) {
	dead := graves{container.MakeID(1, 7): {dead: bitsWith(3, 90)}, container.MakeID(1, 9): {all: true}}
	for _, limit := range []int{1, maxObject} {
		o, _ := newTombstones(5, time.Unix(1, 2), dead, limit)
		b, err := json.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, dead, err := decodeTombstones(b)
		if err != nil || o.Parts > 0 {
			return
		}
		encoded, parts := newTombstones(o.Number, o.Time, dead, math.MaxInt)
		again, err := json.Marshal(encoded)
		if err != nil || len(parts) > 0 {
			t.Fatal(err)
		}
		if _, back, err := decodeTombstones(again); err != nil || !sameGraves(back, dead) {
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
	m := halfRun(t, s, first, second)
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
func indexedDead(t *testing.T, s *Store, graves graves) (n int) {
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
