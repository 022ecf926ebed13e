package dedup

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
	"coffer/dedup/recipe"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// long reports whether the long form of the tests is wanted: every state instead of a sample.
func long() bool { return os.Getenv("COFFER_LONG") == "1" }

// history is what a workload was told is durable, by saveset.
type history struct {
	mu      sync.Mutex
	created bool                   // guarded by mu
	trees   map[SavesetID]testTree // guarded by mu
	locked  map[SavesetID]bool     // guarded by mu: SetState had returned
	deleted map[SavesetID]bool     // guarded by mu: Delete had returned
}

func newHistory() *history {
	return &history{trees: make(map[SavesetID]testTree), locked: make(map[SavesetID]bool), deleted: make(map[SavesetID]bool)}
}

func (h *history) note(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// clone copies what was promised up to now.
func (h *history) clone() *history {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := newHistory()
	c.created = h.created
	for id, t := range h.trees {
		c.trees[id] = t
	}
	for id := range h.locked {
		c.locked[id] = true
	}
	for id := range h.deleted {
		c.deleted[id] = true
	}
	return c
}

// generations are the trees of a workload's backups, each once.
func generations() []testTree {
	r := fixedRand()
	first := randomTree(r, 30).withDisk(r)
	second := first.mutate(r)
	return []testTree{first, second, second.mutate(r)}
}

// work creates a store, writes generations into it, each with the one before as its parent, locks a saveset, aborts a run, closes, opens and writes more. Every
// step is tried twice: one failed operation must not spoil the store.
func work(ctx context.Context, o Options, h *history, gens []testTree) error {
	twice := func(f func() error) error {
		err := f()
		if err == nil {
			return nil
		}
		if again := f(); again != nil {
			return errors.Join(err, again)
		}
		return nil
	}
	var s *Store
	err := twice(func() (err error) { s, err = createOrOpen(ctx, o); return err })
	if err != nil {
		return err
	}
	h.note(func() { h.created = true })
	var last base
	save := func(tree testTree, lanes int) error {
		return twice(func() error {
			m, err := backupOn(ctx, s, tree, lanes, last)
			if err == nil {
				last = base{id: m.ID, tree: tree}
				h.note(func() { h.trees[m.ID] = tree })
			}
			return err
		})
	}
	for i, tree := range gens[:2] {
		if err := save(tree, 1+i); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	sets, _ := s.Savesets(ctx)
	err = twice(func() error {
		_, err := s.SetState(ctx, sets[0].ID, func(st State) State { st.Locked = true; return st })
		if err == nil {
			h.note(func() { h.locked[sets[0].ID] = true })
		}
		return err
	})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	if err := abortOne(ctx, s, gens[2]); err != nil {
		return errors.Join(err, s.Close())
	}
	_ = s.Close()
	if err := twice(func() (err error) { s, err = Open(ctx, o); return err }); err != nil {
		return err
	}
	return errors.Join(save(gens[2], 2), s.Close())
}

// createOrOpen is what a first start does after one that was cut short.
func createOrOpen(ctx context.Context, o Options) (*Store, error) {
	s, err := Create(ctx, o)
	if KindOf(err) == Exists {
		return Open(ctx, o)
	}
	return s, err
}

// abortOne sends half of a tree and gives up; that the abort itself fails is allowed.
func abortOne(ctx context.Context, s *Store, tree testTree) error {
	run, err := s.Begin(ctx, RunOptions{ID: "aborted"})
	if err != nil {
		return err
	}
	a, err := newAgent(run, s, 1)
	if err == nil {
		err = a.sendData(ctx, tree)
	}
	_ = run.Abort(ctx, fmt.Sprint("test: ", err))
	return nil
}

// verify opens a store and holds it against what was promised: everything promised is there and identical, everything
// that is there is one of the generations, and the store takes one more backup.
func (h *history) verify(ctx context.Context, o Options, gens []testTree) error {
	s, err := Open(ctx, o)
	if err != nil && !h.created {
		s, err = Create(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer s.Close()
	sets, err := s.Savesets(ctx)
	if err != nil {
		return err
	}
	seen := make(map[SavesetID]bool)
	for _, m := range sets {
		seen[m.ID] = true
		if want, ok := h.trees[m.ID]; ok {
			err = compare(ctx, s, m.ID, want)
		} else {
			err = compareAny(ctx, s, m.ID, gens)
		}
		if err != nil {
			return fmt.Errorf("saveset %v: %w", m.ID, err)
		}
		if h.locked[m.ID] && !m.State.Locked {
			return fmt.Errorf("saveset %v lost its lock", m.ID)
		}
	}
	if err := checkClosure(ctx, s); err != nil {
		return err
	}
	for id := range h.trees {
		if !seen[id] {
			return fmt.Errorf("saveset %v is gone", id)
		}
	}
	m, err := backup(ctx, s, gens[2], 2)
	if err != nil {
		return fmt.Errorf("backup after it: %w", err)
	}
	return compare(ctx, s, m.ID, gens[2])
}

// checkClosure holds the index to its word: below every node that it names, everything is there.
func checkClosure(ctx context.Context, s *Store) error {
	for _, id := range s.containers.without(nil) {
		dir, err := s.directory(ctx, id)
		if err != nil || dir == nil || dir.Kind() != container.Node {
			continue
		}
		for slot := range uint32(dir.Rows()) {
			named, err := s.indexed(ctx, []digest.Digest{dir.Digest(slot)})
			if err != nil {
				return err
			}
			if named[0].dir == nil {
				continue // a dead node
			}
			rec, err := s.read(ctx, found{dir: dir, slot: slot})
			if err != nil {
				return err
			}
			node, err := recipe.Parse(rec)
			if err != nil {
				return err
			}
			ds := make([]digest.Digest, len(node.Children))
			for i, c := range node.Children {
				ds[i] = c.Digest
			}
			places, err := s.indexed(ctx, ds)
			if err != nil {
				return err
			}
			for i, at := range places {
				if at.dir == nil || !at.holds(node.Children[i]) {
					return fmt.Errorf("container %v: node %v is there and its child %v is not; %s", id, dir.Digest(slot), ds[i], whereabouts(ctx, s, ds[i]))
				}
			}
		}
	}
	return nil
}

// whereabouts tells where the index names a digest, and which containers have it.
func whereabouts(ctx context.Context, s *Store, d digest.Digest) string {
	var b strings.Builder
	locs, ok := make([]index.Loc, 1), make([]bool, 1)
	err := s.index.Lookup(ctx, []digest.Digest{d}, locs, ok)
	fmt.Fprintf(&b, "index: %v %+v %v, its container is there: %v", ok[0], locs[0], err, s.containers.has(locs[0].Container))
	for _, id := range s.containers.without(nil) {
		dir, err := s.directory(ctx, id)
		if err != nil || dir == nil {
			continue
		}
		for slot := range uint32(dir.Rows()) {
			if dir.Digest(slot) == d {
				marked, _ := s.index.HasContainer(id)
				fmt.Fprintf(&b, "; %v has it in slot %d (marked: %v)", id, slot, marked)
			}
		}
	}
	return b.String()
}

// Nodes fill containers of their own while data is still in open ones: whatever node container is durable when the power
// goes, what is below it is durable, too.
func TestNodeContainersWaitForData(t *testing.T) {
	mem := newMem(t)
	o := testOptions(t, mem, "/", filepath.Join(t.TempDir(), "index"))
	o.ContainerSize = 64 << 10
	s := mustCreate(t, o)
	tree := make(testTree)
	for i := range 9000 {
		tree[fmt.Sprintf("d%d/file with a longer name %d", i%9, i)] = [][]byte{fmt.Appendf(nil, "bytes of file %d", i)}
	}
	run, err := s.Begin(t.Context(), RunOptions{ID: "big"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	if _, _, err = a.build(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	if err := a.sendNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := mustOpen(t, testOptions(t, mem.Crash(vfs.CrashOptions{}), "/", filepath.Join(t.TempDir(), "index")))
	nodes := 0
	for _, id := range after.containers.without(nil) {
		if dir, err := after.directory(t.Context(), id); err == nil && dir.Kind() == container.Node {
			nodes++
		}
	}
	if nodes == 0 {
		t.Fatal("no node container was sealed before the crash: the test tests nothing")
	}
	if err := checkClosure(t.Context(), after); err != nil {
		t.Fatal(err)
	}
	m := mustBackup(t, after, tree, 2)
	mustCompare(t, after, m.ID, tree)
}

func compareAny(ctx context.Context, s *Store, id SavesetID, gens []testTree) (err error) {
	for _, g := range gens {
		if err = compare(ctx, s, id, g); err == nil {
			return nil
		}
	}
	return err
}

// Every operation of the file system fails once: the store stays usable, and what was committed is there.
func TestFailEveryOperation(t *testing.T) {
	gens := generations()
	step, states := int64(7), 0
	if long() {
		step = 1
	}
	for i := int64(0); ; i += step {
		mem := newMem(t)
		dir := t.TempDir()
		inj := errorfs.FailAt(i)
		h := newHistory()
		o := testOptions(t, mem, "/", filepath.Join(dir, "index"))
		faulty := testOptions(t, errorfs.Wrap(mem, inj), "/", o.IndexDir)
		if err := work(t.Context(), faulty, h, gens); err != nil {
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

// A commit that fails at some operation leaves no node of which not everything is there: what it still stores, so that the next
// run finds it, it stores whole.
func TestCommitThatFails(t *testing.T) {
	tree := randomTree(newRand(t), 40)
	i := int64(0)
	for ; ; i++ {
		mem := newMem(t)
		dir := t.TempDir()
		var armed atomic.Bool
		inj := errorfs.FailAt(i)
		o := testOptions(t, mem, "/", filepath.Join(dir, "index"))
		o.FS = errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
			if !armed.Load() {
				return nil
			}
			return inj.Before(op, name)
		}))
		b, err := blob.OpenDir(o.FS, "/store")
		if err != nil {
			t.Fatal(err)
		}
		o.Blob = b
		s := mustCreate(t, o)
		run := sendAll(t, s, tree)
		armed.Store(true)
		m, err := run.run.Commit(t.Context(), run.draft)
		armed.Store(false)
		if err := checkClosure(t.Context(), s); err != nil {
			t.Fatalf("operation %d failed: %v", i, err)
		}
		if err == nil {
			mustCompare(t, s, m.ID, tree)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_ = os.RemoveAll(dir)
		if !inj.Reached() {
			break
		}
	}
	t.Logf("%d operations failed, each in a commit of its own", i)
}

// A disk that dies for good at some operation, and comes back after a restart. Whoever works on it is told, unless all that
// was missing is the second copy of the last manifest, which is no error.
func TestDiskDies(t *testing.T) {
	gens := generations()
	step, states := int64(31), 0
	if long() {
		step = 1
	}
	for i := int64(0); ; i += step {
		mem := newMem(t)
		dir := t.TempDir()
		inj := errorfs.FailFrom(i)
		var manifests atomic.Int64 // that are durable
		h := newHistory()
		o := testOptions(t, mem, "/", filepath.Join(dir, "index"))
		faulty := o
		faulty.FS = errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, name string) error {
			err := inj.Before(op, name)
			if err == nil && op == errorfs.OpSyncDir && path.Base(name) == path.Clean(manifestPrefix) {
				manifests.Add(1)
			}
			return err
		}))
		b, err := blob.OpenDir(faulty.FS, "/store")
		if faulty.Blob = b; err != nil {
			continue // the blob package's to test
		}
		if err := work(t.Context(), faulty, h, gens); err == nil && inj.Reached() && manifests.Load() < int64(len(gens)) {
			t.Fatalf("the disk died at %d and the work went on", i)
		}
		if err := h.verify(t.Context(), testOptions(t, mem.Crash(vfs.CrashOptions{}), "/", o.IndexDir), gens); err != nil {
			t.Fatalf("after the disk died at %d: %v", i, err)
		}
		states++
		_ = os.RemoveAll(dir)
		if !inj.Reached() {
			break
		}
	}
	t.Logf("%d deaths", states)
}

// snapshot is the disk at an instant, and what had been promised by then.
type snapshot struct {
	op   int
	disk *vfs.Mem
	h    *history
}

// The machine loses power before the k-th operation, for every k (a sample in the short form), and comes up with the
// index lost, behind and ahead.
func TestCrashEverywhere(t *testing.T) {
	gens := generations()
	mem := newMem(t)
	dir := t.TempDir()
	h := newHistory()
	r := mathrand.New(mathrand.NewPCG(5, 6))
	snaps := takeSnapshots(t, mem, filepath.Join(dir, "index"), h, gens, r)
	ahead := filepath.Join(dir, "ahead")
	copyDir(t, filepath.Join(dir, "index"), ahead)
	behind := makeBehind(t, mem, dir)
	states := 0
	start := time.Now()
	for _, sn := range snaps {
		for name, from := range map[string]string{"lost": "", "behind": behind, "ahead": ahead} {
			idx := filepath.Join(dir, "work")
			if err := os.RemoveAll(idx); err != nil {
				t.Fatal(err)
			}
			if from != "" {
				copyDir(t, from, idx)
			}
			disk := sn.disk.Crash(vfs.CrashOptions{})
			if err := sn.h.verify(t.Context(), testOptions(t, disk, "/", idx), gens); err != nil {
				t.Fatalf("crash before operation %d, index %s: %v", sn.op, name, err)
			}
			states++
		}
	}
	t.Logf("%d crashes × index lost, behind, ahead = %d states in %v", len(snaps), states, time.Since(start))
}

// takeSnapshots runs the workload and clones the disk before operations: unsynced things lost, kept or torn.
func takeSnapshots(t *testing.T, mem *vfs.Mem, index string, h *history, gens []testTree, r *mathrand.Rand) []snapshot {
	t.Helper()
	var mu sync.Mutex // operations come from several goroutines
	var snaps []snapshot
	n := 0
	fates := []vfs.CrashOptions{{}, {Data: vfs.Kept, Entries: vfs.Kept}, {Data: vfs.Torn, Entries: vfs.Torn, Rand: r}}
	inj := errorfs.Func(func(op errorfs.Op, _ string) error {
		if !op.Changes() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		n++
		if long() {
			for _, f := range fates {
				snaps = append(snaps, snapshot{n, mem.Crash(f), h.clone()})
			}
		} else if n%6 == 0 {
			snaps = append(snaps, snapshot{n, mem.Crash(fates[len(snaps)%len(fates)]), h.clone()})
		}
		return nil
	})
	if err := work(t.Context(), testOptions(t, errorfs.Wrap(mem, inj), "/", index), h, gens); err != nil {
		t.Fatal(err)
	}
	return append(snaps, snapshot{n + 1, mem.Crash(vfs.CrashOptions{}), h.clone()})
}

// makeBehind makes an index of the workload's store that knows no container.
func makeBehind(t *testing.T, mem *vfs.Mem, dir string) string {
	t.Helper()
	s := mustOpen(t, testOptions(t, mem.Crash(vfs.CrashOptions{}), "/", filepath.Join(dir, "other")))
	domain := s.domain.ID
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	behind := filepath.Join(dir, "behind")
	newEmptyIndex(t, behind, domain)
	return behind
}
