package dedup

import (
	"path/filepath"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// healed runs a Heal after which nothing may be left and the savesets must read.
func healed(t *testing.T, s *Store, from []ChunkSource, trees map[SavesetID]testTree) HealReport {
	t.Helper()
	rep, err := s.Heal(t.Context(), from, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Damage(); len(got) != 0 || rep.Left != 0 {
		t.Fatalf("after healing: %+v, %+v", rep, got)
	}
	for id, tree := range trees {
		mustCompare(t, s, id, tree)
	}
	if rep := mustCheck(t, s); len(rep.Found) != 0 {
		t.Fatalf("check after healing: %+v", rep)
	}
	return rep
}

// damagedStore is a store of two savesets, closed.
func damagedStore(t *testing.T) (Options, map[SavesetID]testTree) {
	t.Helper()
	o := memOptions(t)
	s := mustCreate(t, o)
	r := newRand(t)
	tree := randomTree(r, 120).withDisk(r)
	later := tree.mutate(r)
	first := base{id: mustBackup(t, s, tree, 1).ID, tree: tree}
	trees := map[SavesetID]testTree{first.id: tree, mustBackupOn(t, s, later, 2, first).ID: later}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return o, trees
}

// TestHealSalvages damages containers as a whole, in every way: header, directory, footer, torn off. All their records are
// there, so that nothing is lost.
func TestHealSalvages(t *testing.T) {
	for _, kind := range []container.Kind{container.Data, container.Node} {
		for _, c := range []struct {
			name string
			harm func(t *testing.T, b blob.Store, name string)
		}{
			{"header", func(t *testing.T, b blob.Store, name string) { flipBlob(t, b, name, 60) }},
			{"directory", func(t *testing.T, b blob.Store, name string) { flipBlob(t, b, name, -300) }},
			{"footer", func(t *testing.T, b blob.Store, name string) { flipBlob(t, b, name, -84) }},
			{"hash", func(t *testing.T, b blob.Store, name string) { flipBlob(t, b, name, -30) }},
			{"torn", func(t *testing.T, b blob.Store, name string) {
				data, err := blob.ReadAll(t.Context(), b, name, 1<<30)
				if err != nil {
					t.Fatal(err)
				}
				replaceBlob(t, b, name, data[:len(data)-100])
			}},
		} {
			for _, lose := range []bool{false, true} {
				t.Run(kind.String()+" "+c.name, func(t *testing.T) {
					o, trees := damagedStore(t)
					id := containersOf(t, o, kind)[0]
					c.harm(t, o.Blob, id.Name())
					if lose {
						o.IndexDir = filepath.Join(t.TempDir(), "lost")
					}
					s := mustOpen(t, o)
					rep := mustCheck(t, s)
					if got := s.Damage(); len(got) == 0 || !lose && got[0].Container != id {
						t.Fatalf("check found %+v of %v", got, id)
					}
					if c.name != "header" && c.name != "hash" {
						wantAffected(t, s, trees)
					}
					if hr := healed(t, s, nil, trees); hr.Containers != 1 {
						t.Errorf("%+v after %+v", hr, rep)
					}
					if s.containers.has(id) {
						t.Error("the damaged container is still there")
					}
					s = reopen(t, s, o)
					for id, tree := range trees {
						mustCompare(t, s, id, tree)
					}
				})
			}
		}
	}
}

// TestHealFromSource heals from a second store of the same dedup domain, which has other keys and is in use.
func TestHealFromSource(t *testing.T) {
	for _, kind := range []container.Kind{container.Data, container.Node} {
		t.Run(kind.String(), func(t *testing.T) {
			o := memOptions(t)
			s := mustCreate(t, o)
			p := memOptions(t)
			p.Join = s.Domain()
			pair := mustCreate(t, p)
			if pair.Domain() != s.Domain() {
				t.Fatal("the paired store has another domain")
			}
			r := newRand(t)
			tree := randomTree(r, 120)
			trees := map[SavesetID]testTree{mustBackup(t, s, tree, 2).ID: tree}
			mustBackup(t, pair, tree, 1)
			for _, id := range containersOf(t, o, kind) {
				harmFrame(t, s, o, id, 0)
			}
			s = reopen(t, s, o)
			mustCheck(t, s)
			src, err := OpenSource(t.Context(), Options{Blob: p.Blob, Key: p.Key})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if rep := healed(t, s, []ChunkSource{src}, trees); rep.Fetched == 0 || rep.FetchedBytes == 0 {
				t.Errorf("%+v", rep)
			}
			s = reopen(t, s, o)
			healed(t, s, nil, trees)
			if err := pair.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestHealRefusesForeignSource(t *testing.T) {
	o, _ := damagedStore(t)
	s := mustOpen(t, o)
	p := memOptions(t)
	mustCreate(t, p)
	src, err := OpenSource(t.Context(), Options{Blob: p.Blob, Key: p.Key})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Heal(t.Context(), []ChunkSource{src}, nil)
	wantKind(t, err, WrongDomain)
}

// TestHealFromSecondCopy: two runs side by side stored the same chunks; the copy that the index names is damaged.
func TestHealFromSecondCopy(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := evenTree(newRand(t), 5) // less than a container
	one, err := s.Begin(t.Context(), RunOptions{ID: "one"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Begin(t.Context(), RunOptions{ID: "two"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(two, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), tree); err != nil { // before the other's data are found
		t.Fatal(err)
	}
	m, err := backupInto(t.Context(), s, one, tree, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	id := containersOf(t, o, container.Data)[0]
	dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
	if err != nil {
		t.Fatal(err)
	}
	places, err := s.indexed(t.Context(), ds1(dir))
	if err != nil {
		t.Fatal(err)
	}
	harmFrame(t, s, o, places[0].dir.ID(), dirFrame(places[0]))
	s = reopen(t, s, o)
	mustCheck(t, s)
	if rep := healed(t, s, nil, map[SavesetID]testTree{m.ID: tree}); rep.Local == 0 {
		t.Errorf("%+v", rep)
	}
	s = reopen(t, s, o)
	healed(t, s, nil, map[SavesetID]testTree{m.ID: tree})
}

// TestHealForgetsGarbage: damage in what no saveset refers to goes from the list, and is still not had.
func TestHealForgetsGarbage(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 60)
	m := mustBackup(t, s, tree, 1)
	mustDelete(t, s, m.ID)
	harmFrame(t, s, o, containersOf(t, o, container.Data)[0], 0)
	s = reopen(t, s, o)
	mustCheck(t, s)
	for range 2 {
		rep, err := s.Heal(t.Context(), nil, nil)
		if err != nil || rep.Left != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
		s = reopen(t, s, o)
	}
	again := mustBackup(t, s, tree, 1)
	mustCompare(t, s, again.ID, tree)
	mustCheck(t, s)
	s = reopen(t, s, o)
	mustCompare(t, s, again.ID, tree)
}

// TestHealIsRefusedBesideOthers: maintenance is one at a time where the matrix says so.
func TestHealIsRefusedBesideOthers(t *testing.T) {
	o, _ := damagedStore(t)
	s := mustOpen(t, o)
	_, end, err := s.maintain(t.Context(), checking)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Heal(t.Context(), nil, nil)
	wantKind(t, err, InUse)
	_, err = s.Check(t.Context(), CheckOptions{Pages: true})
	wantKind(t, err, InUse)
	end()
}

func ds1(dir *container.Directory) []digest.Digest { return []digest.Digest{dir.Digest(0)} }

func dirFrame(at found) uint32 { return at.dir.Row(at.slot).Frame }
