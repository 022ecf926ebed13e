package nbd

import (
	"net"
	"sync"
	"time"
)

const (
	gatherLimit = 16 << 10 // packets up to here are copied together
	gatherSize  = 64 << 10
	queueLimit  = 512 << 10 // bytes that wait for the writer: what was just read is still in the processor's cache then
	writePiece  = 1 << 20   // bytes that must go out within one write timeout
)

// packet is one message to be sent, in up to two pieces. They may not change until sent is called.
type packet struct {
	head, body []byte
	owner      sentinel
}

// sentinel learns that its packet was sent, or that it never will be.
type sentinel interface{ sent(error) }

// outbox sends packets in order. It has no goroutine: who puts a packet while nobody writes becomes the writer, of what
// others put meanwhile too, so that packets that come faster than the peer takes them leave many in one system call.
type outbox struct {
	conn    net.Conn
	timeout time.Duration
	plain   bool        // conn takes vectors
	failed  func(error) // called once, with the first error

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // signalled when the writer takes the queue
	queue   []packet
	queued  int // bytes
	spare   []packet
	writing bool
	err     error

	// These belong to the writer.
	gather   []byte
	vector   net.Buffers
	deadline time.Time
}

func newOutbox(conn net.Conn, timeout time.Duration, failed func(error)) *outbox {
	o := &outbox{conn: conn, timeout: timeout, failed: failed}
	o.room.L = &o.mu
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		o.plain = true
	}
	return o
}

// put takes a packet and sends it, or leaves it to the present writer when there is room in the queue.
func (o *outbox) put(p packet) {
	o.mu.Lock()
	for o.writing && o.queued > queueLimit {
		o.room.Wait()
	}
	o.add(p)
	o.drain()
}

func (o *outbox) add(p packet) {
	o.queue = append(o.queue, p)
	o.queued += len(p.head) + len(p.body)
}

// hold takes a packet that need not leave before the next put or flush.
func (o *outbox) hold(p packet) {
	o.mu.Lock()
	o.add(p)
	o.mu.Unlock()
}

// flush sends what was held.
func (o *outbox) flush() {
	o.mu.Lock()
	o.drain()
}

// drain is called with the lock held and gives it back.
func (o *outbox) drain() {
	if o.writing {
		o.mu.Unlock()
		return
	}
	o.writing = true
	for len(o.queue) > 0 {
		batch := o.queue
		o.queue, o.spare, o.queued = o.spare[:0], nil, 0
		o.room.Broadcast()
		err := o.err
		o.mu.Unlock()
		o.send(batch, err)
		o.mu.Lock()
		o.spare = batch[:0]
	}
	o.writing = false
	o.room.Broadcast()
	o.mu.Unlock()
}

func (o *outbox) send(batch []packet, err error) {
	if err == nil {
		if err = o.write(batch); err != nil {
			o.mu.Lock()
			o.err = err
			o.mu.Unlock()
			o.failed(err)
		}
	}
	for i := range batch {
		batch[i].owner.sent(err)
	}
	clear(batch)
}

// write sends a batch: small packets copied together, large ones from where they lie.
func (o *outbox) write(batch []packet) error {
	if len(batch) == 1 && batch[0].body == nil {
		return o.writeAll(batch[0].head)
	}
	vec := o.vector[:0]
	for len(batch) > 0 {
		n := 0
		if vec, n = o.pack(vec, batch); n == 0 {
			vec = append(vec, batch[0].head)
			if batch[0].body != nil {
				vec = append(vec, batch[0].body)
			}
			n = 1
		}
		batch = batch[n:]
	}
	o.vector = vec
	err := o.writeVector(vec)
	clear(o.vector[:cap(o.vector)])
	o.gather = o.gather[:0]
	return err
}

// pack copies the small packets at the front of a batch into one piece, as far as there is room, and says how many.
func (o *outbox) pack(vec net.Buffers, batch []packet) (net.Buffers, int) {
	if o.gather == nil {
		o.gather = make([]byte, 0, gatherSize)
	}
	from, n := len(o.gather), 0
	for _, p := range batch {
		size := len(p.head) + len(p.body)
		if size > gatherLimit || len(o.gather)+size > gatherSize {
			break
		}
		o.gather = append(append(o.gather, p.head...), p.body...)
		n++
	}
	if n > 0 {
		vec = append(vec, o.gather[from:])
	}
	return vec, n
}

func (o *outbox) writeVector(vec net.Buffers) error {
	if !o.plain {
		for _, b := range vec {
			if err := o.writeAll(b); err != nil {
				return err
			}
		}
		return nil
	}
	for len(vec) > 0 {
		n, size := 0, 0
		for n < len(vec) && (n == 0 || size+len(vec[n]) <= writePiece) {
			size += len(vec[n])
			n++
		}
		part := vec[:n]
		vec = vec[n:]
		if size > writePiece {
			if err := o.writeAll(part[0]); err != nil {
				return err
			}
			continue
		}
		if err := o.extend(); err != nil {
			return err
		}
		if _, err := part.WriteTo(o.conn); err != nil {
			return err
		}
	}
	return nil
}

func (o *outbox) writeAll(b []byte) error {
	for len(b) > 0 {
		if err := o.extend(); err != nil {
			return err
		}
		n, err := o.conn.Write(b[:min(len(b), writePiece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// extend gives the peer at least half of the timeout, and at most all of it, for the next piece. Setting a deadline costs
// as much as a small write, so that it is done seldom.
func (o *outbox) extend() error {
	now := time.Now()
	if o.deadline.Sub(now) > o.timeout/2 {
		return nil
	}
	o.deadline = now.Add(o.timeout)
	return o.conn.SetWriteDeadline(o.deadline)
}
