package uplink

import (
	"container/list"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// Limits of what a session remembers of the tree that it was shown.
const (
	maxKnownChildren = 1 << 20  // children of known nodes, chunks included in a restore
	nodeCacheBytes   = 24 << 20 // records
)

// knownNode is a node that the run was shown.
type knownNode struct {
	d      digest.Digest
	parent *knownNode // nil for a root
	index  uint32     // among the parent's children; of a root: 0 root, 1 side
	count  uint32     // of its children
	nodes  []digest.Digest
	chunks []uint64 // of a restore, or of a disk image: the first bytes of the chunks' digests
	elem   *list.Element
}

// root returns 0 or 1: whether the node hangs on the root or on the side stream.
func (k *knownNode) root() int {
	for k.parent != nil {
		k = k.parent
	}
	return int(k.index & 1)
}

// place is where a node or chunk was shown.
type place struct {
	parent *knownNode // nil for a root
	index  uint32
}

// nodeTree remembers which nodes were shown and where, so that their children can be asked for: the latest used ones, and
// always the ancestors of what was asked for last. Not safe for concurrent use.
type nodeTree struct {
	restore bool
	nodes   map[digest.Digest]*knownNode
	places  map[digest.Digest]place // of nodes
	chunks  map[uint64]place
	lru     *list.List // of *knownNode, the latest used first
	size    int        // children remembered
}

func newNodeTree(restore bool, roots ...digest.Digest) *nodeTree {
	t := &nodeTree{restore: restore, nodes: map[digest.Digest]*knownNode{}, places: map[digest.Digest]place{},
		chunks: map[uint64]place{}, lru: list.New()}
	for i, d := range roots {
		if !d.IsZero() {
			t.places[d] = place{index: uint32(i)}
		}
	}
	return t
}

func chunkKey(d digest.Digest) uint64 {
	return uint64(d[0]) | uint64(d[1])<<8 | uint64(d[2])<<16 | uint64(d[3])<<24 |
		uint64(d[4])<<32 | uint64(d[5])<<40 | uint64(d[6])<<48 | uint64(d[7])<<56
}

// add remembers a node that has arrived.
func (t *nodeTree) add(d digest.Digest, kind recipe.Kind, children []recipe.Child) {
	if k := t.nodes[d]; k != nil {
		t.touch(k)
		return
	}
	at := t.places[d] // known, for nobody sends what hangs nowhere
	k := &knownNode{d: d, parent: at.parent, index: at.index, count: uint32(len(children))}
	for i := range children {
		c := &children[i]
		switch {
		case c.Node:
			k.nodes = append(k.nodes, c.Digest)
			t.places[c.Digest] = place{k, uint32(i)}
		case t.restore || kind == recipe.ImageLeaf:
			k.chunks = append(k.chunks, chunkKey(c.Digest))
			t.chunks[chunkKey(c.Digest)] = place{k, uint32(i)}
		}
	}
	t.nodes[d] = k
	k.elem = t.lru.PushFront(k)
	t.size += k.weight()
	for t.size > maxKnownChildren && t.lru.Len() > 64 {
		t.forget(t.lru.Back().Value.(*knownNode))
	}
}

func (k *knownNode) weight() int { return 2 + len(k.nodes) + len(k.chunks) }

// touch marks a node as used, and its ancestors, which will be needed after it.
func (t *nodeTree) touch(k *knownNode) {
	for ; k != nil; k = k.parent {
		t.lru.MoveToFront(k.elem)
	}
}

func (t *nodeTree) forget(k *knownNode) {
	t.lru.Remove(k.elem)
	delete(t.nodes, k.d)
	for _, d := range k.nodes {
		if t.places[d].parent == k {
			delete(t.places, d)
		}
	}
	for _, c := range k.chunks {
		if t.chunks[c].parent == k {
			delete(t.chunks, c)
		}
	}
	t.size -= k.weight()
}

// ask returns how to ask for a node: itself where it was shown before, else as its parent's child.
func (t *nodeTree) ask(d digest.Digest) (item sms.NodeItem, root int, ok bool) {
	at, placed := t.places[d]
	if k := t.nodes[d]; k != nil {
		t.touch(k)
		return sms.NodeItem{Parent: d, First: sms.Self, Count: 1}, k.root(), true
	}
	if !placed {
		return item, 0, false
	}
	item = sms.NodeItem{First: at.index, Count: 1}
	if at.parent == nil {
		return item, int(at.index & 1), true
	}
	t.touch(at.parent)
	item.Parent = at.parent.d
	return item, at.parent.root(), true
}

// following returns what comes after a node in the order of the tree, the nodes below it left out where below says so:
// the later children of its parent, of its parent's parent and so on.
func (t *nodeTree) following(d digest.Digest, below bool) (items []sms.NodeItem) {
	if k := t.nodes[d]; k != nil && below && len(k.nodes) > 0 {
		items = append(items, sms.NodeItem{Parent: d, Count: k.count})
	}
	for at := t.places[d]; at.parent != nil; {
		if rest := at.parent.count - at.index - 1; rest > 0 {
			items = append(items, sms.NodeItem{Parent: at.parent.d, First: at.index + 1, Count: rest})
		}
		at = place{at.parent.parent, at.parent.index}
	}
	return items
}
