package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// raceLimit is how often references are looked for again that lie where they can be pinned, and were not pinned: each time a
// collection must have condemned them anew between two looks.
const raceLimit = 16

// pinReferences pins what a node or a manifest refers to and that the run did not write; fits tells whether a place has what
// ds[i] is to be. It returns the first that is not there, or -1.
//
// A run refers to what it was never asked for: to what is below its parents. Where a collection, or another run, is just
// moving that, the run waits until it is done: a leased saveset loses nothing, and the run could not send it anew.
func (r *Run) pinReferences(ctx context.Context, ds []digest.Digest, fits func(i int, at found) bool) (missing int, err error) {
	pinned, todo := make([]bool, len(ds)), make([]int, len(ds))
	for i := range ds {
		todo[i] = i
	}
	for races := 0; ; races++ {
		if err := r.pinPlaces(ctx, ds, todo, func(i int, at found) { pinned[i] = fits(i, at) }); err != nil {
			return -1, err
		}
		rest := todo[:0]
		for i, ok := range pinned {
			if !ok {
				rest = append(rest, i)
			}
		}
		if todo = rest; len(todo) == 0 {
			return -1, nil
		}
		there, waited, err := r.awaitMoves(ctx, ds, todo, fits)
		switch {
		case err != nil:
			return -1, err
		case !there || races == raceLimit:
			return todo[0], nil
		case waited:
			races = 0
		}
	}
}

// awaitMoves waits until nothing that todo names lies in a container that is condemned, or whose entries are being taken
// over. There is false when one of them is not there, not what it is to be, or lies where nobody may have it.
func (r *Run) awaitMoves(ctx context.Context, ds []digest.Digest, todo []int, fits func(i int, at found) bool) (there, waited bool, err error) {
	sub := make([]digest.Digest, len(todo))
	for j, i := range todo {
		sub[j] = ds[i]
	}
	for {
		freed := r.s.containers.whenFreed()
		if err := r.alive(); err != nil {
			return false, waited, err
		}
		places, err := r.s.indexed(ctx, sub)
		if err != nil {
			return false, waited, err
		}
		busy := false
		for j, at := range places {
			if at.dir == nil || at.dir.Domain() != r.domain.ID || !fits(todo[j], at) {
				return false, waited, nil
			}
			moving, usable := r.s.containers.moves(at.dir.ID())
			if !moving && !usable {
				return false, waited, nil
			}
			busy = busy || moving
		}
		if !busy {
			return true, waited, nil
		}
		waited = true
		select {
		case <-freed:
		case <-ctx.Done():
			return false, waited, ctx.Err()
		}
	}
}

// moves reports whether a container is condemned, or entries of it are being taken over, for the time being; else whether it
// may be pinned, or has gone since.
func (s *containerSet) moves(id container.ID) (moving, usable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok {
		return false, true
	}
	return c.condemned || c.moving > 0, !c.damaged && !c.barred
}

// whenFreed returns a channel that is closed when a container is reprieved, removed or not being moved any more, or when
// those who wait are to look after their runs.
func (s *containerSet) whenFreed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freed
}

func (s *containerSet) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}

// wakeLocked needs mu held.
func (s *containerSet) wakeLocked() {
	close(s.freed)
	s.freed = make(chan struct{})
}
