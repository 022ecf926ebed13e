package dedup

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/vfs/errorfs"
)

// heldBlob is a blob store whose Puts below a prefix wait until they are let go, and then fail or not.
type heldBlob struct {
	blob.Store
	prefix string
	held   chan struct{} // closed when a Put waits
	result chan error    // what becomes of it
	armed  atomic.Bool
}

func (b *heldBlob) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if strings.HasPrefix(name, b.prefix) && b.armed.CompareAndSwap(true, false) {
		close(b.held)
		if err := <-b.result; err != nil {
			return err
		}
	}
	return b.Store.Put(ctx, name, r, size)
}

// A deletion counts for readers at once, but for a collection only when it is durable: until then it may be taken back.
func TestDeletionThatFailsBesideCollection(t *testing.T) {
	o := memOptions(t)
	clock := newTestClock()
	o.Now = clock.now
	held := &heldBlob{Store: o.Blob, prefix: statePrefix, held: make(chan struct{}), result: make(chan error)}
	o.Blob = held
	s := mustCreate(t, o)
	r := newRand(t)
	tree := randomTree(r, 30)
	m := mustBackup(t, s, tree, 2)
	clock.advance(remainsAge + time.Hour)
	held.armed.Store(true)
	deleted := make(chan error, 1)
	go func() { deleted <- s.Delete(t.Context(), m.ID, "test") }()
	<-held.held
	collected := make(chan error, 1)
	go func() {
		_, err := s.Collect(t.Context(), CollectOptions{Sparse: 1})
		collected <- err
	}()
	select { // it may wait for the deletion, or end
	case err := <-collected:
		collected <- err
	case <-time.After(300 * time.Millisecond):
	}
	held.result <- errorfs.ErrInjected
	if err := <-deleted; err == nil {
		t.Fatal("the deletion was not to be written")
	}
	if err := <-collected; err != nil {
		t.Fatal(err)
	}
	mustCompare(t, s, m.ID, tree)
	mustCompare(t, collectReopen(t, s, o, true), m.ID, tree)
}

// A container whose removal was reported as failed, and which is gone all the same, is no damage.
func TestRemovalThatFailsAfterwards(t *testing.T) {
	mem := newMem(t)
	var removed, armed atomic.Bool
	fs := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
		if op == errorfs.OpRemove && strings.Contains(name, container.Prefix) {
			removed.Store(true)
		}
		if op == errorfs.OpSyncDir && removed.Load() && armed.CompareAndSwap(true, false) {
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := testOptions(t, fs, "/", filepath.Join(t.TempDir(), "index"))
	clock := newTestClock()
	o.Now = clock.now
	s := mustCreate(t, o)
	r := newRand(t)
	first := randomTree(r, 30)
	a := mustBackup(t, s, first, 1)
	second := randomTree(r, 30)
	b := mustBackup(t, s, second, 1)
	mustDelete(t, s, a.ID)
	clock.advance(remainsAge + time.Hour)
	armed.Store(true)
	if _, err := s.Collect(t.Context(), CollectOptions{Sparse: 1}); err == nil {
		t.Fatal("the collection did not meet the error")
	}
	rep := mustCollect(t, s, CollectOptions{Sparse: 1})
	if d := s.Damage(); rep.Damaged > 0 || len(d) > 0 {
		t.Fatalf("damage where nothing was damaged: %+v %+v", rep, d)
	}
	mustCompare(t, s, b.ID, second)
}

// A container of a key that was destroyed, which nobody knew of (its writing was reported as failed), does not keep the
// store from opening.
func TestContainerOfDestroyedKey(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 30)
	m := mustBackup(t, s, tree, 1)
	lost := make(map[container.ID][]byte)
	for _, id := range s.containers.without(nil) {
		data, err := readWhole(t.Context(), s.blob, id.Name())
		if err != nil {
			t.Fatal(err)
		}
		lost[id] = data
	}
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	clock.advance(remainsAge + time.Hour)
	mustCollect(t, s, CollectOptions{Sparse: 1})
	if err := s.DestroyKey(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for id, data := range lost {
		if err := s.blob.Put(t.Context(), id.Name(), strings.NewReader(string(data)), int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
	for _, lose := range []bool{false, true} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if lose {
			_ = os.RemoveAll(o.IndexDir)
		}
		var err error
		if s, err = Open(t.Context(), o); err != nil {
			t.Fatalf("open, index lost %v: %v", lose, err)
		}
		mustCompare(t, s, m.ID, tree)
	}
	_ = s.Close()
}

// A collection whose budget is shorter than its mark gets on all the same.
func TestCollectTinyBudget(t *testing.T) {
	s, _, clock := gcStore(t)
	r := newRand(t)
	for range 4 {
		mustDelete(t, s, mustBackup(t, s, randomTree(r, 20), 1).ID)
	}
	clock.advance(remainsAge + time.Hour)
	for range 200 {
		rep, err := s.Collect(t.Context(), CollectOptions{Budget: 1})
		if err != nil {
			t.Fatal(err)
		}
		if rep.Complete {
			return
		}
		if rep.Manifests > 0 {
			t.Fatalf("manifests went before the collection was complete: %+v", rep)
		}
	}
	t.Fatalf("200 collections did not come to an end: %+v", s.Stats())
}
