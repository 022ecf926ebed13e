package dedup

import (
	"encoding/binary"
	"sync"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// slotBits is a set of slots of one container.
type slotBits []uint64

func (b slotBits) has(slot uint32) bool {
	i := int(slot / 64)
	return i < len(b) && b[i]&(1<<(slot%64)) != 0
}

// with returns the set with a slot added; it grows in one step to what a container of that many rows needs.
func (b slotBits) with(slot, rows uint32) slotBits {
	if need := int(max(rows, slot+1)+63) / 64; need > len(b) && int(slot/64) >= len(b) {
		b = append(b, make(slotBits, need-len(b))...)
	}
	b[slot/64] |= 1 << (slot % 64)
	return b
}

// containerMarks are the marks of one container.
type containerMarks struct {
	live slotBits // what a saveset that is not deleted reaches, or the remains of a broken run
	gone slotBits // what only deleted savesets reach
	// sum is the exclusive or of the digests (eight bytes of each) that were marked in either set. Marks are set where the
	// index says, without a look into the container: who decides on them compares sum with the rows first.
	sum   uint64
	dirty bool // marked since it was compared
}

// marks are one bit for each slot of the canonical copies.
type marks struct {
	mu    sync.Mutex
	m     map[container.ID]*containerMarks // guarded by mu
	last  container.ID                     // guarded by mu, as is lastM: chunks come in runs
	lastM *containerMarks
	bytes int64  // guarded by mu
	live  uint64 // guarded by mu: slots
}

func newMarks() *marks { return &marks{m: make(map[container.ID]*containerMarks)} }

// fixedMarks is what the marks of a container take beside their bits.
const fixedMarks = 160

// of needs mu held.
func (m *marks) of(id container.ID) *containerMarks {
	if m.lastM != nil && m.last == id {
		return m.lastM
	}
	c := m.m[id]
	if c == nil {
		c = new(containerMarks)
		m.m[id] = c
		m.bytes += fixedMarks
	}
	m.last, m.lastM = id, c
	return c
}

func markSum(d *digest.Digest) uint64 { return binary.LittleEndian.Uint64(d[8:]) }

// setLive marks a slot as live and reports whether it was not. needs mu held.
func (m *marks) setLive(p place, d *digest.Digest) bool {
	c := m.of(p.id)
	if c.live.has(p.slot) {
		return false
	}
	if !c.gone.has(p.slot) {
		c.sum ^= markSum(d)
	}
	before := len(c.live)
	c.live = c.live.with(p.slot, 0)
	m.bytes += int64(len(c.live)-before) * 8
	c.dirty = true
	m.live++
	return true
}

// setGone marks a slot that is not live as reached by a deleted saveset, and reports whether it was neither. needs mu held.
func (m *marks) setGone(p place, d *digest.Digest) bool {
	c := m.of(p.id)
	if c.live.has(p.slot) || c.gone.has(p.slot) {
		return false
	}
	c.sum ^= markSum(d)
	before := len(c.gone)
	c.gone = c.gone.with(p.slot, 0)
	m.bytes += int64(len(c.gone)-before) * 8
	c.dirty = true
	return true
}

// isLive reports whether a slot is marked as live.
func (m *marks) isLive(p place) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.m[p.id]
	return c != nil && c.live.has(p.slot)
}

// dirtyOnes returns the containers that were marked since they were compared.
func (m *marks) dirtyOnes() []container.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []container.ID
	for id, c := range m.m {
		if c.dirty {
			ids = append(ids, id)
		}
	}
	return ids
}

// snapshot returns a container's marks as they are now; the sets may be read without the lock.
func (m *marks) snapshot(id container.ID) (live, gone slotBits) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.m[id]
	if c == nil {
		return nil, nil
	}
	return append(slotBits(nil), c.live...), append(slotBits(nil), c.gone...)
}

// agrees compares the marks of a container with its rows: whether each mark was set for the chunk that lies there.
//
// INVARIANT: nothing is decided on marks that were not compared, in any container. A mark in the wrong place would stand
// for a chunk that has none in its own.
func (m *marks) agrees(dir *container.Directory) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.m[dir.ID()]
	if c == nil {
		return true
	}
	sum := uint64(0)
	rows := uint32(dir.Rows())
	for i := range max(len(c.live), len(c.gone)) {
		word := uint64(0)
		if i < len(c.live) {
			word |= c.live[i]
		}
		if i < len(c.gone) {
			word |= c.gone[i]
		}
		for slot := uint32(i) * 64; word != 0; slot, word = slot+1, word>>1 {
			if word&1 == 0 {
				continue
			}
			if slot >= rows {
				return false
			}
			d := dir.Digest(slot)
			sum ^= markSum(&d)
		}
	}
	if sum != c.sum {
		return false
	}
	c.dirty = false
	return true
}

func (m *marks) forget(id container.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.m[id]; c != nil {
		m.bytes -= fixedMarks + int64(len(c.live)+len(c.gone))*8
		delete(m.m, id)
	}
	m.lastM = nil
}

func (m *marks) memory() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// marked reports whether any slot of a container was marked.
func (m *marks) marked(id container.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[id] != nil
}
