package dedup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

func testPassword(pw string) keys.Source {
	return keys.Password([]byte(pw), keys.PasswordOptions{Time: 1, MemoryKiB: 64, Threads: 1})
}

func mustKeys(t testing.TB, s *Store) KeysInfo {
	t.Helper()
	info, err := s.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func mustReseal(t testing.TB, s *Store) ResealReport {
	t.Helper()
	rep, err := s.Reseal(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Stuck) > 0 {
		t.Fatalf("stuck: %v", rep.Stuck)
	}
	return rep
}

func lock(ctx context.Context, s *Store, id SavesetID) error {
	_, err := s.SetState(ctx, id, func(st State) State { st.Locked = true; return st })
	return err
}

func TestRotate(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	gens := generations()
	first := mustBackup(t, s, gens[0], 1)
	if err := lock(t.Context(), s, first.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.DestroyKey(t.Context(), 1), Invalid)
	wantKind(t, s.DestroyKey(t.Context(), 2), NotFound)
	before, err := s.Begin(t.Context(), RunOptions{ID: "began before"})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.RotateKey(t.Context()); err != nil || n != 2 {
		t.Fatalf("rotated to %d, %v", n, err)
	}
	second := mustBackup(t, s, gens[1], 1)
	info := mustKeys(t, s)
	if k := info.Keys; !info.Encrypted || len(k) != 2 || k[0].Containers == 0 || k[0].Objects != 3 || k[1].Containers == 0 || k[1].Objects != 2 || !k[1].Current {
		t.Fatalf("keys %+v", info) // epoch, manifest and state are under the old key; domain and manifest under the new one
	}
	if rep := mustReseal(t, s); rep.Resealed != 3 {
		t.Fatalf("resealed %+v", rep)
	}
	if rep := mustReseal(t, s); rep.Resealed != 0 {
		t.Fatalf("resealed again %+v", rep)
	}
	if k := mustKeys(t, s).Keys; k[0].Objects != 0 || k[1].Objects != 5 {
		t.Fatalf("keys %+v", k)
	}
	if err := s.DestroyKey(t.Context(), 1); KindOf(err) != InUse || !strings.Contains(err.Error(), "goes on") {
		t.Fatalf("with a run that began before: %v", err)
	}
	if err := before.Abort(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if err := s.DestroyKey(t.Context(), 1); KindOf(err) != InUse || !strings.Contains(err.Error(), "containers and 0 objects name it") {
		t.Fatalf("with containers: %v", err)
	}
	if err := lock(t.Context(), s, second.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = mustOpen(t, o)
	for i, m := range []Manifest{first, second} {
		mustCompare(t, s, m.ID, gens[i])
		if got, err := s.Saveset(t.Context(), m.ID); err != nil || !got.State.Locked {
			t.Fatalf("state %+v, %v", got.State, err)
		}
	}
	if s.objectsPending() {
		t.Fatal("objects are pending after they were resealed")
	}
}

// TestDestroy destroys a key that nothing names any more.
func TestDestroy(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.DestroyKey(t.Context(), 1); err != nil { // it reseals on the way
		t.Fatal(err)
	}
	if k := mustKeys(t, s).Keys; len(k) != 1 || k[0].Number != 2 || k[0].Objects != 2 {
		t.Fatalf("keys %+v", k)
	}
	tree := generations()[0]
	m := mustBackup(t, s, tree, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustCompare(t, mustOpen(t, o), m.ID, tree)
}

// TestOldKeyring puts the keyring of before a rotation back: the store must not open as if the savesets were damaged.
func TestOldKeyring(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	var name string
	for info, err := range o.Blob.List(t.Context(), keys.Prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		name = info.Name
	}
	old, err := readWhole(t.Context(), o.Blob, name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for info, err := range o.Blob.List(t.Context(), keys.Prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Blob.Delete(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := blob.PutBytes(t.Context(), o.Blob, name, old); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), o)
	wantKind(t, err, WrongKey)
}

// TestUnknownKeyIsDamage: one object with a flipped bit in its key number must not close the whole store.
func TestUnknownKeyIsDamage(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	gens := generations()
	bad, good := mustBackup(t, s, gens[0], 1), mustBackup(t, s, gens[1], 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	sealed, err := readWhole(t.Context(), o.Blob, manifestName(bad.ID))
	if err != nil {
		t.Fatal(err)
	}
	sealed[9] ^= 1
	if err := errors.Join(o.Blob.Delete(t.Context(), manifestName(bad.ID)), blob.PutBytes(t.Context(), o.Blob, manifestName(bad.ID), sealed)); err != nil {
		t.Fatal(err)
	}
	loseCopy(t, o.Blob, manifestName(bad.ID))
	s = mustOpen(t, o)
	mustCompare(t, s, good.ID, gens[1])
	if s.Stats().Damaged != 1 {
		t.Fatalf("%d damaged objects", s.Stats().Damaged)
	}
	if rep, err := s.Reseal(t.Context(), nil); err != nil || len(rep.Stuck) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestOpeners(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	recovery, err := keys.NewRecoveryKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.ChangeOpeners(t.Context(), OpenerChange{Remove: []keys.Kind{keys.KindKeyFile}}), Invalid)
	change := OpenerChange{Set: []keys.Source{testPassword("a"), recovery.Source()}, Remove: []keys.Kind{keys.KindKeyFile}}
	if err := s.ChangeOpeners(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.ChangeOpeners(t.Context(), OpenerChange{Remove: []keys.Kind{keys.KindPassword}}), Invalid)
	if got, want := s.Openers(), []keys.Kind{keys.KindPassword, keys.KindRecoveryKey}; !slices.Equal(got, want) {
		t.Fatalf("openers %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src  keys.Source
		fits bool
	}{{o.Key, false}, {testPassword("b"), false}, {keys.None(), false}, {testPassword("a"), true}, {recovery.Source(), true}} {
		with := o
		with.Key = c.src
		s, err := Open(t.Context(), with)
		if !c.fits {
			wantKind(t, err, WrongKey)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEncrypt switches encryption on. Plain objects of the time before are accepted until they are sealed again, and
// then not even with the plain key, which everybody knows.
func TestEncrypt(t *testing.T) {
	o := memOptions(t)
	o.Key = keys.None()
	s := mustCreate(t, o)
	gens := generations()
	first, gone := mustBackup(t, s, gens[0], 1), mustBackup(t, s, gens[2], 1)
	plain, err := readWhole(t.Context(), o.Blob, manifestName(gone.ID))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(plain), gone.ID.String()) {
		t.Fatal("the manifest of a plain store is not plain")
	}
	if n, err := s.Encrypt(t.Context(), testPassword("a")); err != nil || n != 2 {
		t.Fatalf("encrypted with key %d, %v", n, err)
	}
	_, err = s.Encrypt(t.Context(), testPassword("a"))
	wantKind(t, err, Invalid)
	second := mustBackup(t, s, gens[1], 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), o)
	wantKind(t, err, WrongKey)
	o.Key = testPassword("a")
	s = mustOpen(t, o)
	mustCompare(t, s, first.ID, gens[0])
	mustReseal(t, s)
	info := mustKeys(t, s)
	if k := info.Keys; !info.Encrypted || k[0].Encrypted || k[0].Objects != 0 || k[0].Containers == 0 || !k[1].Encrypted {
		t.Fatalf("keys %+v", info)
	}
	if err := s.deleteObject(t.Context(), manifestName(gone.ID)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// Who has the disk puts the old, plain manifest back.
	if err := blob.PutBytes(t.Context(), o.Blob, manifestName(gone.ID), plain); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	if _, err := s.Saveset(t.Context(), gone.ID); KindOf(err) != NotFound {
		t.Fatalf("a plain manifest counts in an encrypted store: %v", err)
	}
	for i, m := range []Manifest{first, second} { // plain containers go on counting until none is left
		mustCompare(t, s, m.ID, gens[i])
	}
	for info, err := range o.Blob.List(t.Context(), manifestPrefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := readWhole(t.Context(), o.Blob, info.Name)
		if err != nil || (strings.Contains(string(raw), `"root"`) && info.Name != manifestName(gone.ID)) {
			t.Fatalf("%s is plain, %v", info.Name, err)
		}
	}
}

// rekey is a workload of changes of keys beside backups.
func rekey(ctx context.Context, o Options, h *history, gens []testTree) error {
	s, err := createOrOpen(ctx, o)
	if err != nil {
		return err
	}
	h.note(func() { h.created = true })
	twice := func(f func() error) {
		if err == nil && f() != nil {
			err = f()
		}
	}
	store := func(tree testTree) {
		twice(func() error {
			m, err := backup(ctx, s, tree, 1)
			if err == nil {
				h.note(func() { h.trees[m.ID] = tree })
				if err = lock(ctx, s, m.ID); err == nil {
					h.note(func() { h.locked[m.ID] = true })
				}
			}
			return err
		})
	}
	reseal := func() error { _, err := s.Reseal(ctx, nil); return err }
	rotate := func() error { _, err := s.RotateKey(ctx); return err }
	store(gens[0])
	twice(rotate)
	twice(rotate)
	store(gens[1])
	twice(reseal)
	twice(rotate)
	twice(reseal)
	return errors.Join(err, s.Close())
}

// TestRekeyFails: every operation of the file system fails once while keys change.
func TestRekeyFails(t *testing.T) {
	gens := smallGenerations()
	states := 0
	for i := int64(0); ; i += sample(11) {
		mem, dir := newMem(t), t.TempDir()
		inj := errorfs.FailAt(i)
		h := newHistory()
		o := testOptions(t, mem, "/", filepath.Join(dir, "index"))
		if err := rekey(t.Context(), testOptions(t, errorfs.Wrap(mem, inj), "/", o.IndexDir), h, gens); err != nil && h.created {
			t.Fatalf("operation %d fails once, and the work twice: %v", i, err)
		}
		if err := h.verify(t.Context(), o, gens); err != nil {
			t.Fatalf("after operation %d failed: %v", i, err)
		}
		states++
		_ = os.RemoveAll(dir)
		if !inj.Reached() {
			break
		}
	}
	t.Logf("%d operations failed, each in a run of its own", states)
}

func smallGenerations() []testTree {
	r := fixedRand()
	first := randomTree(r, 4)
	second := first.mutate(r)
	return []testTree{first, second, second.mutate(r)}
}

func sample(n int64) int64 {
	if long() {
		return 1
	}
	return n
}

// TestRekeyCrash: power goes before each operation while keys change, and resealing goes on after the restart.
func TestRekeyCrash(t *testing.T) {
	gens := smallGenerations()
	mem, dir, h := newMem(t), t.TempDir(), newHistory()
	var mu sync.Mutex
	var snaps []snapshot
	n := int64(0)
	inj := errorfs.Func(func(op errorfs.Op, _ string) error {
		if !op.Changes() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n%sample(5) == 0 {
			snaps = append(snaps, snapshot{int(n), mem.Crash([]vfs.CrashOptions{{}, {Data: vfs.Kept, Entries: vfs.Kept}}[len(snaps)%2]), h.clone()})
		}
		return nil
	})
	if err := rekey(t.Context(), testOptions(t, errorfs.Wrap(mem, inj), "/", filepath.Join(dir, "index")), h, gens); err != nil {
		t.Fatal(err)
	}
	for i, sn := range snaps {
		o := testOptions(t, sn.disk, "/", filepath.Join(dir, fmt.Sprint(i)))
		if sn.h.created {
			s, err := Open(t.Context(), o)
			if err != nil {
				t.Fatalf("crash before operation %d: %v", sn.op, err)
			}
			if rep, err := s.Reseal(t.Context(), nil); err != nil || len(rep.Stuck) > 0 {
				t.Fatalf("crash before operation %d: reseal %+v, %v", sn.op, rep, err)
			}
			for _, k := range mustKeys(t, s).Keys {
				if !k.Current && k.Objects > 0 {
					t.Fatalf("crash before operation %d: keys %+v after resealing", sn.op, k)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := sn.h.verify(t.Context(), o, gens); err != nil {
			t.Fatalf("crash before operation %d: %v", sn.op, err)
		}
	}
	t.Logf("%d crashes", len(snaps))
}

// TestRekeyBeside changes keys beside backups, states and deletions; what was deleted stays deleted.
func TestRekeyBeside(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	gens := smallGenerations()
	var wg sync.WaitGroup
	var mu sync.Mutex
	kept, gone := make(map[SavesetID]testTree), make(map[SavesetID]bool)
	stop := time.Now().Add(2 * time.Second)
	for range 2 {
		wg.Go(func() {
			for i := 0; time.Now().Before(stop); i++ {
				m, err := backup(t.Context(), s, gens[i%3], 1)
				if err == nil {
					err = lock(t.Context(), s, m.ID)
				}
				if err == nil && i%2 == 1 {
					err = errors.Join(s.deleteObject(t.Context(), stateName(m.ID, 1)), s.deleteObject(t.Context(), manifestName(m.ID)))
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if kept[m.ID] = gens[i%3]; i%2 == 1 {
					delete(kept, m.ID)
					gone[m.ID] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for time.Now().Before(stop) {
			if _, err := s.RotateKey(t.Context()); err != nil {
				t.Error(err)
				return
			}
			if rep, err := s.Reseal(t.Context(), nil); err != nil || len(rep.Stuck) > 0 {
				t.Errorf("%+v, %v", rep, err)
				return
			}
		}
	})
	wg.Wait()
	mustReseal(t, s)
	info := mustKeys(t, s)
	for _, k := range info.Keys[:len(info.Keys)-1] {
		if k.Objects != 0 {
			t.Errorf("keys %+v", k)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	for id, tree := range kept {
		mustCompare(t, s, id, tree)
	}
	for id := range gone {
		if _, err := s.Saveset(t.Context(), id); KindOf(err) != NotFound {
			t.Errorf("saveset %v came back: %v", id, err)
		}
	}
	t.Logf("%d savesets kept, %d deleted, %d keys", len(kept), len(gone), len(info.Keys))
}

// collectAll collects until nothing names an old key, as the daily maintenance does.
func collectAll(t *testing.T, s *Store) {
	t.Helper()
	mustReseal(t, s)
	if rep, err := s.Collect(t.Context(), CollectOptions{}); err != nil || !rep.Complete {
		t.Fatalf("collect: %+v, %v", rep, err)
	}
	for _, k := range mustKeys(t, s).Keys {
		if !k.Current && (k.Containers > 0 || k.Objects > 0) {
			t.Fatalf("after the collection: keys %+v", k)
		}
	}
}

// TestRotateCollectDestroy takes a store from key to key: after a collection the old one is not needed, and gone.
func TestRotateCollectDestroy(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	gens := generations()
	var sets []Manifest
	for i, tree := range gens {
		sets = append(sets, mustBackup(t, s, tree, 1))
		if n, err := s.RotateKey(t.Context()); err != nil || n != uint32(i)+2 {
			t.Fatalf("rotated to %d, %v", n, err)
		}
	}
	if _, err := s.SetState(t.Context(), sets[0].ID, func(st State) State { st.Deleted = true; return st }); err != nil {
		t.Fatal(err)
	}
	collectAll(t, s)
	for n := range uint32(3) {
		if err := s.DestroyKey(t.Context(), n+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	if k := mustKeys(t, s).Keys; len(k) != 1 || k[0].Number != 4 {
		t.Fatalf("keys %+v", k)
	}
	for i, m := range sets[1:] {
		mustCompare(t, s, m.ID, gens[i+1])
	}
	if _, err := s.View(t.Context(), sets[0].ID); KindOf(err) != NotFound {
		t.Fatalf("a deleted saveset: %v", err)
	}
	if rep, err := s.Check(t.Context(), CheckOptions{Objects: true, Pages: true, Deep: true}); err != nil || len(rep.Found) > 0 {
		t.Fatalf("check: %+v, %v", rep, err)
	}
}

// TestEncryptCollect: a collection leaves nothing plain of a store that was, and closes the plain key.
func TestEncryptCollect(t *testing.T) {
	o := memOptions(t)
	o.Key = keys.None()
	s := mustCreate(t, o)
	gens := generations()
	first := mustBackup(t, s, gens[0], 1)
	var plain []byte // a container of the plain store, kept by who has the disk
	var name string
	for info, err := range o.Blob.List(t.Context(), "containers/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if plain, err = readWhole(t.Context(), o.Blob, info.Name); err != nil {
			t.Fatal(err)
		}
		name = info.Name
	}
	o.Key = testPassword("a")
	if _, err := s.Encrypt(t.Context(), o.Key); err != nil {
		t.Fatal(err)
	}
	collectAll(t, s)
	if rep := mustReseal(t, s); !slices.Equal(rep.Retired, []uint32{1}) {
		t.Fatalf("retired %v", rep.Retired)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := blob.PutBytes(t.Context(), o.Blob, name, plain); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	mustCompare(t, s, first.ID, gens[0])
	for id := range s.containers.m {
		if id.Name() != name {
			continue
		}
		if dir, err := s.directory(t.Context(), id); err != nil || dir != nil {
			t.Fatalf("a plain container counts in an encrypted store: %v", err)
		}
	}
}

// TestUnknownContainerKey: a container that is too damaged to say its key keeps every key from being destroyed.
func TestUnknownContainerKey(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustBackup(t, s, smallGenerations()[0], 1)
	id := s.containers.without(nil)[0]
	n, err := o.Blob.Size(t.Context(), id.Name())
	if err == nil {
		err = errors.Join(o.Blob.Delete(t.Context(), id.Name()), blob.PutBytes(t.Context(), o.Blob, id.Name(), make([]byte, n)))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DestroyKey(t.Context(), 1); KindOf(err) != InUse || !strings.Contains(err.Error(), "1 containers are damaged") {
		t.Fatalf("destroyed: %v", err)
	}
}
