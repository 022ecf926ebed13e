//go:build linux

package fusefs

import "sync"

// rootID is the kernel's number of the root. Part of the FUSE protocol.
const rootID = 1

// inode is a node that the kernel knows by a number.
type inode struct {
	num  uint64
	id   ID
	node Node
	refs uint64 // lookups that the kernel has not forgotten; guarded by table.mu
}

// table keeps the inodes that the kernel holds: as long as it may name a number, the node stays.
type table struct {
	mu    sync.RWMutex // guards what follows
	byNum map[uint64]*inode
	byID  map[ID]*inode
	last  uint64
}

func newTable(root Node) *table {
	r := &inode{num: rootID, id: root.ID(), node: root, refs: 1}
	return &table{byNum: map[uint64]*inode{rootID: r}, byID: map[ID]*inode{r.id: r}, last: rootID}
}

// get returns the node of a number, nil for one that the kernel should not know.
func (t *table) get(num uint64) Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if in := t.byNum[num]; in != nil {
		return in.node
	}
	return nil
}

// add counts a lookup of a node, giving it a number if it has none, and returns number and node. The node may be an older
// one with the same ID: it keeps its caches.
func (t *table) add(n Node) (uint64, Node) {
	id := n.ID()
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byID[id]
	if in == nil {
		t.last++
		in = &inode{num: t.last, id: id, node: n}
		t.byNum[in.num], t.byID[id] = in, in
	}
	in.refs++
	return in.num, in.node
}

// forget takes lookups back, and the number with the last of them. The root stays.
func (t *table) forget(num, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byNum[num]
	if in == nil || num == rootID {
		return
	}
	if in.refs > n {
		in.refs -= n
		return
	}
	delete(t.byNum, num)
	delete(t.byID, in.id)
}

// size tells how many inodes the kernel holds.
func (t *table) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byNum)
}
