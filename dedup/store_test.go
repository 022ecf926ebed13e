package dedup

import (
	"bytes"
	"errors"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

func fixedRand() *mathrand.Rand { return mathrand.New(mathrand.NewPCG(1, 2)) }

// onEach runs a contract test on the file system in memory and on a real one.
func onEach(t *testing.T, f func(t *testing.T, o Options)) {
	t.Run("mem", func(t *testing.T) { f(t, memOptions(t)) })
	t.Run("dir", func(t *testing.T) {
		root := t.TempDir()
		f(t, testOptions(t, vfs.OS(), root, filepath.Join(root, "index")))
	})
}

func TestBackupReopenRead(t *testing.T) {
	onEach(t, func(t *testing.T, o Options) {
		s := mustCreate(t, o)
		r := fixedRand()
		first := randomTree(r, 120)
		second := first.mutate(r)
		m1 := mustBackup(t, s, first, 2)
		m2, err := backup(t.Context(), s, second, 3, m1.ID)
		if err != nil {
			t.Fatal(err)
		}
		if m2.Stored >= m1.Stored/2 || m2.New == 0 {
			t.Errorf("second run stored %d after %d, new %d: it did not deduplicate", m2.Stored, m1.Stored, m2.New)
		}
		for range 2 {
			mustCompare(t, s, m1.ID, first)
			mustCompare(t, s, m2.ID, second)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, o)
		}
		sets, err := s.Savesets(t.Context())
		if err != nil || len(sets) != 2 || sets[0].ID != m1.ID || sets[1].Client != "web1" || string(sets[0].Meta) != `{"a":1}` {
			t.Errorf("savesets %+v, %v", sets, err)
		}
		if sets[0].Stored != m1.Stored || !sets[0].Committed.Equal(m1.Committed) || sets[0].Root != m1.Root {
			t.Errorf("manifest %+v read back as %+v", m1, sets[0])
		}
	})
}

func TestSecondFullStoresAlmostNothing(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	tree := randomTree(fixedRand(), 100)
	mustBackup(t, s, tree, 2)
	m := mustBackup(t, s, tree, 2)
	if m.New != 0 || m.Stored != 0 {
		t.Errorf("the same tree again: new %d, stored %d", m.New, m.Stored)
	}
	mustCompare(t, s, m.ID, tree)
	if st := s.Stats(); st.LocalityHits == 0 || st.Savesets != 2 || st.Runs != 0 || st.Views != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestCreateOpenErrors(t *testing.T) {
	o := memOptions(t)
	if _, err := Open(t.Context(), o); KindOf(err) != NotFound {
		t.Errorf("open of nothing: %v", err)
	}
	s := mustCreate(t, o)
	if _, err := Open(t.Context(), o); KindOf(err) != Locked {
		t.Errorf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), o); KindOf(err) != Exists {
		t.Errorf("create over a store: %v", err)
	}
	data, err := keys.NewKeyFile(bytes.NewReader(bytes.Repeat([]byte{9}, 256)))
	if err != nil {
		t.Fatal(err)
	}
	wrong := o
	if wrong.Key, err = keys.KeyFile(data); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), wrong); KindOf(err) != WrongKey {
		t.Errorf("wrong key: %v", err)
	}
	if _, err := Open(t.Context(), Options{}); KindOf(err) != Invalid {
		t.Errorf("no options: %v", err)
	}
	d := s.Domain()
	s = mustOpen(t, o)
	if s.Domain() != d {
		t.Error("the domain changed")
	}
}

func TestContainerIDsAreNeverReused(t *testing.T) {
	o := memOptions(t)
	r := fixedRand()
	seen := make(map[container.ID]bool)
	for i := range 3 {
		var s *Store
		if i == 0 {
			s = mustCreate(t, o)
		} else {
			s = mustOpen(t, o)
		}
		mustBackup(t, s, randomTree(r, 20), 1)
		n := 0
		for id := range s.containers.m {
			if id.Epoch() == s.epoch {
				if seen[id] {
					t.Errorf("%v twice", id)
				}
				seen[id], n = true, n+1
			}
		}
		if n == 0 || s.epoch != uint32(i+1) {
			t.Errorf("epoch %d with %d containers in open %d", s.epoch, n, i)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewerFormatIsRefusedByName(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	obj := map[string]any{"version": newestVersion(manifestKind) + 1, "id": "x"}
	if err := s.putObject(t.Context(), manifestKind, manifestName(SavesetID{1}), obj); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); KindOf(err) != NewerFormat {
		t.Errorf("open: %v", err)
	}
}

func TestIndexLostBehindAheadCorrupt(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	r := fixedRand()
	first := randomTree(r, 60)
	m1 := mustBackup(t, s, first, 2)
	closed := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	closed()
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, o.IndexDir, old)
	before := o.FS.(*vfs.Mem).Crash(vfs.CrashOptions{})
	s = mustOpen(t, o)
	second := first.mutate(r)
	m2 := mustBackup(t, s, second, 2)
	check := func(name string, o Options, whole bool) {
		t.Helper()
		s = mustOpen(t, o)
		mustCompare(t, s, m1.ID, first)
		if whole {
			mustCompare(t, s, m2.ID, second)
			if m := mustBackup(t, s, second, 1); m.New != 0 {
				t.Errorf("%s: %d bytes are not found", name, m.New)
			}
		} else {
			m := mustBackup(t, s, second, 1)
			mustCompare(t, s, m.ID, second)
		}
		closed()
	}
	closed()
	check("as it is", o, true)
	if err := os.RemoveAll(o.IndexDir); err != nil {
		t.Fatal(err)
	}
	check("lost", o, true)
	behind := o
	behind.IndexDir = old
	check("behind", behind, true)
	for _, f := range must(filepath.Glob(filepath.Join(o.IndexDir, "db", "*"))) {
		if err := os.WriteFile(f, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("corrupt", o, true)
	ahead := testOptions(t, before, "/", o.IndexDir)
	check("ahead", ahead, false)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestFencing(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	e := epochObject{objectVersion, s.epoch + 1, "another writer", time.Now()}
	if err := s.putObject(t.Context(), epochKind, epochName(e.Epoch), e); err != nil {
		t.Fatal(err)
	}
	_, err := backup(t.Context(), s, randomTree(fixedRand(), 3), 1)
	wantKind(t, err, Locked)
}

func TestClosed(t *testing.T) {
	s := mustCreate(t, memOptions(t))
	ctx := t.Context()
	tree := randomTree(fixedRand(), 4)
	m := mustBackup(t, s, tree, 1)
	v, err := s.View(ctx, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	run, err := s.Begin(ctx, RunOptions{ID: "open"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, run.Have(ctx, nil, nil), Closed)
	_, err = v.Node(ctx, m.Root.Digest)
	wantKind(t, err, Closed)
	_, err = s.Begin(ctx, RunOptions{})
	wantKind(t, err, Closed)
	_, err = s.View(ctx, m.ID)
	wantKind(t, err, Closed)
	_, err = s.Savesets(ctx)
	wantKind(t, err, Closed)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}
