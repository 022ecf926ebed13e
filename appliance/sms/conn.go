package sms

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Side says which end of a connection one is.
type Side uint8

// The sides.
const (
	AgentSide     Side = 0 // dials; opens streams with odd ids
	ApplianceSide Side = 1 // listens; opens streams with even ids
)

// Defaults of Options.
const (
	DefaultKeepAlive  = 15 * time.Second
	DefaultDeadAfter  = 45 * time.Second
	DefaultMaxStreams = 64

	// farewell is how long a connection that ends may take to tell the peer why.
	farewell = 2 * time.Second
)

// Options of a Conn; the zero value works.
type Options struct {
	// Budget is what the data windows grow into; share it between connections. Nil means one of its own.
	Budget *Budget
	// KeepAlive is after how long a silence a ping is sent. DeadAfter is after how long a silence, or a write that does not
	// come through, the peer counts as dead.
	KeepAlive, DeadAfter time.Duration
	// MaxStreams is how many streams the peer may have open at a time.
	MaxStreams int
}

func (o Options) withDefaults() Options {
	if o.Budget == nil {
		o.Budget = NewBudget(MinBudget)
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = DefaultKeepAlive
	}
	if o.DeadAfter <= 0 {
		o.DeadAfter = DefaultDeadAfter
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = DefaultMaxStreams
	}
	return o
}

// Conn is one connection with its streams. Methods may be called from many goroutines.
//
// Two goroutines belong to a Conn while it lives: one reads and never waits for a consumer (credits bound what it has to
// keep), one writes what the streams have queued: classes in order, streams of a class in turn. A third watches the time.
type Conn struct {
	nc    net.Conn
	flush func() error
	side  Side
	opts  Options

	main     *Stream
	accept   chan *Stream
	wake     signal // for the writer
	done     chan struct{}
	ended    sync.WaitGroup
	read     chan struct{} // closed when the reader is done
	lastRecv atomic.Int64  // unix nanoseconds
	rtt      atomic.Int64  // nanoseconds, 0 = not yet measured

	mu sync.Mutex
	// mu guards all below, and the state of the streams.
	err      error
	tell     *goAway // what the peer is told in the end
	streams  map[uint32]*Stream
	nextID   uint32 // of the next stream that this side opens
	lastPeer uint32 // highest stream id that the peer has opened
	peerOpen int    // streams that the peer has open
	control  []outgoing
	rings    [classes]ring
}

// NewConn starts a connection over nc, whose handshake is done. It sends the preamble at once. The caller must Close it.
func NewConn(nc net.Conn, side Side, opts Options) *Conn {
	c := &Conn{
		nc: nc, flush: own(nc), side: side, opts: opts.withDefaults(),
		wake: newSignal(), done: make(chan struct{}), read: make(chan struct{}),
		streams: map[uint32]*Stream{}, nextID: 1 + uint32(side),
	}
	c.accept = make(chan *Stream, c.opts.MaxStreams)
	c.main = newStream(c, 0, StreamMain)
	c.streams[0] = c.main
	c.lastRecv.Store(time.Now().UnixNano())
	c.mu.Lock()
	c.pingLocked()
	c.mu.Unlock()
	c.ended.Go(c.readLoop)
	c.ended.Go(c.writeLoop)
	c.ended.Go(c.watch)
	return c
}

// Main returns stream 0, on which the connection begins.
func (c *Conn) Main() *Stream { return c.main }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Done is closed when the connection is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err tells why the connection is over; nil while it is not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// RTT returns the least round trip measured so far, 0 before the first.
func (c *Conn) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Open opens a stream to the peer.
func (c *Conn) Open(kind StreamKind) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if c.nextID >= 1<<32-2 {
		return nil, Errorf(CodeBusy, "open a stream: the connection has used up all stream ids")
	}
	s := newStream(c, c.nextID, kind)
	s.ours = true
	c.nextID += 2
	c.streams[s.id] = s
	c.controlLocked(s, &open{kind})
	return s, nil
}

// Accept returns the next stream that the peer has opened.
func (c *Conn) Accept(ctx context.Context) (*Stream, error) {
	select {
	case s := <-c.accept:
		return s, nil
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close tells the peer why, ends the connection and waits for its goroutines.
func (c *Conn) Close(code Code, reason string) {
	c.fail(&Error{Code: code, Message: reason}, true)
	c.ended.Wait()
}

// fail ends the connection; the first cause stays. tell says whether the peer gets to know it.
func (c *Conn) fail(err error, tell bool) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	if e, ok := errors.AsType[*Error](err); ok && tell {
		c.tell = &goAway{e.Code, e.Message}
	}
	var back int64
	for _, s := range c.streams {
		back += s.endLocked(err)
	}
	close(c.done)
	c.mu.Unlock()
	c.opts.Budget.giveBack(back)
	soon := time.Now().Add(farewell)
	_ = c.nc.SetWriteDeadline(soon)
	_ = c.nc.SetReadDeadline(soon)
}

// watch sends pings and notices a dead peer.
func (c *Conn) watch() {
	tick := time.NewTicker(max(c.opts.KeepAlive/2, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		silence := time.Since(time.Unix(0, c.lastRecv.Load()))
		switch {
		case silence >= c.opts.DeadAfter:
			c.fail(Errorf(CodeTimeout, "the peer has been silent for %v", silence.Round(time.Millisecond)), true)
		case silence >= c.opts.KeepAlive:
			c.mu.Lock()
			c.pingLocked()
			c.mu.Unlock()
		}
	}
}

func (c *Conn) pingLocked() { c.controlLocked(c.main, &ping{uint64(time.Now().UnixNano())}) }

// readLoop takes packets until the connection ends. After a fault of the peer's it reads on, to nowhere, until the peer
// has got to know why: to close with unread bytes would take the reason away from it.
func (c *Conn) readLoop() {
	defer close(c.read)
	br := bufio.NewReaderSize(receiver{c}, 4<<10)
	err := readPreamble(br)
	for err == nil {
		err = c.readPacket(br)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		c.fail(fmt.Errorf("connection lost: %w", err), false)
		return
	}
	c.fail(e, !e.Remote)
	if !e.Remote {
		_, _ = io.Copy(io.Discard, c.nc)
	}
}

// receiver reads from the connection and notes when something came.
type receiver struct{ c *Conn }

func (r receiver) Read(p []byte) (int, error) {
	n, err := r.c.nc.Read(p)
	if n > 0 {
		r.c.lastRecv.Store(time.Now().UnixNano())
	}
	return n, err
}

// signal wakes one waiter; it remembers one wake.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
