package dedup

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"coffer/dedup/container"
)

// model is what a store must agree with: the trees of all savesets that were committed and not deleted.
type model struct {
	mu    sync.Mutex
	trees map[SavesetID]testTree // guarded by mu
	gc    bool                   // collections run, so that nobody else condemns
}

func (m *model) pick(r *mathrand.Rand) (SavesetID, testTree, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.trees)
	if n == 0 {
		return SavesetID{}, nil, false
	}
	n = r.IntN(n)
	for id, t := range m.trees {
		if n == 0 {
			return id, t, true
		}
		n--
	}
	return SavesetID{}, nil, false
}

// TestModel lets clients back up, read, abort, condemn and delete side by side, reopens now and then, and holds the store
// against the model. Run it with -race.
func TestModel(t *testing.T) {
	o := memOptions(t)
	o.LocalityMemory, o.FrameMemory, o.NodeMemory = 64<<10, 128<<10, 64<<10 // so that caches turn over
	s := mustCreate(t, o)
	rounds, until := 3, 300*time.Millisecond
	if long() {
		rounds, until = 20, time.Second
	}
	r := newRand(t)
	m := &model{trees: make(map[SavesetID]testTree)}
	base := randomTree(r, 40)
	for range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), until)
		var wg sync.WaitGroup
		for range 4 {
			client := mathrand.New(mathrand.NewPCG(r.Uint64(), r.Uint64()))
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := m.act(t.Context(), s, client, base); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		cancel()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if r.IntN(2) == 0 {
			if err := os.RemoveAll(o.IndexDir); err != nil {
				t.Fatal(err)
			}
		}
		s = mustOpen(t, o)
		m.check(t, s)
	}
	t.Logf("%d savesets, %+v", len(m.trees), s.Stats())
}

func (m *model) act(ctx context.Context, s *Store, r *mathrand.Rand, base testTree) error {
	id, tree, ok := m.pick(r)
	if !ok {
		tree = base
	}
	n := r.IntN(10)
	if m.size() > 40 {
		n = 9
	}
	switch {
	case n < 3 || !ok:
		return m.backup(ctx, s, r, tree.mutate(r))
	case n < 7:
		err := compare(ctx, s, id, tree)
		if KindOf(err) == NotFound {
			if man, e := s.Saveset(ctx, id); e == nil && man.State.Deleted {
				return nil // meanwhile
			}
		}
		return err
	case n == 7:
		return m.abort(ctx, s, r, tree.mutate(r))
	case n == 8 && !m.gc:
		return m.condemn(ctx, s)
	default:
		return m.delete(ctx, s, id)
	}
}

func (m *model) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.trees)
}

func (m *model) backup(ctx context.Context, s *Store, r *mathrand.Rand, tree testTree) error {
	man, err := backup(ctx, s, tree, 1+r.IntN(3))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trees[man.ID] = tree
	return nil
}

func (m *model) abort(ctx context.Context, s *Store, r *mathrand.Rand, tree testTree) error {
	run, err := s.Begin(ctx, RunOptions{ID: "aborted"})
	if err != nil {
		return err
	}
	a, err := newAgent(run, s, 1+r.IntN(3))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- a.sendData(ctx, tree) }()
	if r.IntN(2) == 0 {
		err = <-done
		done <- err
	}
	return errors.Join(run.Abort(ctx, "model"), ignore(Closed, <-done))
}

func ignore(k Kind, err error) error {
	if KindOf(err) == k {
		return nil
	}
	return err
}

func (m *model) delete(ctx context.Context, s *Store, id SavesetID) error {
	if m.size() < 5 {
		return nil
	}
	_, err := s.SetState(ctx, id, func(st State) State { st.Deleted = true; return st })
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.trees, id)
	}
	return ignore(InUse, err) // a reader has it
}

// condemn condemns some containers for a moment, as a GC that changes its mind.
func (m *model) condemn(ctx context.Context, s *Store) error {
	var ids []container.ID
	for _, id := range s.containers.without(nil) {
		switch err := s.Condemn(ctx, id); KindOf(err) {
		case Other:
			ids = append(ids, id)
		case InUse, NotFound: // pinned, or collected meanwhile
		default:
			return err
		}
	}
	time.Sleep(time.Millisecond)
	for _, id := range ids {
		s.Reprieve(id)
	}
	return nil
}

// check compares every saveset of the store with the model.
func (m *model) check(t *testing.T, s *Store) {
	t.Helper()
	sets, err := s.Savesets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(sets) != len(m.trees) {
		t.Fatalf("%d savesets, the model has %d", len(sets), len(m.trees))
	}
	for _, man := range sets {
		if err := compare(t.Context(), s, man.ID, m.trees[man.ID]); err != nil {
			t.Fatal(fmt.Errorf("saveset %v: %w", man.ID, err))
		}
	}
	if n := s.containers.pinned(); n != 0 {
		t.Fatalf("%d containers are pinned with no run", n)
	}
}
