package dedup

import (
	"maps"
	"slices"
	"sync"

	"coffer/dedup/container"
)

// containerState is what the store keeps in memory of each container that it has.
type containerState struct {
	size      int64
	pins      int32
	condemned bool
	was       bool  // condemned at some time: others may have taken its chunks over
	damaged   bool  // its directory could not be read
	moving    int32 // entries of its chunks are being taken over: see takeOver
	barred    bool  // which of its nodes are dead is not known: it may be read, and nothing of it is had
	settled   bool  // a collection found every chunk in it reached: none is what a broken run left
}

// containerSet knows the containers that are live, who pins them and which are condemned. All three stand under one
// lock, so that of pin(c) and condemn(c) exactly one succeeds, whatever the order.
//
// INVARIANT: a condemned container has no pins.
type containerSet struct {
	mu    sync.Mutex
	m     map[container.ID]*containerState // guarded by mu
	bytes uint64                           // guarded by mu: sum of size

	watched  bool                      // guarded by mu: a collection wants to know what comes
	arrived  []container.ID            // guarded by mu: node containers that came since it looked last
	entering map[container.ID]struct{} // guarded by mu: node containers that came, and are not in the index yet

	freed chan struct{} // guarded by mu: see whenFreed
}

func newContainerSet() *containerSet {
	return &containerSet{m: make(map[container.ID]*containerState), entering: make(map[container.ID]struct{}), freed: make(chan struct{})}
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

// pin adds a pin; false when the container is condemned, damaged, barred or not there.
func (s *containerSet) pin(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok || c.condemned || c.damaged || c.barred || c.moving > 0 {
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
	s.wakeLocked()
}

// reliedOn reports whether a run relies on a container.
func (s *containerSet) reliedOn(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && c.pins > 0
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
	kept bool                      // guarded by mu: release gives nothing back
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

// adopt makes a container that the run wrote live and pinned in one step. A collection learns of node containers: what is
// below their nodes must stay. It is on its way into the index until entered is called.
func (p *pinSet) adopt(id container.ID, size int64, kind container.Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if kind == container.Node {
		defer p.set.arrive(id)
	}
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
	if !p.kept {
		p.set.unpin(p.held)
	}
	p.held = nil
}

// keep makes release keep the pins, until the store closes: something that the run wrote, and that relies on them, may
// appear at the next Open although its writing failed.
func (p *pinSet) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = true
}

// usable reports whether chunks of a container count: it lives, is not condemned or barred and was not found damaged.
func (s *containerSet) usable(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && !c.condemned && !c.damaged && !c.barred
}

// bar keeps a container from being had.
func (s *containerSet) bar(id container.ID, barred bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.barred = barred
	}
	s.wakeLocked()
}

func (s *containerSet) isBarred(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && c.barred
}

// settle notes that nothing in a data container is what a broken run left.
func (s *containerSet) settle(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.settled = true
	}
}

func (s *containerSet) isSettled(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	return ok && c.settled
}

// remove takes a condemned container out, right before it is deleted.
func (s *containerSet) remove(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		s.bytes -= uint64(c.size)
		delete(s.m, id)
	}
	s.wakeLocked()
}

// restore is add for a container that was removed and could not be deleted.
func (s *containerSet) restore(id container.ID, size int64) {
	s.add(id, size, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[id].was = true
}

// size returns a container's bytes, 0 when it is not there.
func (s *containerSet) size(id container.ID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		return c.size
	}
	return 0
}

// watch begins or ends the noting of node containers that come.
//
// INVARIANT: those that are not in the index yet are among them. A node in one of these may have another place in the index
// that is about to go, and take the entry over when nobody looks again.
func (s *containerSet) watch(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched, s.arrived = on, nil
	if on {
		s.arrived = slices.Collect(maps.Keys(s.entering))
	}
}

func (s *containerSet) arrive(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entering[id] = struct{}{}
	if s.watched {
		s.arrived = append(s.arrived, id)
	}
}

// entered says that a container is in the index, or will not come into it.
func (s *containerSet) entered(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entering, id)
}

// arrivals returns the node containers that came since the last call.
func (s *containerSet) arrivals() []container.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := s.arrived
	s.arrived = nil
	return ids
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
