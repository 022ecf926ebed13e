package nbd

import (
	"context"
	"math/bits"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	// headRoom lies in front of a buffer's data, so that a reply's header and data are one piece in memory, and the data
	// begins at a cache line.
	headRoom    = 64
	minClass    = 12       // 4 KiB
	smallBuffer = 64 << 10 // buffers up to here do not count against a connection's share
)

// buffer holds one payload, or stands for one that is lent and has no memory of its own. Its size is a power of two: that is
// what counts against the budget.
type buffer struct {
	mem   []byte
	class int
}

func (b *buffer) data(n int) []byte { return b.mem[headRoom : headRoom+n] }

// framed is the header, which ends where the data begins, together with n bytes of data.
func (b *buffer) framed(head []byte, n int) []byte {
	at := headRoom - len(head)
	copy(b.mem[at:], head)
	return b.mem[at : headRoom+n]
}

// memory is what all connections of a server share: a budget of bytes in use, and buffers to use again.
type memory struct {
	limit  int64
	budget *semaphore.Weighted
	pools  [bits.UintSize]sync.Pool
}

func newMemory(limit int64) *memory {
	return &memory{limit: limit, budget: semaphore.NewWeighted(limit)}
}

// classOf is the binary logarithm of the buffer that holds n bytes.
func classOf(n int) int { return max(minClass, bits.Len(uint(max(n, 1)-1))) }

// share is one connection's part of the memory. It may take half of it.
type share struct {
	m     *memory
	large *semaphore.Weighted
}

func (m *memory) share() *share { return &share{m: m, large: semaphore.NewWeighted(m.limit / 2)} }

// get returns a buffer for n bytes when it has them of the budget.
func (s *share) get(ctx context.Context, n int, yield func()) (*buffer, error) {
	b, err := s.charge(ctx, n, yield)
	if err != nil {
		return nil, err
	}
	if pooled, ok := s.m.pools[b.class].Get().(*buffer); ok {
		return pooled, nil
	}
	b.mem = make([]byte, headRoom+1<<b.class)
	return b, nil
}

// charge waits for n bytes of the budget, for memory that is somebody else's; before it waits it calls yield. INVARIANT: whoever waits here holds no buffer that
// is not being sent, so that holders need nothing but their peer or device to go on, and peers have their time limits.
func (s *share) charge(ctx context.Context, n int, yield func()) (*buffer, error) {
	class := classOf(n)
	weight := int64(1) << class
	if weight > smallBuffer {
		if err := acquire(ctx, s.large, weight, yield); err != nil {
			return nil, err
		}
	}
	if err := acquire(ctx, s.m.budget, weight, yield); err != nil {
		if weight > smallBuffer {
			s.large.Release(weight)
		}
		return nil, err
	}
	return &buffer{class: class}, nil
}

func acquire(ctx context.Context, w *semaphore.Weighted, n int64, yield func()) error {
	if w.TryAcquire(n) {
		return nil
	}
	yield()
	return w.Acquire(ctx, n)
}

func (s *share) put(b *buffer) {
	weight := int64(1) << b.class
	if b.mem != nil {
		s.m.pools[b.class].Put(b)
	}
	s.m.budget.Release(weight)
	if weight > smallBuffer {
		s.large.Release(weight)
	}
}
