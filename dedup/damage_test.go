package dedup

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// flipBlob changes one bit of a blob.
func flipBlob(t testing.TB, b blob.Store, name string, off int64) {
	t.Helper()
	data, err := blob.ReadAll(t.Context(), b, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	data[(off+int64(len(data)))%int64(len(data))] ^= 0x04
	replaceBlob(t, b, name, data)
}

func replaceBlob(t testing.TB, b blob.Store, name string, data []byte) {
	t.Helper()
	if err := b.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), name, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

// containersOf lists a store's containers of a kind.
func containersOf(t testing.TB, o Options, kind container.Kind) []container.ID {
	t.Helper()
	var out []container.ID
	for info, err := range o.Blob.List(t.Context(), container.Prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		id, _ := container.ParseName(info.Name)
		if k, err := container.Peek(t.Context(), o.Blob, id); err == nil && k == kind {
			out = append(out, id)
		}
	}
	return out
}

// harmFrame flips a bit in the middle of a frame's record.
func harmFrame(t testing.TB, s *Store, o Options, id container.ID, frame uint32) {
	t.Helper()
	dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
	if err != nil {
		t.Fatal(err)
	}
	f := dir.Frame(frame)
	flipBlob(t, o.Blob, id.Name(), f.Offset+int64(f.Size)/2)
}

func mustCheck(t testing.TB, s *Store) CheckReport {
	t.Helper()
	rep, err := s.Check(t.Context(), CheckOptions{Objects: true, Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.waitSettled(t.Context()); err != nil {
		t.Fatal(err)
	}
	return rep
}

// filesOf returns the paths of a tree that hold one of the digests.
func filesOf(s *Store, tree testTree, ds []digest.Digest) []string {
	h := digest.NewHasher(s.Domain().Keys.Data)
	var out []string
	for _, name := range tree.names() {
		if slices.ContainsFunc(tree[name], func(c []byte) bool { return slices.Contains(ds, h.Sum(c)) }) {
			out = append(out, name)
		}
	}
	return out
}

// TestDamageIsFoundNamedAndHealed is the life of one flipped bit: check finds and names it, reading goes on around it, a
// reopened store knows it, the next backup sends what is missed, and then the old saveset is whole again.
func TestDamageIsFoundNamedAndHealed(t *testing.T) {
	for _, kind := range []container.Kind{container.Data, container.Node} {
		t.Run(kind.String(), func(t *testing.T) {
			o := memOptions(t)
			s := mustCreate(t, o)
			r := newRand(t)
			tree := randomTree(r, 200).withDisk(r)
			old := mustBackup(t, s, tree, 1)
			later := tree.mutate(r)
			second := mustBackupOn(t, s, later, 1, base{id: old.ID, tree: tree})
			if rep := mustCheck(t, s); len(rep.Found) != 0 || !rep.Complete || rep.Savesets != 2 {
				t.Fatalf("a healthy store: %+v", rep)
			}
			harmFrame(t, s, o, containersOf(t, o, kind)[0], 0)
			s = reopen(t, s, o) // nothing of it is in a cache
			rep := mustCheck(t, s)
			if len(rep.Found) != 1 || rep.Found[0].Frame != 0 || rep.Found[0].Kind != kind || len(rep.Found[0].Digests) == 0 {
				t.Fatalf("check found %+v", rep.Found)
			}
			for range 2 {
				wantAffected(t, s, map[SavesetID]testTree{old.ID: tree, second.ID: later})
				s = reopen(t, s, o)
			}
			if err := compare(t.Context(), s, old.ID, tree); KindOf(err) != Damaged {
				t.Fatalf("reading: %v", err)
			}
			third := mustBackup(t, s, later, 2)
			if got := s.Damage(); len(got) != 0 && kind == container.Data && len(filesOf(s, later, got[0].Digests)) > 0 {
				t.Fatalf("after a full backup: %+v", got)
			}
			mustBackup(t, s, tree, 2)
			for range 2 {
				if got := s.Damage(); len(got) != 0 {
					t.Fatalf("after the second full backup: %+v", got)
				}
				if harmed, err := s.Harmed(t.Context()); err != nil || len(harmed) != 0 {
					t.Fatalf("harmed: %v, %v", harmed, err)
				}
				mustCompare(t, s, old.ID, tree)
				mustCompare(t, s, second.ID, later)
				mustCompare(t, s, third.ID, later)
				mustCheck(t, s)
				s = reopen(t, s, o)
			}
		})
	}
}

// wantAffected holds the files that Affected names against those that cannot be read.
func wantAffected(t *testing.T, s *Store, trees map[SavesetID]testTree) {
	t.Helper()
	got, err := s.Affected(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	harmed, err := s.Harmed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, tree := range trees {
		var named []string
		for _, a := range got {
			if a.Saveset == id {
				named = a.Paths
			}
		}
		for _, name := range tree.names() {
			bad := compareOne(t, s, id, name, tree[name]) != nil
			if said := slices.ContainsFunc(named, func(p string) bool { return p == name || p == "" || strings.HasPrefix(name, p+"/") }); said != bad {
				t.Errorf("saveset %v, %s: harmed %v, named %v", id, name, bad, said)
			}
		}
		if harmed[id] != (len(named) > 0) && len(named) > 0 {
			t.Errorf("saveset %v: harmed %v with %d paths", id, harmed[id], len(named))
		}
	}
}

// compareOne reads one file of a saveset.
func compareOne(t *testing.T, s *Store, id SavesetID, name string, want [][]byte) error {
	t.Helper()
	v, err := s.View(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	e, err := lookupPath(t.Context(), v, v.Manifest().Root.Digest, name)
	if err != nil {
		return err
	}
	if err = compareFile(t.Context(), v, &e, want); errors.Is(err, errDiffers) {
		t.Fatalf("%s: wrong bytes: %v", name, err)
	}
	return err
}

// reopen closes and opens a store.
func reopen(t testing.TB, s *Store, o Options) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, o)
}

func lookupPath(ctx context.Context, v recipe.Source, dir digest.Digest, name string) (e recipe.Entry, err error) {
	for part := range strings.SplitSeq(name, "/") {
		if e, _, err = recipe.Lookup(ctx, v, dir, part); err != nil {
			return e, err
		}
		dir = e.Content.Digest
	}
	return e, nil
}
