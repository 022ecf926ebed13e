package dedup

import (
	"bytes"
	"context"
	"errors"
	"io"
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

// loseCopy removes the second copy of an object.
func loseCopy(t testing.TB, b blob.Store, name string) {
	t.Helper()
	if err := b.Delete(t.Context(), copyName(name)); err != nil {
		t.Fatal(err)
	}
}

func blobNames(t testing.TB, b blob.Store, prefixes ...string) (names []string) {
	t.Helper()
	for _, p := range prefixes {
		for info, err := range b.List(t.Context(), p, "") {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, info.Name)
		}
	}
	return names
}

// copiedStore is a store with a saveset that is locked, one that has an end of life, and one that is deleted; and the names of
// all of which there is a second copy.
func copiedStore(t testing.TB) (s *Store, o Options, trees map[SavesetID]testTree, locked SavesetID) {
	t.Helper()
	o = memOptions(t)
	s = mustCreate(t, o)
	r := newRand(t)
	trees = make(map[SavesetID]testTree)
	tree := randomTree(r, 10)
	for i := range 3 {
		m := mustBackup(t, s, tree, 1)
		trees[m.ID] = tree
		tree = tree.mutate(r)
		if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.EOL = time.Unix(1e10, 0); return st }); err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			locked = m.ID
			if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Locked = true; return st }); err != nil {
				t.Fatal(err)
			}
		case 1:
			mustDelete(t, s, m.ID)
			delete(trees, m.ID)
		}
	}
	return s, o, trees, locked
}

// mustBeCopied sees that each object that shall have a second copy has one of its own bytes, and that there is no other.
func mustBeCopied(t testing.TB, b blob.Store) {
	t.Helper()
	copies := blobNames(t, b, copyPrefix)
	for _, form := range blobNames(t, b, domainPrefix, manifestPrefix, statePrefix) {
		to := copyName(parseForm(form))
		first, err := blob.ReadAll(t.Context(), b, form, maxObject)
		second, err2 := blob.ReadAll(t.Context(), b, to, maxObject)
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(first, second) {
			t.Errorf("%s and %s: %d and %d bytes, %v", form, to, len(first), len(second), err)
		}
		copies = slices.DeleteFunc(copies, func(c string) bool { return c == to })
	}
	if len(copies) > 0 {
		t.Errorf("copies of nothing: %v", copies)
	}
}

// wantSame sees that a store has just the savesets, with the states that they had.
func wantSame(t testing.TB, s *Store, want []Manifest, trees map[SavesetID]testTree) {
	t.Helper()
	got, err := s.Savesets(t.Context())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d savesets, %v; want %d", len(got), err, len(want))
	}
	for i, m := range got {
		if m.ID != want[i].ID || m.State != want[i].State {
			t.Errorf("%+v, want %+v", m, want[i])
		}
	}
	mustCompareAll(t, s, trees)
}

// Each domain, manifest and state may be damaged: nothing is lost, nothing stops, and healing puts it right.
func TestSecondCopyStandsIn(t *testing.T) {
	s, o, trees, locked := copiedStore(t)
	mustBeCopied(t, o.Blob)
	want, err := s.Savesets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range blobNames(t, o.Blob, domainPrefix, manifestPrefix, statePrefix) {
		data, err := blob.ReadAll(t.Context(), o.Blob, name, maxObject)
		if err != nil {
			t.Fatal(err)
		}
		for how, bad := range map[string][]byte{"flipped": append([]byte{data[0] ^ 1}, data[1:]...), "another key": flipped(data, 9),
			"empty": nil, "cut": data[:len(data)/2]} {
			at := name + " " + how
			replaceBlob(t, o.Blob, name, bad)
			s = reopen(t, s, o)
			wantSame(t, s, want, trees)
			if d := s.Damage(); len(d) != 1 || d[0].Object != name {
				t.Fatalf("%s: damage %+v", at, d)
			}
			if a, err := s.Affected(t.Context(), 10); err != nil || len(a) > 0 {
				t.Errorf("%s: affected %+v, %v", at, a, err)
			}
			wantKind(t, s.Delete(t.Context(), locked, "test"), Retained)
			if s.superseded(name) {
				// it may be given up
			} else if err := s.Dismiss(t.Context(), name, "test"); err == nil {
				t.Errorf("%s: given up though it is known", at)
			}
			mustCheck(t, s)
			if rep, err := s.Heal(t.Context(), nil, nil); err != nil || rep.Left > 0 || rep.Objects != 1 {
				t.Fatalf("%s: healed %+v, %v", at, rep, err)
			}
			mustCheck(t, s) // it has the copy follow
			mustBeCopied(t, o.Blob)
			s = reopen(t, s, o)
			wantSame(t, s, want, trees)
			for _, form := range blobNames(t, o.Blob, name) { // as it was
				if err := o.Blob.Delete(t.Context(), form); err != nil {
					t.Fatal(err)
				}
			}
			if err := blob.PutBytes(t.Context(), o.Blob, name, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	flipBlob(t, o.Blob, manifestName(locked), -3)
	s = reopen(t, s, o)
	mustCollect(t, s, CollectOptions{}) // it knows what the saveset needs
	wantSame(t, s, want, trees)
	if rep := mustCheck(t, s); len(s.Damage()) != 1 || len(rep.Found) > 0 {
		t.Errorf("found %+v, on the list %+v", rep.Found, s.Damage())
	}
	if _, err := s.Heal(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, s)
	mustBeCopied(t, o.Blob)
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// What the disk does not give is read from the copy, and healed.
func TestSecondCopyOfABadSector(t *testing.T) {
	s, o, _, disk := sickStore(t)
	tree := randomTree(newRand(t), 10)
	m := mustBackup(t, s, tree, 1)
	for _, name := range blobNames(t, o.Blob, domainPrefix, manifestPrefix) {
		bad := "/store/" + name
		disk.fail(func(op errorfs.Op, at string) bool { return op == errorfs.OpRead && at == bad })
		s = reopen(t, s, o)
		mustCompare(t, s, m.ID, tree)
		if d := s.Damage(); len(d) != 1 || d[0].Object != name {
			t.Fatalf("%s: damage %+v", name, d)
		}
		mustCollect(t, s, CollectOptions{})
		if rep, err := s.Check(t.Context(), CheckOptions{Deep: true}); err != nil || len(s.Damage()) != 1 {
			t.Fatalf("%s: %+v, %v, %+v", name, rep, err, s.Damage())
		}
		if rep, err := s.Heal(t.Context(), nil, nil); err != nil || rep.Left > 0 {
			t.Fatalf("%s: %+v, %v", name, rep, err)
		}
		s = reopen(t, s, o)
		mustCheck(t, s)
		if d := s.Damage(); len(d) > 0 || disk.met.Load() == 0 {
			t.Fatalf("%s: after healing %+v, %d faults", name, d, disk.met.Load())
		}
	}
}

// A store of an older program has no copies: the next check makes them. One that is damaged is healed, and one that says
// something else than its object never counts.
func TestCopiesAreMadeAndHealed(t *testing.T) {
	s, o, trees, locked := copiedStore(t)
	want, err := s.Savesets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range blobNames(t, o.Blob, copyPrefix) {
		if err := o.Blob.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s, o)
	if rep := mustCheck(t, s); len(rep.Found) > 0 {
		t.Errorf("found %+v", rep.Found)
	}
	mustBeCopied(t, o.Blob)

	for _, name := range blobNames(t, o.Blob, copyPrefix) {
		flipBlob(t, o.Blob, name, -3)
		if rep := mustCheck(t, s); len(rep.Found) != 1 || rep.Found[0].Object != name {
			t.Fatalf("%s: found %+v", name, rep.Found)
		}
		if _, err := s.Heal(t.Context(), nil, nil); err != nil || len(s.Damage()) > 0 {
			t.Fatalf("%s: heal: %v, left %+v", name, err, s.Damage())
		}
		mustBeCopied(t, o.Blob)
	}

	name := stateName(locked, 2)
	lie, err := s.ring.Seal(stateKind, name, []byte(`{"version":1,"saveset":"`+locked.String()+`","number":2,"time":"2026-11-22T08:00:00Z","deleted":true}`))
	if err != nil {
		t.Fatal(err)
	}
	replaceBlob(t, o.Blob, copyName(name), lie)
	s = reopen(t, s, o)
	wantSame(t, s, want, trees)
	mustCheck(t, s)
	mustBeCopied(t, o.Blob)
}

// A crash at any operation of a healing, or while objects and their copies come and go, loses none.
func TestCrashBesideCopies(t *testing.T) {
	disk := &sickDisk{mem: newMem(t)}
	o := testOptions(t, errorfs.Wrap(disk.mem, disk), "/", filepath.Join(t.TempDir(), "index"))
	s := mustCreate(t, o)
	r := newRand(t)
	tree := randomTree(r, 5)
	kept, gone := mustBackup(t, s, tree, 1), mustBackup(t, s, tree.mutate(r), 1)
	type crash struct {
		mem           *vfs.Mem
		locked, there bool // acknowledged
	}
	var mu sync.Mutex
	var crashes []crash
	locked, deleted := false, false
	disk.fail(func(op errorfs.Op, _ string) bool {
		if op.Changes() {
			mu.Lock()
			defer mu.Unlock()
			fate := [...]vfs.Fate{vfs.Lost, vfs.Kept}[len(crashes)%2]
			crashes = append(crashes, crash{disk.mem.Crash(vfs.CrashOptions{Data: fate, Entries: fate}), locked, !deleted})
		}
		return false
	})
	if _, err := s.SetState(t.Context(), kept.ID, func(st State) State { st.Locked = true; return st }); err != nil {
		t.Fatal(err)
	}
	locked = true
	for range 2 {
		for _, name := range []string{domainPrefix + s.Domain().ID.String(), manifestName(kept.ID), stateName(kept.ID, 1)} {
			for _, form := range blobNames(t, o.Blob, name) {
				flipBlob(t, &noCrash{o.Blob, disk}, form, -3)
			}
		}
		mustCheck(t, s)
		if rep, err := s.Heal(t.Context(), nil, nil); err != nil || rep.Left > 0 || rep.Objects != 3 {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
	mustDelete(t, s, gone.ID)
	deleted = true
	mustCollect(t, s, CollectOptions{})
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reseal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	disk.fail(nil)
	for i, c := range crashes {
		if i%forms(3, 1, 1) != 0 {
			continue
		}
		again := (&sickDisk{mem: c.mem}).afterPowerLoss(t, o, vfs.Kept)
		mustCompare(t, again, kept.ID, tree)
		if m, err := again.Saveset(t.Context(), kept.ID); err != nil || c.locked && !m.State.Locked {
			t.Fatalf("crash %d: %+v, %v", i, m.State, err)
		}
		if m, err := again.Saveset(t.Context(), gone.ID); err == nil && !m.State.Deleted != c.there && !c.there {
			t.Fatalf("crash %d: a deleted saveset is back: %+v", i, m.State)
		}
		mustCheck(t, again)
		if _, err := again.Heal(t.Context(), nil, nil); err != nil || len(again.Damage()) > 0 {
			t.Fatalf("crash %d: heal: %v, left %+v", i, err, again.Damage())
		}
	}
	t.Logf("%d crashes", len(crashes))
}

// noCrash is a store that a test harms: that is no moment for a crash.
type noCrash struct {
	blob.Store
	disk *sickDisk
}

func (b *noCrash) quietly(f func() error) error {
	rule := b.disk.rule.Swap(nil)
	defer b.disk.rule.Store(rule)
	return f()
}

// Put implements blob.Store.
func (b *noCrash) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	return b.quietly(func() error { return b.Store.Put(ctx, name, r, size) })
}

// Delete implements blob.Store.
func (b *noCrash) Delete(ctx context.Context, name string) error {
	return b.quietly(func() error { return b.Store.Delete(ctx, name) })
}

// When a store was encrypted, or a key destroyed, no copy is left under the key of before.
func TestCopiesFollowTheKey(t *testing.T) {
	o := memOptions(t)
	o.Key = keys.None()
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 5)
	m := mustBackup(t, s, tree, 1)
	if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Cause = "in the clear"; return st }); err != nil {
		t.Fatal(err)
	}
	orphan := SavesetID{7}
	data, err := blob.ReadAll(t.Context(), o.Blob, manifestName(m.ID), maxObject)
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.PutBytes(t.Context(), o.Blob, copyName(manifestName(orphan)), data); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Encrypt(t.Context(), testKey(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reseal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	mustBeCopied(t, o.Blob)
	for _, name := range blobNames(t, o.Blob, copyPrefix, manifestPrefix, statePrefix, domainPrefix) {
		if key, err := s.namedKey(t.Context(), name); err != nil || key != s.ring.Current() {
			t.Errorf("%s: key %d, %v", name, key, err)
		}
		data, err := blob.ReadAll(t.Context(), o.Blob, name, maxObject)
		if err != nil || strings.Contains(string(data), "in the clear") {
			t.Errorf("%s is readable by all, %v", name, err)
		}
	}
}
