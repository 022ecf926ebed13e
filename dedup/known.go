package dedup

import (
	"sync"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// nodeFacts is what a run remembers of a node that it stored, to check the nodes above it.
type nodeFacts struct {
	kind   recipe.Kind
	level  uint8
	totals recipe.Totals
}

// fits reports whether a node with these facts can be a child of parent, as child says.
func (f nodeFacts) fits(parent *recipe.Node, child recipe.Child) bool {
	if f.totals.Bytes != child.Length {
		return false
	}
	if parent.Kind.Inner() {
		return f.level+1 == parent.Level && family(f.kind) == family(parent.Kind)
	}
	return parent.Kind == recipe.DirLeaf && family(f.kind) != recipe.SideLeaf
}

// family returns the leaf kind of a kind's tree.
func family(k recipe.Kind) recipe.Kind {
	if k.Inner() {
		return k - 1
	}
	return k
}

// knownSet is the chunks and nodes that a run took and that the index does not name yet. Later they are found through
// the index as everything else, so that the set stays as small as the open containers.
type knownSet struct {
	mu    sync.RWMutex
	data  map[digest.Digest]uint32    // guarded by mu: plain length
	nodes map[digest.Digest]nodeFacts // guarded by mu
}

func newKnownSet() *knownSet {
	return &knownSet{data: make(map[digest.Digest]uint32), nodes: make(map[digest.Digest]nodeFacts)}
}

// has sets out[i] for every known digest and returns how many it did not know.
func (k *knownSet) has(ds []digest.Digest, out []bool) (unknown int) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for i := range ds {
		_, ok := k.data[ds[i]]
		if !ok {
			_, ok = k.nodes[ds[i]]
		}
		out[i] = ok
		if !ok {
			unknown++
		}
	}
	return unknown
}

// forget drops the rows of a container that the index names now.
func (k *knownSet) forget(dir *container.Directory) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for slot := range uint32(dir.Rows()) {
		if dir.Kind() == container.Data {
			delete(k.data, dir.Digest(slot))
		} else {
			delete(k.nodes, dir.Digest(slot))
		}
	}
}
