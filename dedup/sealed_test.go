package dedup

import (
	"bytes"
	"context"
	"errors"
	mathrand "math/rand/v2"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// sealedTask is what an agent and the store know of an encrypted task.
type sealedTask struct {
	domain Domain
	key    seal.Key
}

func newSealedTask(t testing.TB, s *Store, key byte) sealedTask {
	t.Helper()
	d, err := s.AddDomain(t.Context(), seal.MaxPlain)
	if err != nil {
		t.Fatal(err)
	}
	return sealedTask{d, seal.Key{key}}
}

func (k sealedTask) begin(t testing.TB, s *Store) *Run {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "sealed", Domain: k.domain.ID, SealedBy: k.key.ID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = run.Abort(context.Background(), "test") })
	return run
}

func (k sealedTask) backup(t testing.TB, s *Store, tree testTree) Manifest {
	t.Helper()
	return k.backupOn(t, s, tree, base{})
}

// backupOn takes what is the same in the disks of an earlier saveset over.
func (k sealedTask) backupOn(t testing.TB, s *Store, tree testTree, b base) Manifest {
	t.Helper()
	run := k.begin(t, s)
	a, err := newAgent(run, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	a.key = &k.key
	done, err := a.use(t.Context(), s, b)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	root, side, err := a.backup(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	m, err := run.Commit(t.Context(), Draft{Root: root, Side: side, Task: "sealed"})
	if err != nil {
		t.Fatal(err)
	}
	if m.SealedBy != k.key.ID() || m.Domain != k.domain.ID {
		t.Fatalf("manifest says %v, %v", m.SealedBy, m.Domain)
	}
	return m
}

// unsealed reads a sealed saveset with its key.
type unsealed struct {
	*View
	o *seal.Opener
}

func (u unsealed) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	return u.o.Source(u.View).Node(ctx, d)
}

func (u unsealed) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) {
	box, err := u.View.Chunk(ctx, d)
	if err != nil {
		return nil, err
	}
	return u.o.Chunk(nil, box)
}

func compareSealed(t testing.TB, s *Store, id SavesetID, key seal.Key, want testTree) error {
	t.Helper()
	v, err := s.View(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	return compareTree(t.Context(), unsealed{v, seal.NewOpener(key)}, v.Manifest(), want)
}

// marked is a tree whose contents and names can be looked for.
func marked(r *mathrand.Rand) testTree {
	tree := randomTree(r, 60).withDisk(r)
	tree["d00/NAME-OF-A-SECRET"] = [][]byte{bytes.Repeat([]byte("CONTENT-OF-A-SECRET "), 500)}
	return tree
}

// TestSealedSavesets: a sealed task deduplicates against itself and against nobody else, reads back with its key alone,
// also after the store was opened again without its index.
func TestSealedSavesets(t *testing.T) {
	o := memOptions(t)
	o.Key = keys.None() // what is in the blobs is what the task's key leaves to see
	s := mustCreate(t, o)
	r := newRand(t)
	tree := marked(r)
	mustBackup(t, s, testTree{"d/other": {randomBytes(r, 5000)}}, 1)
	task, other := newSealedTask(t, s, 1), newSealedTask(t, s, 2)
	first := task.backup(t, s, tree)
	looksSealed(t, o.Blob)
	if again := task.backup(t, s, tree); again.New != 0 || again.Root != first.Root {
		t.Errorf("the same tree again is new: %d bytes", again.New)
	}
	changed := tree.mutate(r)
	second := task.backupOn(t, s, changed, base{id: first.ID, tree: tree})
	if second.New >= first.New/2 {
		t.Errorf("a changed tree is new: %d bytes of %d", second.New, first.New)
	}
	elsewhere, plain := other.backup(t, s, tree), mustBackup(t, s, tree, 2)
	for name, m := range map[string]Manifest{"another task": elsewhere, "an open task": plain} {
		if m.New < first.New*9/10 {
			t.Errorf("%s shares with the sealed one: %d bytes new of %d", name, m.New, first.New)
		}
	}
	for _, lose := range []bool{false, true} {
		s = collectReopen(t, s, o, lose)
		for m, want := range map[*Manifest]testTree{&first: tree, &second: changed} {
			if err := compareSealed(t, s, m.ID, task.key, want); err != nil {
				t.Fatal(err)
			}
		}
		if err := compareSealed(t, s, elsewhere.ID, other.key, tree); err != nil {
			t.Fatal(err)
		}
		mustCompare(t, s, plain.ID, tree)
		if err := compareSealed(t, s, first.ID, other.key, tree); !errors.Is(err, seal.ErrKey) {
			t.Errorf("another task's key: %v", err)
		}
		var typed *recipe.Error
		if err := compare(t.Context(), s, first.ID, tree); !errors.As(err, &typed) || typed.Kind != recipe.Sealed {
			t.Errorf("no key: %v", err)
		}
	}
}

// looksSealed searches a store without encryption of its own for what the tree has in it.
func looksSealed(t *testing.T, b blob.Store) {
	t.Helper()
	found := 0
	for e, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		data, err := blob.ReadAll(t.Context(), b, e.Name, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		found++
		for _, mark := range []string{"NAME-OF-A-SECRET", "CONTENT-OF-A-SECRET"} {
			if bytes.Contains(data, []byte(mark)) {
				t.Errorf("%s has %s in it", e.Name, mark)
			}
		}
	}
	if found < 4 {
		t.Fatalf("%d blobs looked at", found)
	}
}

// TestSealedCollect: a collection needs no task key: it keeps sealed savesets, takes deleted ones out and copies forward.
func TestSealedCollect(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	task := newSealedTask(t, s, 1)
	var kept []Manifest
	var trees []testTree
	tree := marked(r)
	var last base
	for i := range 5 {
		m := task.backupOn(t, s, tree, last)
		if i%2 == 0 {
			last = base{id: m.ID, tree: tree}
		}
		mustBackup(t, s, tree, 1)
		if i%2 == 0 {
			kept, trees = append(kept, m), append(trees, tree)
		} else {
			mustDelete(t, s, m.ID)
		}
		tree = tree.mutate(r)
		mustDelete(t, s, task.backup(t, s, marked(r)).ID)
	}
	whole := evenTree(r, 80)
	gone, half := task.backup(t, s, whole), whole.without(2) // its containers are copied
	kept, trees = append(kept, task.backup(t, s, half)), append(trees, half)
	mustDelete(t, s, gone.ID)
	clock.advance(96 * time.Hour)
	report := mustCollect(t, s, CollectOptions{Sparse: 0.99})
	if report.Copied == 0 || report.Deleted == 0 {
		t.Errorf("nothing was collected: %+v", report)
	}
	rep, err := s.Check(t.Context(), CheckOptions{Objects: true, Deep: true})
	if err != nil || len(s.Damage()) > 0 || rep.Frames == 0 || rep.References == 0 {
		t.Errorf("check: %+v, %v, damage %v", rep, err, s.Damage())
	}
	for _, lose := range []bool{false, true} {
		s = collectReopen(t, s, o, lose)
		for i, m := range kept {
			if err := compareSealed(t, s, m.ID, task.key, trees[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if again := task.backup(t, s, trees[len(trees)-1]); again.New != 0 {
		t.Errorf("after the collection the same tree is new: %d bytes", again.New)
	}
}

// TestSealedRefusals: no run gets at another domain's chunks, and each keeps to its way of sealing.
func TestSealedRefusals(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	task := newSealedTask(t, s, 1)
	tree := testTree{"d/f": {[]byte("some content")}}
	m := task.backup(t, s, tree)
	_, err := s.Begin(t.Context(), RunOptions{ID: "x", SealedBy: task.key.ID()})
	wantKind(t, err, Invalid)
	_, err = s.Begin(t.Context(), RunOptions{ID: "x", Domain: digest.DomainID{9}})
	wantKind(t, err, NotFound)

	foreign, err := s.Begin(t.Context(), RunOptions{ID: "open"})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Abort(t.Context(), "test")
	have := []bool{true}
	if err := foreign.Have(t.Context(), []digest.Digest{m.Root.Digest}, have); err != nil || have[0] {
		t.Errorf("a run of another domain has the sealed root: %v", err)
	}
	_, err = foreign.Commit(t.Context(), Draft{Root: m.Root})
	wantKind(t, err, UnknownChild)

	h := digest.NewHasher(task.domain.Keys.Node)
	last := &keepSink{}
	put := func(into recipe.Sink) error {
		b := recipe.NewDirBuilder(into, h)
		if _, err := b.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		rec := last.rec
		run := task.begin(t, s)
		f := frame.NewEncoder().Encode([]frame.Ref{{Digest: h.Sum(rec), Length: uint32(len(rec))}}, rec, nil)
		return run.PutNodes(t.Context(), f)
	}
	wantKind(t, put(last), BadNode)
	wantKind(t, put(seal.NewSink(last, seal.Key{7})), BadNode)
	if err := put(seal.NewSink(last, task.key)); err != nil {
		t.Error(err)
	}
	if m.Domain == s.Domain().ID {
		t.Error("a sealed saveset lies in the domain of all")
	}
}

// keepSink keeps the last node.
type keepSink struct{ rec []byte }

func (k *keepSink) PutNode(_ context.Context, _ digest.Digest, rec []byte) error {
	k.rec = bytes.Clone(rec)
	return nil
}
