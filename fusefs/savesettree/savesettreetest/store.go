//go:build linux

// Package savesettreetest is a source of savesets for tests: directories captured into memory, without store and agent.
package savesettreetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/fusefs/savesettree"
)

// Store is a source of savesets that lie in memory. Its methods may be called from many goroutines.
type Store struct {
	mu     sync.Mutex // guards what follows
	sets   []savesettree.Saveset
	nodes  map[digest.Digest][]byte
	chunks map[digest.Digest][]byte
	fail   error // of chunks and nodes

	// Open counts views that are open, Opened all that ever were, Ahead chunks that were asked for ahead of their use,
	// Chunks those that were read.
	Open, Opened, Ahead, Chunks atomic.Int64
}

var (
	_ savesettree.Source = source{}
	_ Sink               = (*Store)(nil)
)

// NewStore returns a store without savesets.
func NewStore() *Store {
	return &Store{nodes: map[digest.Digest][]byte{}, chunks: map[digest.Digest][]byte{}}
}

// Source returns the store as the tree sees it.
func (m *Store) Source() savesettree.Source { return source{m} }

type source struct{ m *Store }

// Savesets implements savesettree.Source.
func (s source) Savesets(context.Context) ([]savesettree.Saveset, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return slices.Clone(s.m.sets), nil
}

// Open implements savesettree.Source.
func (s source) Open(_ context.Context, id dedup.SavesetID) (savesettree.View, error) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.sets, func(s savesettree.Saveset) bool { return s.ID == id }) {
		return nil, errors.New("saveset is gone")
	}
	m.Open.Add(1)
	m.Opened.Add(1)
	return &view{m: m}, nil
}

type view struct {
	m      *Store
	closed atomic.Bool
}

func (v *view) get(from map[digest.Digest][]byte, d digest.Digest) ([]byte, error) {
	v.m.mu.Lock()
	defer v.m.mu.Unlock()
	if v.closed.Load() {
		return nil, errors.New("view is closed")
	}
	if v.m.fail != nil {
		return nil, v.m.fail
	}
	b, ok := from[d]
	if !ok {
		return nil, fmt.Errorf("%v is missing", d)
	}
	return b, nil
}

func (v *view) Node(_ context.Context, d digest.Digest) ([]byte, error) { return v.get(v.m.nodes, d) }
func (v *view) ReadAhead(ds []digest.Digest)                            { v.m.Ahead.Add(int64(len(ds))) }

func (v *view) Chunk(_ context.Context, d digest.Digest) ([]byte, error) {
	v.m.Chunks.Add(1)
	return v.get(v.m.chunks, d)
}

func (v *view) Close() error {
	if !v.closed.Swap(true) {
		v.m.Open.Add(-1)
	}
	return nil
}

// PutNode implements recipe.Sink.
func (m *Store) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[d] = bytes.Clone(rec)
	return nil
}

// PutChunk implements Sink.
func (m *Store) PutChunk(_ context.Context, b []byte) (digest.Digest, error) {
	d := digest.Digest(sha256.Sum256(b))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chunks[d] = bytes.Clone(b)
	return d, nil
}

// Add makes a saveset of a captured tree.
func (m *Store) Add(client, task, level string, started time.Time, root digest.Digest) savesettree.Saveset {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := savesettree.Saveset{Client: client, Task: task, Level: level, Started: started, Root: root}
	s.ID[0], s.ID[1] = byte(len(m.sets)), byte(len(m.sets)>>8) // the parts that do not go into inode numbers
	m.sets = append(m.sets, s)
	return s
}

// RemoveLast takes the saveset away that was added last.
func (m *Store) RemoveLast() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sets = m.sets[:len(m.sets)-1]
}

// Fail makes all reads of nodes and chunks fail with err; nil ends that.
func (m *Store) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}
