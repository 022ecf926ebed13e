package dedup

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// twoDisks are a disk and what became of it: one of its leaves is the same.
func twoDisks(t *testing.T) (first, second testTree) {
	t.Helper()
	r := newRand(t)
	disk := make([][]byte, 300)
	for _, i := range []int{0, 1, 200, 299} {
		disk[i] = randomBytes(r, imageChunk)
	}
	changed := slices.Clone(disk)
	changed[1] = randomBytes(r, imageChunk)
	return testTree{"d00/vda.raw": disk}, testTree{"d00/vda.raw": changed}
}

// stillWaits fails the test when a call ends that is to wait. Time only gives a call that does not wait the chance to say so.
func stillWaits(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

// TestIncrementBesideCopying: a run that takes a part of its parent's disk over waits while a collection copies the node that
// it refers to, and finds it in its new place.
func TestIncrementBesideCopying(t *testing.T) {
	o := memOptions(t)
	held := &heldBlob{Store: o.Blob, prefix: container.Prefix, held: make(chan struct{}), result: make(chan error)}
	o.Blob = held
	s := mustCreate(t, o)
	first, second := twoDisks(t)
	m := mustBackup(t, s, first, 1)
	if _, err := s.RotateKey(t.Context()); err != nil { // all that is there is to be copied, nodes first
		t.Fatal(err)
	}
	held.armed.Store(true)
	t.Cleanup(func() { close(held.result) })
	collected := make(chan error, 1)
	go func() {
		rep, err := s.Collect(t.Context(), CollectOptions{})
		if err == nil && rep.Copied == 0 {
			err = errors.New("nothing was copied")
		}
		collected <- err
	}()
	<-held.held
	var n Manifest
	stored := make(chan error, 1)
	go func() {
		var err error
		n, err = backupOn(t.Context(), s, second, 1, base{id: m.ID, tree: first})
		stored <- err
	}()
	stillWaits(t, stored)
	held.result <- nil
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	if err := <-collected; err != nil {
		t.Fatal(err)
	}
	mustCompare(t, s, m.ID, first)
	mustCompare(t, s, n.ID, second)
	if err := checkClosure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// TestWaitForWhatIsCondemned: what ends the wait of a node whose child is condemned, and how.
func TestWaitForWhatIsCondemned(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, s *Store, run *Run, cancel func(), condemned *container.Directory)
		want func(err error) bool
	}{
		{"reprieved", func(t *testing.T, s *Store, _ *Run, _ func(), d *container.Directory) { s.Reprieve(d.ID()) },
			func(err error) bool { return err == nil }},
		{"gone", func(t *testing.T, s *Store, _ *Run, _ func(), d *container.Directory) {
			if err := s.dropRows(t.Context(), d, func(uint32) bool { return true }); err != nil {
				t.Error(err)
			}
			s.Reprieve(d.ID())
		}, func(err error) bool { return KindOf(err) == UnknownChild }},
		{"aborted", func(t *testing.T, _ *Store, run *Run, _ func(), _ *container.Directory) {
			if err := run.Abort(t.Context(), "test"); err != nil {
				t.Error(err)
			}
		}, func(err error) bool { return KindOf(err) == Closed }},
		{"cancelled", func(_ *testing.T, _ *Store, _ *Run, cancel func(), _ *container.Directory) { cancel() },
			func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"store closed", func(t *testing.T, s *Store, _ *Run, _ func(), _ *container.Directory) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}, func(err error) bool { return KindOf(err) == Closed }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := memOptions(t)
			s := mustCreate(t, o)
			first, _ := twoDisks(t)
			m := mustBackup(t, s, first, 1)
			run, f := runAbove(t, s, m)
			id := containersOf(t, o, container.Node)[0]
			if err := s.Condemn(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			dir, err := container.OpenDirectory(t.Context(), o.Blob, id, s.ring)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- run.PutNodes(ctx, f) }()
			stillWaits(t, done)
			c.end(t, s, run, cancel, dir)
			if err := <-done; !c.want(err) {
				t.Fatalf("%v", err)
			}
		})
	}
}

// runAbove begins a run with a parent, and makes a frame with a directory that refers to the parent's.
func runAbove(t *testing.T, s *Store, parent Manifest) (*Run, frame.Frame) {
	t.Helper()
	run, err := s.Begin(t.Context(), RunOptions{ID: "above", Parents: []SavesetID{parent.ID}})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{run: run, keys: run.domain.Keys}
	b := recipe.NewDirBuilder(a, digest.NewHasher(a.keys.Node))
	e := recipe.Entry{Name: "all", Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: parent.Root.Digest}}
	if err := b.Add(t.Context(), e, parent.Root.Totals); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	var p frame.Packer
	for _, n := range a.nodes {
		p.Add(n.d, n.rec)
	}
	return run, p.Encode(frame.NewEncoder(), nil)
}
