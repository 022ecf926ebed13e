package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Fate is what becomes, in a crash, of something that was not synced.
type Fate uint8

const (
	Lost Fate = iota // as of the last sync
	Kept             // all of it is there
	Torn             // some of it: see CrashOptions
)

// CrashOptions says what a crash leaves of unsynced things. The zero value loses all of them, which is the harshest case
// for what was promised; the others catch code that takes a remnant for the whole.
type CrashOptions struct {
	// Data is the fate of unsynced writes. Torn keeps them all and cuts the last one in its middle; with Rand each write
	// is kept or lost by itself, and the last one kept is cut at a random place.
	Data Fate
	// Entries is the fate of unsynced names: new ones, removals, renames. Torn needs Rand: each name by itself.
	Entries Fate
	Rand    *rand.Rand
}

// Crash returns the file system as it would be found after a loss of power now. The receiver goes on unharmed. Locks
// are free in the result, and everything in it counts as synced.
func (m *Mem) Crash(o CrashOptions) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := crasher{o: o, done: map[*memNode]*memNode{}}
	r := &Mem{root: c.node(m.root), locks: map[string]bool{}, limit: m.limit}
	for _, n := range c.done {
		r.used += n.data.allocated()
	}
	return r
}

// crasher copies a tree. A node that two directories hold (a rename of which one side was lost) stays one node.
type crasher struct {
	o    CrashOptions
	done map[*memNode]*memNode
}

func (c *crasher) node(n *memNode) *memNode {
	if r := c.done[n]; r != nil {
		return r
	}
	r := &memNode{dir: n.dir}
	c.done[n] = r
	if !n.dir {
		r.data = c.data(n)
		r.synced = r.data.clone()
		return r
	}
	r.children = map[string]*memNode{}
	names := c.names(n)
	for _, name := range slices.Sorted(maps.Keys(names)) { // sorted, so that a seeded Rand repeats
		r.children[name] = c.node(names[name])
	}
	r.durable = maps.Clone(r.children)
	return r
}

func (c *crasher) names(n *memNode) map[string]*memNode {
	switch c.o.Entries {
	case Kept:
		return n.children
	case Lost:
		return n.durable
	}
	all := maps.Clone(n.durable)
	maps.Copy(all, n.children)
	names := map[string]*memNode{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		side := n.durable
		if c.coin() {
			side = n.children
		}
		if child := side[name]; child != nil {
			names[name] = child
		}
	}
	return names
}

func (c *crasher) data(n *memNode) memBytes {
	switch c.o.Data {
	case Kept:
		return n.data.clone()
	case Lost:
		return n.synced.clone()
	}
	kept := n.pending
	if c.o.Rand != nil {
		kept = slices.DeleteFunc(slices.Clone(kept), func(memWrite) bool { return c.coin() })
	}
	b := n.synced.clone()
	for i, w := range kept {
		if i == len(kept)-1 && w.kind == memStore {
			w.p = w.p[:c.cut(len(w.p))]
			if len(w.p) == 0 {
				continue
			}
		}
		b.apply(w)
	}
	return b
}

func (c *crasher) coin() bool { return c.o.Rand != nil && c.o.Rand.IntN(2) == 0 }

func (c *crasher) cut(n int) int {
	if c.o.Rand == nil {
		return n / 2
	}
	return c.o.Rand.IntN(n + 1)
}
