package dedup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

func within(t *testing.T, d time.Duration, what string, f func()) bool {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
		return true
	case <-time.After(d):
		t.Errorf("%s: hangs", what)
		return false
	}
}

func noStore(t *testing.T, o Options) *Store { // without Cleanup: Close would hang as well
	t.Helper()
	s, err := Create(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A container that proves damaged while another one is entered goes onto the list when the index is free again.
func TestDamageMetWhileEntering(t *testing.T) {
	o := memOptions(t)
	s := noStore(t, o)
	r := newRand(t)
	tree := randomTree(r, 40)
	mustBackup(t, s, tree, 1)
	b := containersOf(t, o, container.Data)[0]
	dir, err := s.directory(t.Context(), b)
	if err != nil || dir == nil {
		t.Fatal(err)
	}
	view := found{dir: dir, slot: 0}
	chunk, err := s.read(t.Context(), view)
	if err != nil {
		t.Fatal(err)
	}
	d := view.digest()
	// Some damage is on the list: of anything.
	s.noteObject("manifests/0000", SavesetID{}, errors.New("some damage"))
	run, err := s.Begin(t.Context(), RunOptions{ID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := run.Lane(LaneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The run sends a chunk that the store has (it was rewriting, or did not ask, or another run was faster).
	var p frame.Packer
	p.Add(d, chunk)
	if _, err := l.PutFrame(t.Context(), p.Encode(frame.NewEncoder(), nil)); err != nil {
		t.Fatal(err)
	}
	s.dirs.forget(b) // as when the locality cache is full
	flipBlob(t, o.Blob, b.Name(), -300)
	if !within(t, time.Minute, "flush", func() { _ = l.Flush(context.Background()) }) {
		return
	}
	within(t, time.Minute, "close", func() { _ = s.Close() })
}

// Likewise at Open.
func TestDamageMetWhileOpening(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	r := newRand(t)
	run, err := s.Begin(t.Context(), RunOptions{ID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	h := digest.NewHasher(s.Domain().Keys.Data)
	c := randomBytes(r, 1000)
	for range 2 { // the same chunk in two containers
		l, err := run.Lane(LaneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var p frame.Packer
		p.Add(h.Sum(c), c)
		if _, err := l.PutFrame(t.Context(), p.Encode(frame.NewEncoder(), nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := run.Abort(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	at, err := s.indexed(t.Context(), []digest.Digest{h.Sum(c)})
	if err != nil {
		t.Fatal(err)
	}
	named := at[0].dir.ID()
	s.noteObject("manifests/0000", SavesetID{}, errors.New("some damage"))
	if err := s.saveDamage(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range containersOf(t, o, container.Data) {
		if id != named { // what a crash in the middle of a collection, or right after the Put, leaves
			if err := s.index.ForgetContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flipBlob(t, o.Blob, named.Name(), -300)
	within(t, time.Minute, "open", func() {
		s, err := Open(context.Background(), o)
		if err != nil {
			t.Error(err)
			return
		}
		_ = s.Close()
	})
}

// hookFS calls a function once in Free.
type hookFS struct {
	vfs.FS
	armed atomic.Bool
	f     func()
}

func (h *hookFS) Free(dir string) (int64, error) {
	if h.armed.CompareAndSwap(true, false) {
		h.f()
	}
	return h.FS.Free(dir)
}

// PutNodes beside an Abort of a run that failed: what the lanes had is not dropped before the nodes are.
func TestAbortOfAFailedRunWaitsForNodes(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	var failing atomic.Bool
	hook := &hookFS{FS: errorfs.Wrap(newMem(t), errorfs.Func(func(op errorfs.Op, name string) error {
		if failing.Load() && op == errorfs.OpCreate && strings.Contains(name, spoolSuffix) {
			failing.Store(false)
			return errorfs.ErrInjected
		}
		return nil
	})), f: func() { close(in); <-out }}
	o := testOptions(t, hook, "/", filepath.Join(t.TempDir(), "index"))
	s := mustCreate(t, o)
	r := newRand(t)
	tree := make(testTree)
	for i := range 12000 {
		tree[fmt.Sprintf("d%d/some-file-name-%06d", i%3, i)] = [][]byte{append(randomBytes(r, 4), fmt.Sprint(i)...)}
	}
	o.ContainerSize = 1 << 20
	s.opts.ContainerSize = 1 << 20
	run, err := s.Begin(t.Context(), RunOptions{ID: "r"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.sendData(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	s.opts.ContainerSize = 64 << 10 // for the nodes; only so that the test needs few
	if _, _, err := a.build(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	hook.armed.Store(true)
	sent := make(chan error, 1)
	go func() { sent <- a.sendNodes(context.Background()) }()
	select {
	case <-in: // PutNodes is about to open the node container
	case err := <-sent:
		t.Fatal("no node container was opened:", err)
	}
	failing.Store(true)
	other, err := run.Lane(LaneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := randomBytes(r, 5000)
	var p frame.Packer
	p.Add(digest.NewHasher(a.keys.Data).Sum(c), c)
	if _, err := other.PutFrame(t.Context(), p.Encode(frame.NewEncoder(), nil)); err == nil {
		t.Fatal("the run did not fail")
	}
	aborted := make(chan error, 1)
	go func() { aborted <- run.Abort(context.Background(), "it failed") }()
	for i := 0; ; i++ {
		a.lanes[0].mu.Lock()
		gone := a.lanes[0].w == nil
		a.lanes[0].mu.Unlock()
		if gone || i > 100 { // with the fix Abort waits for PutNodes
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(out)
	t.Log("nodes:", <-sent)
	t.Log("abort:", <-aborted)
	if err := checkClosure(t.Context(), s); err != nil {
		t.Error(err)
	}
	t.Log(s.Stats().Containers, "containers")
}

// dataApart is halfRun, with the data of the two trees in containers of their own.
func dataApart(t *testing.T, s *Store, lost, kept testTree) Manifest {
	t.Helper()
	return halfRunApart(t, s, lost, kept, func(a *agent) {
		if err := a.lanes[0].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// deadBeside makes a store of which one node container holds dead and live nodes in one frame, and the data of the dead ones is gone.
func deadBeside(t *testing.T) (s *Store, o Options, dead, live testTree, m Manifest) {
	t.Helper()
	s, o, clock := gcStore(t)
	r := newRand(t)
	dead, live = randomTree(r, 30), randomTree(r, 30)
	m = dataApart(t, s, dead, live)
	clock.advance(remainsAge + time.Hour)
	rep := mustCollect(t, s, CollectOptions{Sparse: 0.01})
	if len(s.tombstones.all()) == 0 || rep.Deleted == 0 {
		t.Fatalf("the test tests nothing: %+v", rep)
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s, o, dead, live, m
}

// backupAgain is an agent that asks for the root, and believes the answer.
func backupAgain(t *testing.T, s *Store, tree testTree) {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "again"})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Abort(context.Background(), "over")
	a, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	root, side, err := a.build(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	have := make([]bool, 2)
	if err := run.Have(t.Context(), []digest.Digest{root.Digest, side.Digest}, have); err != nil {
		t.Fatal(err)
	}
	if !have[0] || !have[1] {
		if _, _, err := a.backup(t.Context(), tree); err != nil {
			t.Fatal(err)
		}
	}
	m, err := run.Commit(t.Context(), Draft{Root: root, Side: side})
	if err != nil {
		t.Error("commit:", err)
		return
	}
	if err := compare(t.Context(), s, m.ID, tree); err != nil {
		t.Errorf("have: %v; a saveset that was committed does not read: %v", have, err)
	}
}

// A damaged frame with dead nodes is healed from a source: nobody has the dead ones, without what is below them.
func TestHealLeavesTheDead(t *testing.T) {
	s, o, dead, live, m := deadBeside(t)
	p := memOptions(t)
	p.Join = s.Domain()
	pair := mustCreate(t, p)
	mustBackup(t, pair, dead, 1)
	mustBackup(t, pair, live, 1)
	for _, id := range containersOf(t, o, container.Node) {
		harmFrame(t, s, o, id, 0)
	}
	s = reopen(t, s, o)
	mustCheck(t, s)
	src, err := OpenSource(t.Context(), Options{Blob: p.Blob, Key: p.Key})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	rep, err := s.Heal(t.Context(), []ChunkSource{src}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", rep)
	mustCompare(t, s, m.ID, live)
	for range 2 {
		s.waitSettled(t.Context())
		mustCheck(t, s)
	}
	backupAgain(t, s, dead)
}

// A node container that could not be read when its nodes died is salvaged: nobody has them.
func TestSalvageLeavesTheDead(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	dead, live := randomTree(r, 30), make(testTree)
	for name, c := range randomTree(r, 40) {
		live["x"+name+"x"] = c // no node in common
	}
	gone := mustBackup(t, s, dead, 1)
	z := containersOf(t, o, container.Node)
	kept := mustBackup(t, s, live, 1)
	mustDelete(t, s, gone.ID)
	for _, id := range z {
		flipBlob(t, o.Blob, id.Name(), -300)
	}
	s = reopen(t, s, o)
	mustCheck(t, s)
	clock.advance(remainsAge + time.Hour)
	rep, err := s.Collect(t.Context(), CollectOptions{})
	t.Logf("%+v %v", rep, err)
	h, err := s.Heal(t.Context(), nil, nil)
	t.Logf("%+v %v", h, err)
	mustCompare(t, s, kept.ID, live)
	backupAgain(t, s, dead)
}

// Tombstones that were lost, which an index that is ahead noticed, stay lost until a collection.
func TestLostTombstonesStayLost(t *testing.T) {
	s, o, dead, live, m := deadBeside(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range blobNames(t, o.Blob, tombstonePrefix, tombstonePartPrefix) {
		if err := o.Blob.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, o)
	if _, lost := s.tombstones.unsure(); !lost {
		t.Fatal("not noticed at all")
	}
	s = reopen(t, s, o)
	if _, lost := s.tombstones.unsure(); !lost {
		t.Error("forgotten at the second Open")
	}
	mustCompare(t, s, m.ID, live)
	run, err := s.Begin(t.Context(), RunOptions{ID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	_ = run.Abort(t.Context(), "")
	backupAgain(t, s, dead)
	mustCollect(t, s, CollectOptions{})
	s = reopen(t, s, o)
	if _, lost := s.tombstones.unsure(); lost {
		t.Error("lost still, after a collection")
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Error(err)
	}
}

// A container that proves unreadable while the nodes above another one are looked for is looked into next.
func TestSecondSpoiltIsLookedInto(t *testing.T) {
	s, o, _ := gcStore(t)
	r := newRand(t)
	a, b := randomTree(r, 30), randomTree(r, 30)
	mustBackup(t, s, a, 1)
	first := containersOf(t, o, container.Data)
	mb := mustBackup(t, s, b, 1)
	second := containersOf(t, o, container.Data)[len(first):]
	s.keeper.stop() // this test is the keeper
	flipBlob(t, o.Blob, first[0].Name(), -300)
	flipBlob(t, o.Blob, second[0].Name(), -300)
	s.spoil(t.Context(), first[0], errors.New("unreadable"))
	// findAbove, with the second container found out about at the end of its walk.
	l := s.damage
	version, unsure := l.beginWalk()
	w := &aboveWalk{s: s, walk: s.newTreeWalk(), above: make(map[digest.Digest]struct{}), known: make(map[container.ID]bool)}
	w.walk.resolve, w.walk.lost = unsure, w.lost
	for _, id := range s.containers.without(nil) {
		if err := w.container(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	s.spoil(t.Context(), second[0], errors.New("unreadable"))
	if !s.finishAbove(w, version, unsure) {
		t.Fatal("not finished")
	}
	if err := s.settleDamage(t.Context()); err != nil { // what the keeper does next
		t.Fatal(err)
	}
	for _, d := range s.Damage() {
		t.Log(d.Container, len(d.Digests))
	}
	run, err := s.Begin(t.Context(), RunOptions{ID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	have := make([]bool, 1)
	if err := run.Have(t.Context(), []digest.Digest{mb.Root.Digest}, have); err != nil {
		t.Fatal(err)
	}
	if have[0] {
		t.Error("the root of a saveset whose data cannot be read is had")
	}
	harmed, err := s.Harmed(t.Context())
	if err != nil || !harmed[mb.ID] {
		t.Error("the saveset does not count as harmed:", err)
	}
	_ = run.Abort(t.Context(), "")
}

// A manifest may be dismissed whose saveset was locked, and is not any more.
func TestDismissOfAnUnlockedManifest(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	m := mustBackup(t, s, randomTree(newRand(t), 10), 1)
	for _, locked := range []bool{true, false} {
		if _, err := s.SetState(t.Context(), m.ID, func(st State) State { st.Locked = locked; return st }); err != nil {
			t.Fatal(err)
		}
	}
	flipBlob(t, o.Blob, manifestName(m.ID), -3)
	loseCopy(t, o.Blob, manifestName(m.ID))
	s = reopen(t, s, o)
	if err := s.Dismiss(t.Context(), manifestName(m.ID), "admin"); err != nil {
		t.Error("it is not locked:", err)
	}
}

// The removal of a salvaged container could not be synced, and its file is gone: the next Heal takes it for that.
func TestHealAfterAnUnsyncedRemoval(t *testing.T) {
	var failing atomic.Bool
	fsys := errorfs.Wrap(newMem(t), errorfs.Func(func(op errorfs.Op, name string) error {
		if failing.Load() && op == errorfs.OpSyncDir && strings.Contains(name, "containers/") {
			failing.Store(false)
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := testOptions(t, fsys, "/", filepath.Join(t.TempDir(), "index"))
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 30)
	m := mustBackup(t, s, tree, 1)
	id := containersOf(t, o, container.Data)[0]
	flipBlob(t, o.Blob, id.Name(), -300)
	s = reopen(t, s, o)
	mustCheck(t, s)
	if err := s.Condemn(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s.Reprieve(id)
	h := &heal{s: s, meter: newMeter(nil)}
	ids := h.condemn(t.Context())
	for id := range ids {
		if err := h.salvageOne(t.Context(), ids, id); err != nil {
			t.Fatal(err)
		}
	}
	failing.Store(true)
	t.Log(s.removeDamaged(t.Context(), id))
	s.Reprieve(id)
	for range 2 {
		if _, err := s.Heal(t.Context(), nil, nil); err != nil {
			t.Error("heal:", err)
		}
	}
	mustCompare(t, s, m.ID, tree)
	for _, d := range s.Damage() {
		t.Errorf("%+v", d)
	}
}

// Who waits for the nodes above damage does not wait for a store that closes.
func TestHarmedEndsWithTheStore(t *testing.T) {
	var failing atomic.Bool
	fsys := errorfs.Wrap(newMem(t), errorfs.Func(func(op errorfs.Op, name string) error {
		if failing.Load() && op == errorfs.OpRead && strings.Contains(name, "containers/") {
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := testOptions(t, fsys, "/", filepath.Join(t.TempDir(), "index"))
	s := mustCreate(t, o)
	mustBackup(t, s, randomTree(newRand(t), 30), 1)
	id := containersOf(t, o, container.Data)[0]
	s.dirs.forget(id)
	failing.Store(true)
	s.spoil(t.Context(), id, errors.New("unreadable"))
	done := make(chan error, 1)
	go func() {
		_, err := s.Harmed(context.Background())
		done <- err
	}()
	time.Sleep(300 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Log(err)
	}
	select {
	case err := <-done:
		t.Log(err)
	case <-time.After(time.Minute):
		t.Error("Harmed hangs after Close")
	}
}

// The copy of a node container whose Put failed, and could not be taken back, is there at the next Open: nobody has the nodes of it that
// died since.
func TestCopyThatMayStay(t *testing.T) {
	var failing atomic.Bool
	var stuck atomic.Value
	fsys := errorfs.Wrap(newMem(t), errorfs.Func(func(op errorfs.Op, name string) error {
		if !failing.Load() || !strings.Contains(name, "containers/") {
			return nil
		}
		switch op {
		case errorfs.OpSyncDir, errorfs.OpRemove:
			stuck.Store(name)
			return errorfs.ErrInjected
		}
		return nil
	}))
	o := testOptions(t, fsys, "/", filepath.Join(t.TempDir(), "index"))
	clock := newTestClock()
	o.Now = clock.now
	s := mustCreate(t, o)
	r := newRand(t)
	// A node container that is sparse: of two trees, one goes.
	one, two := randomTree(r, 30), randomTree(r, 30)
	m := dataApart(t, s, one, two)
	clock.advance(remainsAge + time.Hour)
	rep, err := s.Collect(t.Context(), CollectOptions{Sparse: 1, Progress: func(p Progress) {
		if p.Phase == "copy" {
			failing.Store(true)
		}
	}})
	t.Logf("%+v %v", rep, err)
	failing.Store(false) // the disk is well again
	mustDelete(t, s, m.ID)
	rep = mustCollect(t, s, CollectOptions{Sparse: 1})
	t.Logf("%+v", rep)
	t.Log("in memory:", s.containers.without(nil), "on disk:", blobNames(t, o.Blob, container.Prefix))
	s = reopen(t, s, o)
	backupAgain(t, s, two)
}

// A Commit whose context ended before the manifest was written gives its pins back.
func TestCancelledCommitKeepsNoPins(t *testing.T) {
	s, _, clock := gcStore(t)
	r := newRand(t)
	tree := randomTree(r, 30)
	run := sendAll(t, s, tree)
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	s.opts.Now = func() time.Time { // asked for the node container, then for the manifest, right before it is put
		if asked++; asked == 2 {
			cancel()
		}
		return clock.now()
	}
	if _, err := run.run.Commit(ctx, run.draft); err == nil {
		t.Fatal("committed")
	} else {
		t.Log(err)
	}
	s.opts.Now = clock.now
	clock.advance(2 * remainsAge)
	rep := mustCollect(t, s, CollectOptions{})
	if n := s.Stats().Containers; n > 0 {
		t.Errorf("%d containers stay: %+v", n, rep)
	}
}

// A check that walks savesets holds places of nodes while a collection copies their containers forward: what it does not find
// there is no damage.
func TestCheckBesideCopy(t *testing.T) {
	var reads, when atomic.Int64
	var hook atomic.Pointer[func()]
	fsys := errorfs.Wrap(newMem(t), errorfs.Func(func(op errorfs.Op, name string) error {
		if op == errorfs.OpRead && strings.Contains(name, "containers/") && reads.Add(1) == when.Load() {
			if f := hook.Swap(nil); f != nil {
				(*f)()
			}
		}
		return nil
	}))
	o := testOptions(t, fsys, "/", filepath.Join(t.TempDir(), "index"))
	o.NodeMemory = 1
	s := mustCreate(t, o)
	r := newRand(t)
	tree := make(testTree)
	for i := range 12000 {
		tree[fmt.Sprintf("d%d/some-file-name-%06d", i%3, i)] = [][]byte{append(randomBytes(r, 4), fmt.Sprint(i)...)}
	}
	m := mustBackup(t, s, tree, 1)
	if _, err := s.RotateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, o)
	collect := func() {
		rep, err := s.Collect(context.Background(), CollectOptions{})
		t.Logf("%+v %v", rep, err)
	}
	for at := int64(4); at < 80; at += 9 {
		when.Store(at)
		reads.Store(0)
		hook.Store(&collect)
		rep, err := s.Check(t.Context(), CheckOptions{Objects: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range rep.Found {
			t.Fatalf("collection at read %d: found: %v %v %d digests: %v", at, d.Container, d.Kind, len(d.Digests), d.Reason)
		}
		if _, err := s.RotateKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s, o)
	}
	mustCompare(t, s, m.ID, tree)
}

// A node container that an open run relies on does not read for a while (a check spoils what a disk did not give): no collection
// takes it for dead. Then it reads again.
func TestPinnedAndUnreadable(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	old := randomTree(r, 40)
	a := mustBackup(t, s, old, 1)
	z := containersOf(t, o, container.Node)
	tree := testTree{"new/file": {randomBytes(r, 1000)}}
	for name, c := range old {
		tree[name] = c
	}
	run, err := s.Begin(t.Context(), RunOptions{ID: "open"})
	if err != nil {
		t.Fatal(err)
	}
	ag, err := newAgent(run, s, 1)
	if err != nil {
		t.Fatal(err)
	}
	root, side, err := ag.build(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	nodes := ag.nodes
	ag.nodes = nil
	// It asks for the nodes, and sends those that are missing and the data below them.
	if err := ag.sendData(t.Context(), testTree{"new/file": tree["new/file"]}); err != nil {
		t.Fatal(err)
	}
	ag.nodes = nodes
	if err := ag.sendNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", run.Stats())
	mustDelete(t, s, a.ID)
	clock.advance(remainsAge + time.Hour)
	for _, id := range z {
		s.spoil(t.Context(), id, errors.New("the disk did not give it")) // as check.container does
	}
	if err := s.settleDamage(t.Context()); err != nil {
		t.Fatal(err)
	}
	rep, err := s.Collect(t.Context(), CollectOptions{})
	t.Logf("%+v %v", rep, err)
	m, err := run.Commit(t.Context(), Draft{Root: root, Side: side})
	if err != nil {
		t.Fatal("commit:", err)
	}
	mustCheck(t, s) // it reads again
	t.Log(s.Damage())
	if err := compare(t.Context(), s, m.ID, tree); err != nil {
		t.Error("no byte of the disk is damaged, and a saveset that was committed does not read:", err)
	}
}

// INVARIANT I1: a run seals a chunk while another one is about to take its old entry over; the container cannot be pinned just then.
// The first one does not take the entry, for no mark would say so.
func TestEntryOfAMovingContainer(t *testing.T) {
	s, o, clock := gcStore(t)
	r := newRand(t)
	tree := testTree{"d/f": nil}
	for range 400 {
		tree["d/f"] = append(tree["d/f"], randomBytes(r, 200))
	}
	m := mustBackup(t, s, tree, 1)
	h := digest.NewHasher(s.Domain().Keys.Data)
	chunk := tree["d/f"][101]
	d := h.Sum(chunk)
	at, err := s.indexed(t.Context(), []digest.Digest{d})
	if err != nil {
		t.Fatal(err)
	}
	c := at[0].dir.ID()
	send := func(id string) (*Run, *Lane) {
		run, err := s.Begin(t.Context(), RunOptions{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		l, err := run.Lane(LaneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var p frame.Packer
		p.Add(d, chunk)
		if _, err := l.PutFrame(t.Context(), p.Encode(frame.NewEncoder(), nil)); err != nil {
			t.Fatal(err)
		}
		return run, l
	}
	// R1 stores the chunk anew: takeOver, step by step.
	r1, l1 := send("r1")
	if !r1.pins.pin(c) {
		t.Fatal("not pinned")
	}
	before := s.containers.without(nil)
	if err := l1.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	own := s.containers.without(nil)[len(before):]
	dir, err := s.directory(t.Context(), own[0])
	if err != nil {
		t.Fatal(err)
	}
	from := map[container.ID]bool{c: s.containers.beginMove(c)}
	if !from[c] {
		t.Fatal("not moving")
	}
	// R2 seals now.
	r2, l2 := send("r2")
	flushed := make(chan error, 1)
	go func() { flushed <- l2.Flush(context.Background()) }()
	select {
	case err = <-flushed:
	case <-time.After(time.Second): // it waits for R1
	}
	taken, e := s.index.Overtake(t.Context(), dir, []uint32{0}, func(id container.ID) bool { return from[id] })
	t.Log("R1 took", len(taken), e)
	s.dirs.take(dir.ID(), taken)
	s.containers.endMove(from)
	if len(taken) > 0 {
		err = <-flushed
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = r1.Abort(t.Context(), "")
	_ = r2.Abort(t.Context(), "")
	s = reopen(t, s, o)
	if at, err = s.indexed(t.Context(), []digest.Digest{d}); err != nil {
		t.Fatal(err)
	}
	if s.canonical(c) && at[0].dir.ID() != c {
		t.Errorf("%v counts as canonical, and the index names its chunk in %v", c, at[0].dir.ID())
	}
	clock.advance(remainsAge + time.Hour)
	rep, err := s.Collect(t.Context(), CollectOptions{Sparse: 0.01})
	t.Logf("%+v %v", rep, err)
	s = reopen(t, s, o)
	v, err := s.View(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.Chunk(t.Context(), d); err != nil {
		t.Error("after a collection, and a restart:", err)
	}
	if err := checkClosure(t.Context(), s); err != nil {
		t.Error(err)
	}
}
