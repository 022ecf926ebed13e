package dedup

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// gcWork is a life with collections: backups, a broken run, deletions, collections that delete, bury and copy forward, and
// a new store key that all moves to, so that the old one can be destroyed. Every step is tried twice: one failed operation
// must not spoil the store.
type gcWork struct {
	h    *history
	gens []testTree
	s    *Store
	// faulty: operations may fail, and what cannot be told from a saveset stays.
	faulty bool
}

func gcGenerations() []testTree {
	r := mathrand.New(mathrand.NewPCG(21, 22))
	gens := []testTree{randomTree(r, 24).withDisk(r)}
	for range 4 {
		gens = append(gens, gens[len(gens)-1].mutate(r).mutate(r).mutate(r))
	}
	return gens
}

func (w *gcWork) run(ctx context.Context, o Options) (err error) {
	clock := newTestClock()
	o.Now = clock.now
	twice := func(f func() error) {
		if err != nil {
			return
		}
		if first := f(); first != nil {
			if again := f(); again != nil {
				err = errors.Join(first, again)
			}
		}
	}
	var ids []SavesetID
	save := func(i int) {
		var last base // the disk of each is an INCR
		if err == nil && i > 0 {
			last = base{id: ids[i-1], tree: w.gens[i-1]}
		}
		twice(func() error {
			m, err := backupOn(ctx, w.s, w.gens[i], 1+i%2, last)
			if err == nil {
				ids = append(ids, m.ID)
				w.h.note(func() { w.h.trees[m.ID] = w.gens[i] })
			}
			return err
		})
	}
	remove := func(i int) {
		twice(func() error {
			w.h.note(func() { delete(w.h.trees, ids[i]) }) // it may be gone from here on
			err := ignore(NotFound, w.s.Delete(ctx, ids[i], "test"))
			if err == nil {
				w.h.note(func() { w.h.deleted[ids[i]] = true })
			}
			return err
		})
	}
	collect := func() {
		twice(func() error {
			r, err := w.s.Collect(ctx, CollectOptions{Sparse: 1})
			if err == nil && !r.Complete {
				err = fmt.Errorf("not complete: %+v", r)
			}
			return err
		})
	}
	twice(func() (err error) { w.s, err = createOrOpen(ctx, o); return err })
	if err != nil {
		return err
	}
	w.h.note(func() { w.h.created = true })
	save(0)
	save(1)
	if err == nil {
		err = abortOne(ctx, w.s, w.gens[3])
	}
	save(2)
	if err == nil {
		remove(0)
	}
	collect()
	save(3)
	if err == nil {
		remove(1)
		remove(2)
	}
	collect()
	twice(func() error { _, err := w.s.RotateKey(ctx); return err })
	save(4)
	clock.advance(remainsAge + time.Hour)
	twice(func() error { _, err := w.s.Reseal(ctx, nil); return err })
	collect()
	twice(func() error {
		err := ignore(NotFound, w.s.DestroyKey(ctx, 1))
		if w.faulty { // a run whose last write failed keeps its pins until the store closes
			err = ignore(InUse, err)
		}
		return err
	})
	return errors.Join(err, w.s.Close())
}

// verify holds a store after a crash against what was promised, then collects and does it again.
func (w *gcWork) verify(ctx context.Context, o Options) error {
	if err := w.h.verify(ctx, o, w.gens); err != nil {
		return err
	}
	s, err := Open(ctx, o)
	if err != nil {
		return err
	}
	r, err := s.Collect(ctx, CollectOptions{Sparse: 1})
	if err == nil && (!r.Complete || r.Damaged > 0) {
		err = fmt.Errorf("%+v", r)
	}
	if err == nil {
		err = w.verifyClean(ctx, s)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if err := w.h.verify(ctx, o, w.gens); err != nil {
		return fmt.Errorf("after one more collection: %w", err)
	}
	return nil
}

// verifyClean sees that what was deleted stays so, and that nothing is damaged.
func (w *gcWork) verifyClean(ctx context.Context, s *Store) error {
	for id := range w.h.deleted {
		if m, err := s.Saveset(ctx, id); err == nil && !m.State.Deleted {
			return fmt.Errorf("saveset %v was deleted and is there", id)
		}
	}
	rep, err := s.Check(ctx, CheckOptions{Objects: true, Deep: true})
	if err == nil && (len(rep.Found) > 0 || len(s.Damage()) > 0) {
		err = fmt.Errorf("damage where nothing was damaged: %+v, %+v", rep.Found, s.Damage())
	}
	return err
}

func gcTestOptions(t testing.TB, fsys vfs.FS, index string) Options {
	o := testOptions(t, fsys, "/", index)
	o.ContainerSize = 32 << 10
	clock := newTestClock()
	clock.advance(5 * 24 * time.Hour) // after the work
	o.Now = clock.now
	return o
}

// The machine loses power before the k-th operation that changes something, and comes up with the index lost, empty, ahead,
// as it was at that moment or some time before.
func TestCrashDuringCollection(t *testing.T) {
	gens := gcGenerations()
	mem := newMem(t)
	dir := t.TempDir()
	start := time.Now()
	snaps := gcSnapshots(t, mem, dir, gens)
	ahead := filepath.Join(dir, "ahead")
	copyDir(t, filepath.Join(dir, "index"), ahead)
	behind := makeBehind(t, mem, dir)
	states := 0
	for i, sn := range snaps {
		cases := map[string]string{"lost": "", "behind": behind, "ahead": ahead, "as it was": sn.index, "of earlier": snaps[i*2/3].index}
		for name, from := range cases {
			if forms(true, true, false) && name != [...]string{"lost", "behind", "ahead", "as it was", "of earlier"}[i%5] {
				continue
			}
			idx := filepath.Join(dir, "work")
			_ = os.RemoveAll(idx)
			if from != "" {
				copyDir(t, from, idx)
			}
			w := &gcWork{h: sn.h, gens: gens}
			if err := w.verify(t.Context(), gcTestOptions(t, sn.disk.Crash(vfs.CrashOptions{}), idx)); err != nil {
				t.Fatalf("crash before operation %d, index %s: %v", sn.op, name, err)
			}
			states++
		}
	}
	t.Logf("%d crashes, %d states in %v", len(snaps), states, time.Since(start))
}

// gcSnapshot is the disk and the index at an instant, and what had been promised by then.
type gcSnapshot struct {
	snapshot
	index string
}

func gcSnapshots(t *testing.T, mem *vfs.Mem, dir string, gens []testTree) []gcSnapshot {
	t.Helper()
	h := newHistory()
	index := filepath.Join(dir, "index")
	r := mathrand.New(mathrand.NewPCG(5, 6))
	fates := []vfs.CrashOptions{{}, {Data: vfs.Kept, Entries: vfs.Kept}, {Data: vfs.Torn, Entries: vfs.Torn, Rand: r}}
	var mu sync.Mutex // operations come from several goroutines
	var snaps []gcSnapshot
	n, step := 0, forms(9, 3, 1)
	inj := errorfs.Func(func(op errorfs.Op, _ string) error {
		if !op.Changes() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n%step != 0 {
			return nil
		}
		at := ""
		if _, err := os.Stat(index); err == nil {
			at = filepath.Join(dir, fmt.Sprint("at", n))
			copyDir(t, index, at)
		}
		for i, fate := range fates {
			if long() || i == len(snaps)%len(fates) {
				snaps = append(snaps, gcSnapshot{snapshot{n, mem.Crash(fate), h.clone()}, at})
				if !long() {
					break
				}
			}
		}
		return nil
	})
	w := &gcWork{h: h, gens: gens}
	if err := w.run(t.Context(), gcTestOptions(t, errorfs.Wrap(mem, inj), index)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d operations", n)
	return snaps
}

// Every operation of the file system fails once, or the disk dies for good at one.
func TestFailDuringCollection(t *testing.T) {
	gens := gcGenerations()
	step, states := forms[int64](67, 11, 1), 0
	for i := int64(0); ; i += step {
		for _, dies := range []bool{false, true} {
			mem := newMem(t)
			dir := t.TempDir()
			inj := errorfs.FailAt(i)
			if dies {
				inj = errorfs.FailFrom(i)
			}
			o := gcTestOptions(t, mem, filepath.Join(dir, "index"))
			faulty := o
			faulty.FS = errorfs.Wrap(mem, inj)
			b, err := blob.OpenDir(faulty.FS, "/store")
			if faulty.Blob = b; err != nil {
				continue // the blob package's to test
			}
			w := &gcWork{h: newHistory(), gens: gens, faulty: true}
			if err := w.run(t.Context(), faulty); err != nil && !dies {
				t.Fatalf("operation %d fails once, and the work twice: %v", i, err)
			}
			disk := vfs.FS(mem)
			if dies {
				disk = mem.Crash(vfs.CrashOptions{})
			}
			if err := w.verify(t.Context(), gcTestOptions(t, disk, o.IndexDir)); err != nil {
				t.Fatalf("after operation %d failed (for good: %v): %v", i, dies, err)
			}
			states++
			_ = os.RemoveAll(dir)
			if !inj.Reached() && !dies {
				t.Logf("%d operations failed, each in a run of its own", states)
				return
			}
		}
	}
}
