package sms

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Buffer is a message's bytes in memory that is used again. Who holds a reference may read B; the last Release gives the
// memory back.
type Buffer struct {
	B    []byte
	refs atomic.Int32
	size int8 // index into pools, -1 = not pooled
}

const (
	minPooled = 8  // 256 bytes
	maxPooled = 24 // 16 MiB: a longest frame needs a little over 8 MiB
)

// pools hold free buffers of 1<<(minPooled+i) bytes. They are the only shared state of the package, and hold no meaning.
var pools [maxPooled - minPooled + 1]sync.Pool

// NewBuffer returns an empty buffer with room for n bytes and one reference.
func NewBuffer(n int) *Buffer {
	i := max(bits.Len(uint(max(n, 1)-1)), minPooled) - minPooled
	if i >= len(pools) {
		b := &Buffer{B: make([]byte, 0, n), size: -1}
		b.refs.Store(1)
		return b
	}
	b, _ := pools[i].Get().(*Buffer)
	if b == nil {
		b = &Buffer{B: make([]byte, 0, 1<<(i+minPooled)), size: int8(i)}
	}
	b.B = b.B[:0]
	b.refs.Store(1)
	return b
}

// encode makes a buffer that holds m.
func encode(m Message, hint int) *Buffer {
	b := NewBuffer(hint)
	b.set(m.append(b.B))
	return b
}

// set puts p, an append to B, into the buffer. Where the append had to grow, the new memory is not pooled.
func (b *Buffer) set(p []byte) {
	if cap(p) != cap(b.B) {
		b.size = -1
	}
	b.B = p
}

// grow makes room for n bytes in all, moving to a larger pooled memory where needed.
func (b *Buffer) grow(n int) *Buffer {
	if n <= cap(b.B) {
		return b
	}
	l := NewBuffer(n)
	l.B = append(l.B, b.B...)
	b.Release()
	return l
}

// Retain adds a reference.
func (b *Buffer) Retain() *Buffer {
	b.refs.Add(1)
	return b
}

// Release gives a reference back. B must not be used afterwards.
func (b *Buffer) Release() {
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("sms: buffer released too often")
	case n == 0 && b.size >= 0:
		pools[b.size].Put(b)
	}
}
