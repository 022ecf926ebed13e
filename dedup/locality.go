package dedup

import (
	"container/list"
	"context"
	"encoding/binary"
	"sync"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/keys"
)

// rowOverhead is what a row costs in the table of all loaded rows, in bytes, on average.
const rowOverhead = 28

// dirCache is the locality cache: the directories of containers that were hit, within a byte budget, and one table over
// all their rows, because the neighbours of a chunk come next. It answers from memory what would ask the index.
//
// INVARIANT: a row in the table lies in a loaded directory. That its container still lives is not known here: who
// relies on a row for longer than a read pins the container first.
type dirCache struct {
	budget int64
	blob   blob.Store
	ring   *keys.Ring
	// canonical tells whether the index names every row of a container.
	canonical func(container.ID) bool

	mu      sync.Mutex
	dirs    map[container.ID]*cachedDir // guarded by mu, as is all below
	byRow   map[uint64]rowRef           // first 8 bytes of a digest
	handles []*cachedDir                // by rowRef.handle; nil is free
	free    []uint32
	lru     *list.List // *cachedDir that are loaded, most recent in front
	bytes   int64

	hits, misses, loads, drops uint64
}

// rowRef is a row of a loaded directory, without a pointer so that the collector does not walk the table.
type rowRef struct{ handle, slot uint32 }

// cachedDir is being loaded until done is closed; dir and err are written before.
type cachedDir struct {
	id        container.ID
	handle    uint32
	done      chan struct{}
	dir       *container.Directory
	canonical bool // every row in the table is the place that the index names
	err       error
	elem      *list.Element
}

func newDirCache(b blob.Store, ring *keys.Ring, budget int64, canonical func(container.ID) bool) *dirCache {
	return &dirCache{budget: budget, blob: b, ring: ring, canonical: canonical, dirs: make(map[container.ID]*cachedDir),
		byRow: make(map[uint64]rowRef), lru: list.New()}
}

func rowKey(d *digest.Digest) uint64 { return binary.LittleEndian.Uint64(d[:8]) }

// found is a row of a loaded directory.
type found struct {
	dir       *container.Directory
	slot      uint32
	canonical bool
	damaged   bool // the index names a place, but it cannot be read; dir is nil
}

// find fills out[i] for those of ds that lie in loaded directories; out[i].dir stays nil for the others.
func (c *dirCache) find(ds []digest.Digest, out []found) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.fill(ds, out)
	c.hits += n
	c.misses += uint64(len(ds)) - n
}

// findAgain is find for digests that it did not find a moment ago. It does not count: see came.
func (c *dirCache) findAgain(ds []digest.Digest, out []found) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fill(ds, out)
}

// came takes note of digests that were misses, and are answered from directories after all.
func (c *dirCache) came(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := min(uint64(n), c.misses)
	c.hits += k
	c.misses -= k
}

// fill needs mu held. It returns how many it found.
func (c *dirCache) fill(ds []digest.Digest, out []found) (n uint64) {
	for i := range ds {
		out[i] = found{}
		ref, ok := c.byRow[rowKey(&ds[i])]
		if !ok {
			continue
		}
		e := c.handles[ref.handle]
		if e.dir.Digest(ref.slot) != ds[i] {
			continue
		}
		n++
		if c.lru.Front() != e.elem {
			c.lru.MoveToFront(e.elem)
		}
		out[i] = found{dir: e.dir, slot: ref.slot, canonical: e.canonical}
	}
	return n
}

// load returns a container's directory, from the blob store when it is not loaded.
func (c *dirCache) load(ctx context.Context, id container.ID) (*container.Directory, error) {
	for {
		e, mine := c.claim(id)
		if mine {
			e.canonical = c.canonical(id)
			e.dir, e.err = container.OpenDirectory(ctx, c.blob, id, c.ring)
			c.settle(e, nil)
			return e.dir, e.err
		}
		select {
		case <-e.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if e.err == nil || ctx.Err() != nil || !isCancel(e.err) {
			return e.dir, e.err
		}
	}
}

func (c *dirCache) claim(id container.ID) (e *cachedDir, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.dirs[id]; ok {
		if e.elem != nil {
			c.lru.MoveToFront(e.elem)
		}
		return e, false
	}
	e = &cachedDir{id: id, done: make(chan struct{})}
	c.dirs[id] = e
	return e, true
}

// put enters the directory of a container that was just indexed. skip are its rows whose digest the index has
// elsewhere: without them, all rows are canonical.
func (c *dirCache) put(dir *container.Directory, skip map[digest.Digest]struct{}) {
	e, mine := c.claim(dir.ID())
	if !mine {
		return
	}
	e.dir, e.canonical = dir, true
	c.settle(e, skip)
}

func (c *dirCache) settle(e *cachedDir, skip map[digest.Digest]struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(e.done)
	if e.err != nil {
		delete(c.dirs, e.id)
		return
	}
	c.loads++
	c.addRows(e, skip)
	e.elem = c.lru.PushFront(e)
	c.bytes += e.cost()
	for c.bytes > c.budget && c.lru.Len() > 1 {
		c.drop(c.lru.Back().Value.(*cachedDir))
	}
}

func (e *cachedDir) cost() int64 { return e.dir.MemSize() + int64(e.dir.Rows())*rowOverhead }

// addRows needs mu held.
func (c *dirCache) addRows(e *cachedDir, skip map[digest.Digest]struct{}) {
	if n := len(c.free); n > 0 {
		e.handle = c.free[n-1]
		c.free = c.free[:n-1]
		c.handles[e.handle] = e
	} else {
		e.handle = uint32(len(c.handles))
		c.handles = append(c.handles, e)
	}
	for slot := range uint32(e.dir.Rows()) {
		d := e.dir.Digest(slot)
		if _, ok := skip[d]; ok {
			continue
		}
		k := rowKey(&d)
		if old, ok := c.byRow[k]; ok && (old.handle == e.handle || c.handles[old.handle].canonical && !e.canonical) {
			continue // within a container the first row counts
		}
		c.byRow[k] = rowRef{e.handle, slot}
	}
}

// drop needs mu held.
func (c *dirCache) drop(e *cachedDir) {
	for slot := range uint32(e.dir.Rows()) {
		d := e.dir.Digest(slot)
		if k := rowKey(&d); c.byRow[k].handle == e.handle {
			delete(c.byRow, k)
		}
	}
	c.handles[e.handle] = nil
	c.free = append(c.free, e.handle)
	c.lru.Remove(e.elem)
	delete(c.dirs, e.id)
	c.bytes -= e.cost()
	c.drops++
}

// forget drops a container's directory, so that no row of it is found any more.
func (c *dirCache) forget(id container.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.dirs[id]; ok && e.elem != nil {
		c.drop(e)
	}
}
