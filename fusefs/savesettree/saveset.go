package savesettree

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"coffer/dedup"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// Inode numbers of a saveset: its base in the upper bits, the rank of the entry in the lower ones. The top bit is for what
// stands above savesets.
const (
	rankBits = 40
	maxBase  = 1<<(63-rankBits) - 1
)

// baseOf makes the base of a saveset's inode numbers from its random part: 1 to maxBase.
func baseOf(id dedup.SavesetID) uint64 {
	return binary.BigEndian.Uint64(id[8:])%maxBase + 1
}

// saveset is an opened, or once opened, saveset.
type saveset struct {
	tree  *Tree
	info  Saveset
	base  uint64
	sweep sweep

	mu   sync.Mutex // guards what follows; held while the view is opened
	view View
	uses int
	last time.Time // of the last use
}

// root returns the saveset's topmost directory, of which the saveset keeps no metadata.
func (s *saveset) root() fusefs.Node {
	at := recipe.Time{Sec: s.info.Started.Unix(), Nsec: uint32(s.info.Started.Nanosecond())}
	return &dir{node: node{set: s, ino: s.base << rankBits, e: recipe.Entry{
		Mode: recipe.ModeDir | 0o755, MTime: at, Content: recipe.Content{Kind: recipe.DirTree, Digest: s.info.Root}}}}
}

// use runs f with the saveset's view, opening it if need be.
func (s *saveset) use(ctx context.Context, f func(View) error) error {
	v, err := s.acquire(ctx)
	if err != nil {
		return fmt.Errorf("open saveset %v: %w", s.info.ID, err)
	}
	defer s.done()
	return f(v)
}

func (s *saveset) acquire(ctx context.Context) (View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view == nil {
		if s.tree.o.Accessed != nil {
			s.tree.o.Accessed(s.info)
		}
		v, err := s.tree.src.Open(ctx, s.info.ID)
		if err != nil {
			return nil, err
		}
		s.view = v
	}
	s.uses++
	return s.view, nil
}

func (s *saveset) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses--
	s.last = time.Now()
}

// release gives the lease back if nobody used it since then.
func (s *saveset) release(then time.Time, log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses == 0 && s.last.Before(then) {
		s.drop(log)
	}
}

// close gives the lease back.
func (s *saveset) close(log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(log)
}

// drop needs mu held.
func (s *saveset) drop(log *slog.Logger) {
	if s.view == nil {
		return
	}
	if err := s.view.Close(); err != nil {
		log.Warn("give a saveset back", "saveset", s.info.ID, "err", err)
	}
	s.view = nil
}

// idle reports whether the saveset is not leased.
func (s *saveset) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view == nil
}
