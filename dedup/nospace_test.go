package dedup

import (
	"context"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"coffer/dedup/blob"
)

// fullBlob is a store whose disk is full for blobs with a prefix.
type fullBlob struct {
	blob.Store
	prefix atomic.Pointer[string]
}

func (b *fullBlob) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if p := b.prefix.Load(); p != nil && strings.HasPrefix(name, *p) {
		return syscall.ENOSPC
	}
	return b.Store.Put(ctx, name, r, size)
}

// A full disk met in container, index and manifest fails the run with NoSpace; earlier savesets are whole, and the next
// run works when there is space again.
func TestNoSpace(t *testing.T) {
	mem := newMem(t)
	o := testOptions(t, mem, "/", t.TempDir())
	full := &fullBlob{Store: o.Blob}
	o.Blob = full
	var indexFree atomic.Int64
	indexFree.Store(1 << 40)
	o.IndexFree = func(string) (int64, error) { return indexFree.Load(), nil }
	o.IndexReserve = 1 << 20
	s := mustCreate(t, o)
	ctx := t.Context()
	r := fixedRand()
	first := randomTree(r, 40)
	m := mustBackup(t, s, first, 2)
	prefix := func(p string) func() {
		return func() {
			if full.prefix.Store(&p); p == "" {
				full.prefix.Store(nil)
			}
		}
	}
	for _, c := range []struct {
		name       string
		full, room func()
	}{
		{"spool", func() { mem.SetCapacity(1) }, func() { mem.SetCapacity(0) }},
		{"reserve", func() { s.opts.Reserve = math.MaxInt64 }, func() { s.opts.Reserve = 0 }},
		{"container", prefix("containers/"), prefix("")},
		{"index", func() { indexFree.Store(0) }, func() { indexFree.Store(1 << 40) }},
		{"manifest", prefix("manifests/"), prefix("")},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := first.mutate(r)
			c.full()
			_, err := backup(ctx, s, tree, 2)
			wantKind(t, err, NoSpace)
			if lines := strings.Split(err.Error(), "\n"); len(lines) > 1 && lines[0] == lines[1] {
				t.Errorf("it says everything twice: %v", err)
			}
			mustCompare(t, s, m.ID, first)
			c.room()
			next, err := backup(ctx, s, tree, 2)
			if err != nil {
				t.Fatalf("after space was made: %v", err)
			}
			mustCompare(t, s, next.ID, tree)
			if names := must(o.FS.List(o.SpoolDir)); len(names) != 1 {
				t.Errorf("spool: %v", names)
			}
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	mustCompare(t, s, m.ID, first)
	if sets := must(s.Savesets(ctx)); len(sets) != 6 {
		t.Errorf("%d savesets", len(sets))
	}
}

// A deletion is what makes space: it may use the reserve.
func TestStateCanBeWrittenInTheReserve(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	m := mustBackup(t, s, randomTree(fixedRand(), 3), 1)
	s.opts.Reserve = math.MaxInt64
	if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Deleted = true; return st }); err != nil {
		t.Errorf("deletion on a full disk: %v", err)
	}
}
