//go:build linux

package fusefs

import "sync"

// rootID is the kernel's number of the root. Part of the FUSE protocol.
const rootID = 1

// inode is a node that the kernel knows by a number, and the name by which it learned of it.
type inode struct {
	num    uint64
	id     ID
	node   Node
	parent uint64
	name   string
	refs   uint64 // lookups that the kernel has not forgotten; guarded by table.mu
}

// table keeps the inodes that the kernel holds: as long as it may name a number, the node stays.
type table struct {
	limit int           // more inodes than this are too many
	full  chan struct{} // gets a token when there are

	mu    sync.RWMutex // guards what follows
	byNum map[uint64]*inode
	byID  map[ID]*inode
	last  uint64
	queue []uint64 // numbers in the order of their making, some of them forgotten
}

func newTable(root Node, limit int) *table {
	r := &inode{num: rootID, id: root.ID(), node: root, refs: 1}
	return &table{limit: limit, full: make(chan struct{}, 1), last: rootID,
		byNum: map[uint64]*inode{rootID: r}, byID: map[ID]*inode{r.id: r}}
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

// number returns the number of a node that the kernel holds, 0 for others.
func (t *table) number(id ID) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if in := t.byID[id]; in != nil {
		return in.num
	}
	return 0
}

// add counts a lookup of a node by a name and returns its number. A node with the ID of one that the kernel holds already
// is that one, with the caches it has.
func (t *table) add(n Node, parent uint64, name string) uint64 {
	id := n.ID()
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byID[id]
	if in == nil {
		t.last++
		in = &inode{num: t.last, id: id, node: n, parent: parent, name: name}
		t.byNum[in.num], t.byID[id] = in, in
		t.enqueue(in)
	}
	in.refs++
	return in.num
}

// enqueue notes an inode as the newest one. Directories are left out: one that is dropped while somebody stands in it has
// no path any more.
func (t *table) enqueue(in *inode) {
	if _, dir := in.node.(Dir); dir {
		return
	}
	if len(t.queue) == cap(t.queue) {
		t.compact()
	}
	t.queue = append(t.queue, in.num)
	if len(t.byNum) > t.limit {
		select {
		case t.full <- struct{}{}:
		default:
		}
	}
}

// compact takes forgotten inodes out of the queue.
func (t *table) compact() {
	kept := t.queue[:0]
	for _, num := range t.queue {
		if t.byNum[num] != nil {
			kept = append(kept, num)
		}
	}
	t.queue = append(make([]uint64, 0, max(2*len(kept), 1024)), kept...)
}

// oldest takes up to n inodes off the queue that shall be dropped to come well below the limit; none if there are few.
func (t *table) oldest(n int) (old []inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	excess := len(t.byNum) - t.limit*7/8
	for len(t.queue) > 0 && len(old) < min(n, excess) {
		if in := t.byNum[t.queue[0]]; in != nil {
			old = append(old, *in)
		}
		t.queue = t.queue[1:]
	}
	return old
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
