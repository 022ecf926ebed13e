package sms

import (
	"bufio"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
)

// wireBuffer is the size of the buffers below TLS: a batch of packets leaves with one system call.
const wireBuffer = 128 << 10

// Buffered wraps a TCP connection so that the many small writes and reads of a TLS connection on top of it become few
// large ones. A Read flushes first, so that a TLS handshake works as usual, until a Conn takes the connection over and
// flushes it itself.
func Buffered(nc net.Conn) net.Conn {
	return &bufferedConn{Conn: nc, r: bufio.NewReaderSize(nc, wireBuffer), w: bufio.NewWriterSize(nc, wireBuffer)}
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
	// owned says that a Conn flushes. INVARIANT: from then on Read never writes: two peers whose readers wait for each
	// other's writes would stand still.
	owned atomic.Bool

	mu sync.Mutex
	// mu guards w and through.
	w       *bufio.Writer
	through bool
}

func (b *bufferedConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.w.Write(p)
	if err == nil && b.through {
		err = b.flushLocked()
	}
	return n, err
}

// WriteThrough makes a connection that Buffered returned write at once whatever it is given: for a protocol that does not
// flush. Nothing else may use the connection meanwhile. Other connections stay as they are.
func WriteThrough(nc net.Conn) error {
	b, ok := nc.(*bufferedConn)
	if !ok {
		return nil
	}
	b.owned.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.through = true
	return b.flushLocked()
}

func (b *bufferedConn) Read(p []byte) (int, error) {
	if !b.owned.Load() && b.r.Buffered() == 0 {
		if err := b.Flush(); err != nil {
			return 0, err
		}
	}
	return b.r.Read(p)
}

func (b *bufferedConn) flushLocked() error {
	if b.w.Buffered() == 0 {
		return nil
	}
	return b.w.Flush()
}

// Flush writes what is buffered.
func (b *bufferedConn) Flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flushLocked()
}

// Close writes what is buffered, for it may be the alert that ends a TLS connection, and closes.
func (b *bufferedConn) Close() error {
	if b.mu.TryLock() {
		_ = b.flushLocked()
		b.mu.Unlock()
	}
	return b.Conn.Close()
}

// own takes over what lies below nc, and returns how to flush it.
func own(nc net.Conn) func() error {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if b, ok := nc.(*bufferedConn); ok {
		b.owned.Store(true)
		return b.Flush
	}
	return func() error { return nil }
}
