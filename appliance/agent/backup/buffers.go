package backup

import (
	"context"
	"runtime"

	"coffer/dedup/chunk"
)

const (
	// batchBytes is how many bytes of small files make a batch.
	batchBytes = 1 << 20
	// batchItems is the most entries of a batch.
	batchItems = 512
	// smallBuffer holds a batch of small files: the last one may be almost a SmallFile beyond batchBytes.
	smallBuffer = batchBytes + chunk.SmallFile + 64<<10
	// largeBuffer holds most chunks of large files. The cutter takes new memory for a longer one, which is not kept.
	largeBuffer = 2 << 20
)

func processors() int { return max(1, min(runtime.GOMAXPROCS(0), 8)) }

// buffers bounds the plain bytes that a run holds. Memory is taken when it is first needed; what is never written to is
// never resident.
type buffers struct {
	small, large *pool
}

func newBuffers(readers, senders int) *buffers {
	return &buffers{small: newPool(smallBuffer, readers+2*senders+2), large: newPool(largeBuffer, readers+senders+2)}
}

// pool is a number of buffers of one size.
type pool struct {
	size   int
	tokens chan []byte // nil for one that was not made yet
}

func newPool(size, n int) *pool {
	p := &pool{size: size, tokens: make(chan []byte, n)}
	for range n {
		p.tokens <- nil
	}
	return p
}

// get waits for a buffer; its length is 0.
func (p *pool) get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p.tokens:
		if b == nil {
			b = make([]byte, 0, p.size)
		}
		return b[:0], nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// put gives a buffer back. One that has become something else is left to the collector.
func (p *pool) put(b []byte) {
	if cap(b) != p.size {
		b = nil
	}
	p.tokens <- b[:0]
}
