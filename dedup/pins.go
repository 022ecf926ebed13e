package dedup

import (
	"slices"
	"sync"

	"coffer/dedup/container"
)

// containerState is what the store keeps in memory of each container that it has.
type containerState struct {
	size      int64
	pins      int32
	condemned bool
	was       bool // condemned at some time: others may have taken its chunks over
	damaged   bool // its directory could not be read
}

// containerSet knows the containers that are live, who pins them and which are condemned. All three stand under one
// lock, so that of pin(c) and condemn(c) exactly one succeeds, whatever the order.
//
// INVARIANT: a condemned container has no pins.
type containerSet struct {
	mu    sync.Mutex
	m     map[container.ID]*containerState // guarded by mu
	bytes uint64                           // guarded by mu: sum of size
}

func newContainerSet() *containerSet {
	return &containerSet{m: make(map[container.ID]*containerState)}
}

// add makes a container live, with the given number of pins.
func (s *containerSet) add(id container.ID, size int64, pins int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[id]; ok {
		return
	}
	s.m[id] = &containerState{size: size, pins: pins}
	s.bytes += uint64(size)
}

// pin adds a pin; false when the container is condemned, damaged or not there.
func (s *containerSet) pin(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok || c.condemned || c.damaged {
		return false
	}
	c.pins++
	return true
}

func (s *containerSet) unpin(ids map[container.ID]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range ids {
		if c, ok := s.m[id]; ok {
			c.pins--
		}
	}
}

// condemn marks a container for removal; false when it is pinned, condemned already or not there.
func (s *containerSet) condemn(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok || c.condemned || c.pins > 0 {
		return false
	}
	c.condemned, c.was = true, true
	return true
}

// reprieve takes a condemnation back.
func (s *containerSet) reprieve(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.condemned = false
	}
}

func (s *containerSet) has(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[id]
	return ok
}

func (s *containerSet) totals() (n int, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m), s.bytes
}

// pinSet is the pins of one run. A container counts once, however many of its chunks the run uses.
type pinSet struct {
	set *containerSet

	mu   sync.RWMutex
	held map[container.ID]struct{} // guarded by mu; nil after release
}

func newPinSet(set *containerSet) *pinSet {
	return &pinSet{set: set, held: make(map[container.ID]struct{})}
}

// pin pins a container for the run; false when it is condemned or gone, or the set was released.
func (p *pinSet) pin(id container.ID) bool {
	p.mu.RLock()
	_, ok := p.held[id]
	p.mu.RUnlock()
	if ok {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.held[id]; ok {
		return true
	}
	if p.held == nil || !p.set.pin(id) {
		return false
	}
	p.held[id] = struct{}{}
	return true
}

// adopt makes a container that the run wrote live and pinned in one step.
func (p *pinSet) adopt(id container.ID, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.set.add(id, size, 0)
		return
	}
	p.set.add(id, size, 1)
	p.held[id] = struct{}{}
}

// release gives all pins back. The set pins nothing from then on.
func (p *pinSet) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set.unpin(p.held)
	p.held = nil
}

// usable reports whether chunks of a container count: it lives, is not condemned and was not found damaged.
func (s *containerSet) usable(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && !c.condemned && !c.damaged
}

// spoil marks a container as damaged: its chunks are not had any more, so that the next run stores them again.
func (s *containerSet) spoil(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.damaged = true
	}
}

// without returns the containers that are not in known, ascending.
func (s *containerSet) without(known map[container.ID]struct{}) []container.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []container.ID
	for id := range s.m {
		if _, ok := known[id]; !ok {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// readable reports whether a container may be read; a condemned one may, until it is gone.
func (s *containerSet) readable(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && !c.damaged
}

// mayCondemn reports whether condemn would find the container, and find it free, at this moment.
func (s *containerSet) mayCondemn(id container.ID) (found, free bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok, ok && !c.condemned && c.pins == 0
}

// overtaken reports whether rows of a container may have lost their entries in the index to other containers.
func (s *containerSet) overtaken(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return !ok || c.was || c.damaged
}
