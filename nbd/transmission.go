package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A read's reply is cut into chunks of this size where the client takes more than one.
	fragment = 2 << 20
	// Requests up to this size may be served by the reading goroutine itself, see pace.
	inlineLimit = 64 << 10
	payloadStep = 1 << 20 // bytes of a request's payload that must arrive within one timeout
)

// transmission serves the requests of one connection. One goroutine reads them. It serves short ones itself while the
// device answers from memory, so that a request costs no switch of goroutines; all others go to workers, at most
// MaxInFlight, made as they are needed. Replies leave through the outbox, in the order in which they are ready.
type transmission struct {
	s          *Server
	conn       net.Conn
	br         *bufio.Reader
	exp        *openExport
	structured bool
	status     bool // base:allocation was selected
	remote     net.Addr

	ctx    context.Context
	cancel context.CancelFunc
	out    *outbox
	mem    *share
	slots  chan struct{} // one element per request in flight: from its header to its reply's last byte
	work   chan *task
	idle   sync.WaitGroup // workers
	count  int            // workers; belongs to the reader
	held   bool           // replies wait in the outbox for more; belongs to the reader
	paces  [2]pace        // of reads and writes
	told   atomic.Int32   // failures logged

	mu        sync.Mutex // guards stopped and the order of read deadlines
	stopped   bool
	deadlined bool  // a read deadline is set; belongs to the reader
	err       error // first failure of the outbox; guarded by mu
}

func newTransmission(ctx context.Context, n *session, e *openExport) *transmission {
	t := &transmission{s: n.s, conn: n.conn, br: n.br, exp: e, structured: n.structured, remote: n.peer.Remote,
		status: n.contexts != nil && *n.contexts == e.asked, mem: n.s.memory.share(),
		slots: make(chan struct{}, n.s.o.MaxInFlight), work: make(chan *task)}
	t.ctx, t.cancel = context.WithCancel(ctx)
	t.out = newOutbox(n.conn, n.s.o.WriteTimeout, t.fail)
	return t
}

// pace remembers what the device took for the last requests of a kind. While it answers from memory, a switch to another
// goroutine costs more than the answer.
type pace struct{ mean atomic.Int64 } // nanoseconds, moving

const (
	paceStart = 200_000 // taken for slow until shown otherwise
	paceFast  = 40_000
	paceSlow  = 150_000 // one such answer did not come from memory: others may wait behind the next one
)

func (p *pace) fast() bool { return p.mean.Load() < paceFast }

func (p *pace) note(d time.Duration) {
	m := p.mean.Load()
	m += (int64(d) - m) / 8
	if d > paceSlow {
		m = max(m, paceStart)
	}
	p.mean.Store(m)
}

// run serves until the client leaves, breaks the protocol, is too slow, or the server stops. All its goroutines have
// ended when it returns.
func (t *transmission) run() error {
	for i := range t.paces {
		t.paces[i].mean.Store(paceStart)
	}
	err := t.receive()
	if err == nil {
		t.out.flush()
		for range cap(t.slots) {
			t.slots <- struct{}{} // all replies are out, or the connection failed
		}
	}
	if unsent := t.unsent(); unsent != nil { // it ended the reading, too
		err = &Error{Kind: kindOf(unsent), Op: "reply", Err: unsent}
	}
	t.cancel()
	_ = t.conn.Close() // the outcome of the connection is known
	close(t.work)
	t.idle.Wait()
	return err
}

func (t *transmission) unsent() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// receive reads requests; nil means that the client took its leave, or the server stops.
func (t *transmission) receive() error {
	for {
		r, err := t.next()
		if err != nil {
			return t.ending(err)
		}
		if r.RequestMagic != requestMagic {
			return &Error{Kind: KindProtocol, Op: "receive", Err: fmt.Errorf("wrong request magic %#x", r.RequestMagic)}
		}
		if command(r.Type) == cmdDisc {
			return nil
		}
		if err := t.take(r); err != nil {
			return t.ending(err)
		}
	}
}

// ending sorts out why reading ended.
func (t *transmission) ending(err error) error {
	t.mu.Lock()
	stopped := t.stopped
	t.mu.Unlock()
	var known *Error
	switch {
	case stopped && errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.As(err, &known):
		return err
	}
	return &Error{Kind: kindOf(err), Op: "receive", Err: err}
}

func kindOf(err error) Kind {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return KindTimeout
	}
	return KindDisconnected
}

// next waits for a request header. Between requests a client may be silent, within one it may not.
func (t *transmission) next() (request, error) {
	if t.br.Buffered() < requestHeaderSize {
		t.release()
		if t.br.Buffered() == 0 {
			if err := t.await(t.s.o.IdleTimeout); err != nil {
				return request{}, err
			}
			if _, err := t.br.Peek(1); err != nil {
				return request{}, err
			}
		}
		if t.br.Buffered() < requestHeaderSize {
			if err := t.await(t.s.o.WriteTimeout); err != nil {
				return request{}, err
			}
		}
	}
	b, err := t.br.Peek(requestHeaderSize)
	if err != nil {
		return request{}, err
	}
	r := decodeRequest(b)
	_, err = t.br.Discard(requestHeaderSize)
	return r, err
}

// await sets the time for the next bytes; 0 is forever.
func (t *transmission) await(d time.Duration) error {
	if d == 0 && !t.deadlined {
		return nil
	}
	var at time.Time
	if d != 0 {
		at = time.Now().Add(d)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return os.ErrDeadlineExceeded
	}
	t.deadlined = d != 0
	return t.conn.SetReadDeadline(at)
}

// stop ends the reading of requests; run finishes those in flight.
func (t *transmission) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	_ = t.conn.SetReadDeadline(time.Unix(1, 0)) // a connection that is gone needs no stop
}

// fail is called by the outbox: nothing can be sent any more.
func (t *transmission) fail(err error) {
	t.mu.Lock()
	t.err = err
	t.mu.Unlock()
	t.cancel()
	_ = t.conn.Close() // wakes the reader
}

// take checks a request, reads its payload and has it served.
func (t *transmission) take(r request) error {
	if err := t.slot(); err != nil {
		return err
	}
	k := newTask(t, r)
	k.refusal = t.check(r)
	if command(r.Type) == cmdWrite {
		if err := t.payload(k); err != nil {
			return err
		}
	}
	if k.refusal != 0 || t.inline(r) {
		k.yield = t.release
		k.serve(t.out.hold)
		t.held = true
		return nil
	}
	return t.delegate(k)
}

// slot waits until fewer than MaxInFlight requests are in flight.
func (t *transmission) slot() error {
	select {
	case t.slots <- struct{}{}:
		return nil
	default:
	}
	t.release()
	select {
	case t.slots <- struct{}{}:
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// release sends the replies that the reader held back. INVARIANT: the reader calls it before it waits for anything.
func (t *transmission) release() {
	if t.held {
		t.held = false
		t.out.flush()
	}
}

func (t *transmission) inline(r request) bool {
	switch command(r.Type) {
	case cmdRead, cmdWrite:
		return r.Length <= inlineLimit && t.paces[r.Type].fast() && r.CommandFlags&cmdFlagFUA == 0
	}
	return false
}

func (t *transmission) delegate(k *task) error {
	t.release()
	select {
	case t.work <- k:
		return nil
	default:
	}
	if t.count < cap(t.slots) {
		t.count++
		t.idle.Add(1)
		go t.worker(k)
		return nil
	}
	select {
	case t.work <- k:
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

func (t *transmission) worker(k *task) {
	defer t.idle.Done()
	k.serve(t.out.put)
	for k := range t.work {
		k.serve(t.out.put)
	}
}

// payload reads what follows a write's header, or reads past it when the request is refused.
func (t *transmission) payload(k *task) error {
	n := int64(k.r.Length)
	if k.refusal != 0 {
		if n > 2*int64(t.s.o.MaxRequest) {
			return &Error{Kind: KindProtocol, Op: "receive", Err: fmt.Errorf("a write of %d bytes", n)}
		}
		for n > 0 {
			d, err := t.arriving(min(n, payloadStep), func(d int64) (int64, error) { return io.CopyN(io.Discard, t.br, d) })
			if err != nil {
				return err
			}
			n -= d
		}
		return nil
	}
	b, err := t.mem.get(t.ctx, int(n), t.release)
	if err != nil {
		return err
	}
	k.buf = b
	for p := b.data(int(n)); len(p) > 0; {
		d, err := t.arriving(min(int64(len(p)), payloadStep), func(d int64) (int64, error) {
			m, err := io.ReadFull(t.br, p[:d])
			return int64(m), err
		})
		if err != nil {
			t.mem.put(b)
			k.buf = nil
			return err
		}
		p = p[d:]
	}
	return nil
}

// arriving reads n bytes of a begun request.
func (t *transmission) arriving(n int64, read func(int64) (int64, error)) (int64, error) {
	if int64(t.br.Buffered()) < n {
		t.release()
		if err := t.await(t.s.o.WriteTimeout); err != nil {
			return 0, err
		}
	}
	return read(n)
}
