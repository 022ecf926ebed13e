package dedup

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// frameOverhead is what a cached frame costs beside its bytes: list element, map slot, entry.
const frameOverhead = 256

// frameCache keeps decoded frames within a byte budget, least recently used out first. Several callers of one frame
// wait for one load. The bytes it returns are shared and never written again: they stay valid after eviction.
type frameCache struct {
	budget int64
	grown  func(bytes int64) // may be nil; see Options.FramesHeld

	mu     sync.Mutex
	told   int64                // guarded by mu: the last bytes that grown was given
	m      map[Loc]*cachedFrame // guarded by mu
	lru    *list.List           // guarded by mu: *cachedFrame that are loaded, most recent in front
	bytes  int64                // guarded by mu
	hits   uint64               // guarded by mu
	misses uint64               // guarded by mu
}

// cachedFrame is being loaded until done is closed; plain and err are written before.
type cachedFrame struct {
	loc   Loc
	done  chan struct{}
	plain []byte
	err   error
	elem  *list.Element // guarded by frameCache.mu
}

func newFrameCache(budget int64) *frameCache {
	return &frameCache{budget: budget, m: make(map[Loc]*cachedFrame), lru: list.New()}
}

// get returns the frame at loc, by load when it is not cached. An error is not cached. When the load that a caller
// waits for ends by the cancellation of somebody else, the caller loads by itself.
func (c *frameCache) get(ctx context.Context, loc Loc, load func(context.Context) ([]byte, error)) ([]byte, error) {
	for {
		f, mine := c.claim(loc)
		if mine {
			f.plain, f.err = load(ctx)
			c.settle(f)
			return f.plain, f.err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.err == nil || ctx.Err() != nil || !isCancel(f.err) {
			return f.plain, f.err
		}
	}
}

func isCancel(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// claim returns the entry of loc; mine when the caller has to load it.
func (c *frameCache) claim(loc Loc) (f *cachedFrame, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.m[loc]; ok {
		c.hits++
		if f.elem != nil {
			c.lru.MoveToFront(f.elem)
		}
		return f, false
	}
	c.misses++
	f = &cachedFrame{loc: loc, done: make(chan struct{})}
	c.m[loc] = f
	return f, true
}

func (c *frameCache) settle(f *cachedFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.err != nil {
		delete(c.m, f.loc)
	} else {
		f.elem = c.lru.PushFront(f)
		c.bytes += f.cost()
		for c.bytes > c.budget && c.lru.Len() > 1 {
			c.drop(c.lru.Back().Value.(*cachedFrame))
		}
		c.tell()
	}
	close(f.done)
}

// tellStep is by how many bytes the cache grows or shrinks until it is told.
const tellStep = 16 << 20

// tell needs mu held, so that what is told is in order.
func (c *frameCache) tell() {
	if c.grown != nil && max(c.bytes-c.told, c.told-c.bytes) >= tellStep {
		c.told = c.bytes
		c.grown(c.bytes)
	}
}

// drop needs mu held.
func (c *frameCache) drop(f *cachedFrame) {
	c.lru.Remove(f.elem)
	delete(c.m, f.loc)
	c.bytes -= f.cost()
}

func (f *cachedFrame) cost() int64 { return int64(cap(f.plain)) + frameOverhead }

// clear drops all that is loaded.
func (c *frameCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.lru.Len() > 0 {
		c.drop(c.lru.Back().Value.(*cachedFrame))
	}
	if c.told != 0 {
		c.told = 0
		c.grown(0)
	}
}

// has reports whether a frame is cached or being loaded, without counting as a use.
func (c *frameCache) has(loc Loc) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.m[loc]
	return ok
}

func (c *frameCache) stats() (hits, misses uint64, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits, c.misses, c.bytes
}
