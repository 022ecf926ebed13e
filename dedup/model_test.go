package dedup

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

var modelTime = flag.Duration("model.time", 0, "how long the model test runs")

// forms picks by COFFER_LONG: what make test has time for, what CI has, and all.
func forms[T any](test, ci, full T) T {
	switch os.Getenv("COFFER_LONG") {
	case "1":
		return full
	case "short":
		return ci
	}
	return test
}

// promised is what the model knows of a saveset that the store reported as committed.
type promised struct {
	tree   testTree
	locked bool
	until  time.Time // immutable
	// doubt: a change of its state was reported as failed, or has not returned yet. It may be deleted or locked.
	doubt bool
}

// world is a store, all that it promised, and what it stands on: a disk that fails now and then, a clock that moves and
// an index on a disk that may be full. INVARIANT: a promise is entered after the call that made it returned, and taken
// back before the call that does so begins.
type world struct {
	t       *testing.T
	mem     *vfs.Mem
	clock   *testClock
	dir     string // of indexes
	faults  atomic.Int64
	faulty  atomic.Bool // it failed since the store was last held against the promises
	full    atomic.Bool // the disk of the index is full
	wasFull atomic.Bool // it was, in this round
	closing atomic.Bool // the store is being closed or its machine lost power: calls may fail
	indexes int         // copies of the index of earlier times
	names   atomic.Uint64
	counts  sync.Map // of operations, by name

	s    *Store
	opts Options

	mu     sync.Mutex
	sets   map[SavesetID]*promised // guarded by mu
	runs   map[string]testTree     // guarded by mu: what each run stores, by its name
	recent []testTree              // guarded by mu: trees that were stored once
	total  CollectReport           // guarded by mu

	past *past // nil: none is kept

	condemning sync.Mutex // who condemns: one collection, or somebody who changes his mind
}

// past is the store as it was at some time, for somebody who puts it back beside an index that went on.
type past struct {
	disk *vfs.Mem
	sets map[SavesetID]*promised
}

var allKept = vfs.CrashOptions{Data: vfs.Kept, Entries: vfs.Kept}

// remember keeps the store as it is, now and then. Nobody uses it. Before there are tombstones there is nothing to learn: a store
// that has none beside an index that obeyed some takes them for lost.
func (w *world) remember(r *mathrand.Rand) {
	if w.s.tombstones.newest > 0 && (w.past == nil || r.IntN(4) == 0) {
		w.past = &past{w.mem.Crash(allKept), w.snapshot()}
	}
}

// putBack puts back what was kept.
func (w *world) putBack() {
	w.mem, w.sets = w.past.disk.Crash(allKept), make(map[SavesetID]*promised)
	for id, p := range w.past.sets {
		c := *p
		w.sets[id] = &c
	}
	w.indexes = 0 // what is done from now on has names that those indexes know from another life
	w.count("put back")
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, mem: newMem(t), clock: newTestClock(), dir: t.TempDir(), sets: make(map[SavesetID]*promised), runs: make(map[string]testTree)}
	w.opts = w.options(filepath.Join(w.dir, "index"))
	return w
}

// options are those of a small store whose caches turn over.
func (w *world) options(index string) Options {
	o := testOptions(w.t, w.mem, "/", index)
	faulty := errorfs.Wrap(w.mem, errorfs.Func(w.fault))
	b, err := blob.OpenDir(faulty, "/store")
	if err != nil {
		w.t.Fatal(err)
	}
	o.FS, o.Blob, o.Now = faulty, b, w.clock.now
	o.LocalityMemory, o.FrameMemory, o.NodeMemory = 64<<10, 128<<10, 64<<10
	o.ContainerSize = 48 << 10
	o.IndexFree = func(string) (int64, error) {
		if w.full.Load() {
			return 0, nil
		}
		return 1 << 40, nil
	}
	return o
}

// fault fails one operation in as many as w.faults says; 0: none.
func (w *world) fault(op errorfs.Op, _ string) error {
	n := w.faults.Load()
	if n == 0 || op == errorfs.OpClose || mathrand.Int64N(n) != 0 {
		return nil
	}
	w.faulty.Store(true)
	return errorfs.ErrInjected
}

// tolerable reports whether an error is one of those that the world makes.
func (w *world) tolerable(err error) bool {
	switch k := KindOf(err); {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return true
	case errors.Is(err, errorfs.ErrInjected):
		return true
	case w.closing.Load() && k == Closed:
		return true
	case errors.Is(err, errUnreadable): // refused to collect, for what the disk refused to read
		return w.faulty.Load()
	case k == NoSpace:
		return w.wasFull.Load()
	}
	return false
}

func (w *world) count(what string) {
	n, _ := w.counts.LoadOrStore(what, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

// pick returns a saveset that is promised.
func (w *world) pick(r *mathrand.Rand) (SavesetID, promised, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.sets) == 0 {
		return SavesetID{}, promised{}, false
	}
	ids := slices.SortedFunc(maps.Keys(w.sets), func(a, b SavesetID) int { return slices.Compare(a[:], b[:]) })
	id := ids[r.IntN(len(ids))]
	return id, *w.sets[id], true
}

// gone reports whether a saveset may be absent: nobody promises it any more.
func (w *world) gone(id SavesetID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.sets[id]
	return !ok || p.doubt
}

func (w *world) size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sets)
}

// change changes what is known of a saveset.
func (w *world) change(id SavesetID, f func(p *promised)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.sets[id]; p != nil {
		f(p)
	}
}

// nextTree makes the tree of a run: a change of one that is there or was there, or that one again; of parent's, if there is
// one, as a rule.
func (w *world) nextTree(r *mathrand.Rand, parent testTree) testTree {
	w.mu.Lock()
	defer w.mu.Unlock()
	var t testTree
	switch n := len(w.recent); {
	case parent != nil && r.IntN(4) > 0:
		t = parent.mutate(r)
	case n == 0 || r.IntN(40) == 0:
		if t = randomTree(r, 10+r.IntN(40)); r.IntN(3) > 0 {
			t.withDisk(r)
		}
	case r.IntN(3) == 0:
		t = w.recent[r.IntN(n)]
	default:
		t = w.recent[r.IntN(n)].mutate(r)
	}
	if len(w.recent) < 24 {
		w.recent = append(w.recent, t)
	} else {
		w.recent[r.IntN(len(w.recent))] = t
	}
	return t
}

// run names a run, so that what a crash leaves of it can be held against its tree.
func (w *world) run(t testTree) string {
	name := "run-" + strconv.FormatUint(w.names.Add(1), 10)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs[name] = t
	return name
}

// snapshot is what was promised at this moment; locks and terms that are in doubt count as they are.
func (w *world) snapshot() map[SavesetID]*promised {
	out := make(map[SavesetID]*promised, len(w.sets))
	for id, p := range w.sets {
		c := *p
		out[id] = &c
	}
	return out
}

// reconcile holds the store against what was promised, reads all savesets, and takes what is there for promised.
func (w *world) reconcile(ctx context.Context) error {
	sets, err := w.s.Savesets(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	there := make(map[SavesetID]bool)
	for _, m := range sets {
		there[m.ID] = true
		tree, ok := w.runs[m.Run]
		if !ok {
			return fmt.Errorf("saveset %v is of no run", m.ID)
		}
		if err := compare(ctx, w.s, m.ID, tree); err != nil {
			return fmt.Errorf("saveset %v of %s: %w", m.ID, m.Run, err)
		}
		p := w.sets[m.ID]
		switch {
		case p == nil:
			p = &promised{tree: tree}
			if _, err := w.s.Saveset(ctx, m.ID); err != nil {
				return err
			}
			w.sets[m.ID] = p
		case !p.doubt && (p.locked != m.State.Locked || !p.until.Equal(m.State.ImmutableUntil)):
			return fmt.Errorf("saveset %v: state %+v, promised %+v", m.ID, m.State, p)
		}
		p.locked, p.until, p.doubt = m.State.Locked, m.State.ImmutableUntil, false
	}
	for id, p := range w.sets {
		if there[id] {
			continue
		}
		if !p.doubt {
			return fmt.Errorf("saveset %v is gone", id)
		}
		delete(w.sets, id)
	}
	return nil
}

// verify is reconcile, and all that must hold while nobody uses the store.
func (w *world) verify(ctx context.Context) error {
	if err := w.reconcile(ctx); err != nil {
		return err
	}
	if d := w.s.Damage(); len(d) > 0 {
		return fmt.Errorf("damage where nothing was damaged: %+v", d)
	}
	if n := w.s.containers.pinned(); n != 0 {
		return fmt.Errorf("%d containers are pinned with no run", n)
	}
	if n := w.s.containers.allCondemned(); n != 0 {
		return fmt.Errorf("%d containers are condemned with no collection", n)
	}
	return checkClosure(ctx, w.s)
}

// verifyAfterFaults is verify where the disk refused to read now and then: what it refused twice is on the damage list. Now it
// refuses nothing: a check that sees so takes it off.
func (w *world) verifyAfterFaults(ctx context.Context) error {
	defer w.faulty.Store(false)
	if d := w.s.Damage(); len(d) > 0 && !slices.ContainsFunc(d, func(d Damage) bool { return !refused(d) }) {
		w.count("reads refused twice")
		if err := w.verifyDeep(ctx); err != nil {
			return err
		}
	}
	return w.verify(ctx)
}

// refused reports whether a read that the disk refused counts as damage. Nothing was damaged.
func refused(d Damage) bool { return strings.Contains(d.Reason, errorfs.ErrInjected.Error()) }

func (s *containerSet) allCondemned() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.m {
		if c.condemned {
			n++
		}
	}
	return n
}

// verifyDeep is a whole check that must find nothing.
func (w *world) verifyDeep(ctx context.Context) error {
	rep, err := w.s.Check(ctx, CheckOptions{Objects: true, Deep: true})
	if err == nil && (len(rep.Found) > 0 || !rep.Complete) {
		err = fmt.Errorf("check: %+v", rep)
	}
	return err
}

// leftover counts rows of containers that no saveset reaches: of chunks and nodes, and the stored bytes of containers.
func (w *world) leftover(ctx context.Context) (dead, rows int, err error) {
	live := make(map[digest.Digest]struct{})
	for _, m := range w.s.sets.list() {
		for _, d := range []digest.Digest{m.Root.Digest, m.Side.Digest} {
			if err := collectDigests(ctx, w.s, d, live); err != nil {
				return 0, 0, err
			}
		}
	}
	seen := make(map[digest.Digest]struct{})
	for _, id := range w.s.containers.without(nil) {
		dir, err := container.OpenDirectory(ctx, w.s.blob, id, w.s.ring)
		if err != nil {
			return 0, 0, err
		}
		for slot := range uint32(dir.Rows()) {
			rows++
			d := dir.Digest(slot)
			_, ok := live[d]
			if _, twice := seen[d]; !ok || twice {
				dead++
			}
			seen[d] = struct{}{}
		}
	}
	return dead, rows, nil
}

// reopen closes the store, or takes the power away while it works, and opens it with an index that is lost, as it is, or
// of an earlier time. stop ends those who use the store.
func (w *world) reopen(ctx context.Context, r *mathrand.Rand, stop func()) error {
	w.faults.Store(0)
	w.full.Store(false)
	power := r.IntN(3) == 0
	var err error
	switch {
	case power:
		err = w.crash(r, stop)
	case r.IntN(2) == 0: // under their hands
		w.closing.Store(true)
		err = w.s.Close()
		stop()
	default:
		stop()
		w.closing.Store(true)
		err = w.s.Close()
	}
	if !w.tolerable(err) {
		return err
	}
	w.full.Store(false)
	back := w.past != nil && r.IntN(5) == 0
	if back {
		w.putBack()
	}
	if err := w.pickIndex(r, power || back); err != nil {
		return err
	}
	w.closing.Store(false)
	w.wasFull.Store(false)
	if r.IntN(3) == 0 { // its first start fails somewhere
		w.faults.Store(60)
		s, err := Open(ctx, w.opts)
		w.faults.Store(0)
		if err == nil {
			w.s = s
			return w.verifyAfterFaults(ctx)
		}
		if !w.tolerable(err) && !errors.Is(err, errorfs.ErrInjected) {
			return fmt.Errorf("open on a bad disk: %w", err)
		}
		w.count("open failed")
	}
	if w.s, err = Open(ctx, w.opts); err != nil {
		return err
	}
	return w.verifyAfterFaults(ctx)
}

// crash takes the power away: the store goes on on a disk that nobody sees any more.
func (w *world) crash(r *mathrand.Rand, stop func()) error {
	fates := []vfs.CrashOptions{{}, {Data: vfs.Kept, Entries: vfs.Kept}, {Data: vfs.Torn, Entries: vfs.Torn, Rand: r}}
	w.mu.Lock()
	disk := w.mem.Crash(fates[r.IntN(len(fates))])
	promises := w.snapshot()
	w.mu.Unlock()
	w.closing.Store(true)
	stop()
	if err := w.s.Close(); !w.tolerable(err) {
		return err
	}
	w.mem = disk
	w.sets = promises
	w.count("power lost")
	return nil
}

// pickIndex decides which index the next start finds.
func (w *world) pickIndex(r *mathrand.Rand, power bool) error {
	now := w.opts.IndexDir
	next := filepath.Join(w.dir, "index-"+strconv.FormatUint(w.names.Add(1), 10))
	what := r.IntN(4)
	switch {
	case what == 0 && w.indexes > 0:
		w.count("index of earlier")
		copyDir(w.t, filepath.Join(w.dir, fmt.Sprint("old-", r.IntN(w.indexes))), next)
	case what == 1:
		w.count("index lost")
	default:
		// After a loss of power this one is ahead of the disk.
		copyDir(w.t, now, next)
	}
	if w.indexes < 8 && !power {
		copyDir(w.t, now, filepath.Join(w.dir, fmt.Sprint("old-", w.indexes)))
		w.indexes++
	}
	if err := os.RemoveAll(now); err != nil {
		return err
	}
	w.opts = w.options(next)
	return nil
}

// modelRand returns the seed of a model test: COFFER_MODEL_SEED repeats it, as far as goroutines can be repeated.
func modelRand(t *testing.T) *mathrand.Rand {
	t.Helper()
	var b [8]byte
	rand.Read(b[:])
	seed := binary.LittleEndian.Uint64(b[:])
	if s := os.Getenv("COFFER_MODEL_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("COFFER_MODEL_SEED=%d", seed)
	return mathrand.New(mathrand.NewPCG(seed, 1))
}

// TestModel runs the operations of the package's matrix side by side, on a disk that fails now and then, ends them by
// closing the store, by a loss of power, or by putting an earlier state of the store back, and holds the store against a map of what it promised. Run it with -race.
func TestModel(t *testing.T) {
	r := modelRand(t)
	until := time.Now().Add(forms(10*time.Second, time.Minute, 10*time.Minute))
	if *modelTime > 0 {
		until = time.Now().Add(*modelTime)
	}
	w := newWorld(t)
	var err error
	if w.s, err = Create(t.Context(), w.opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.s.Close() })
	rounds := 0
	for time.Now().Before(until) {
		rounds++
		w.round(r, rounds)
		if t.Failed() {
			return
		}
	}
	w.end()
	counts := make(map[string]int64)
	w.counts.Range(func(k, v any) bool { counts[k.(string)] = v.(*atomic.Int64).Load(); return true })
	t.Logf("%d rounds, %v", rounds, counts)
	t.Logf("collections: %+v", w.total)
	t.Logf("%+v", w.s.Stats())
}

// round lets clients work for a while, then starts the store anew.
func (w *world) round(r *mathrand.Rand, number int) {
	t := w.t
	ctx := t.Context()
	if r.IntN(2) == 0 {
		w.faults.Store(int64(1000 + r.IntN(20000)))
	}
	var stopped atomic.Bool
	var wg sync.WaitGroup
	for range 5 {
		client := &worldClient{w: w, r: mathrand.New(mathrand.NewPCG(r.Uint64(), r.Uint64()))}
		wg.Go(func() {
			for !stopped.Load() && !t.Failed() {
				if err := client.act(ctx); err != nil {
					t.Errorf("round %d: %v", number, err)
					return
				}
			}
		})
	}
	time.Sleep(time.Duration(100+r.IntN(1500)) * time.Millisecond)
	stop := func() { stopped.Store(true); wg.Wait() }
	if t.Failed() {
		stop()
		return
	}
	if err := w.reopen(ctx, r, stop); err != nil {
		t.Fatalf("round %d, reopened: %v", number, err)
	}
	w.remember(r)
	if number%3 != 0 {
		return
	}
	if err := w.verifyDeep(ctx); err != nil {
		t.Fatalf("round %d: %v", number, err)
	}
	w.collectAll()
	if err := w.verify(ctx); err != nil {
		t.Fatalf("round %d, collected: %v", number, err)
	}
}

// collectAll runs complete collections until nothing changes; what nobody reaches any more must be gone, except for what
// is too little to be worth a copy.
func (w *world) collectAll() {
	t, ctx := w.t, w.t.Context()
	t.Helper()
	w.clock.advance(remainsAge + time.Hour)
	for range 2 {
		if rep := mustCollect(t, w.s, CollectOptions{Sparse: 1}); rep.Damaged > 0 || rep.Skipped > 0 || rep.Remains > 0 {
			t.Fatalf("%+v", rep)
		}
	}
	dead, rows, err := w.leftover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if dead > rows/50 {
		t.Fatalf("%d of %d rows are left that no saveset reaches", dead, rows)
	}
	w.count("collected all")
}

// end deletes everything: nothing must be left.
func (w *world) end() {
	t, ctx := w.t, w.t.Context()
	w.clock.advance(365 * 24 * time.Hour)
	for id := range w.sets {
		if _, err := w.s.SetState(ctx, id, func(st State) State { st.Locked = false; return st }); err != nil {
			t.Fatal(err)
		}
		mustDelete(t, w.s, id)
	}
	clear(w.sets)
	w.collectAll()
	if st := w.s.Stats(); st.Containers > 0 || st.Savesets > 0 {
		t.Fatalf("left of nothing: %+v", st)
	}
	for info, err := range w.s.blob.List(ctx, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		for _, prefix := range []string{container.Prefix, manifestPrefix, statePrefix, damagePrefix} {
			if len(info.Name) > len(prefix) && info.Name[:len(prefix)] == prefix {
				t.Errorf("left of nothing: %s", info.Name)
			}
		}
	}
	if err := w.verify(ctx); err != nil {
		t.Fatal(err)
	}
}
