package sms

import (
	"bufio"
	"context"
	"io"
)

// Windows: how many bytes of a class the sender of a stream may have on the way or unread. Each packet counts with its
// payload and PacketCost. Part of the protocol.
const (
	OrderWindow = 1 << 20
	QueryWindow = 1 << 20
	DataWindow  = 512 << 10 // at the start; the receiver may enlarge it
	PacketCost  = 256

	// MaxWindow is as far as a data window grows: the longest message fits.
	MaxWindow = 9 << 20

	// sendQueue is how many bytes of a class wait on a stream to be written before Send blocks.
	sendQueue = 1 << 20
)

var windows = [classes]int64{ClassOrder: OrderWindow, ClassQuery: QueryWindow, ClassData: DataWindow}

func packetCost(n uint32) int64 { return int64(n) + PacketCost }

// messageCost is what a whole message costs: all its packets but the last are full.
func messageCost(n int64) int64 { return n + PacketCost*max((n+MaxPayload-1)/MaxPayload, 1) }

// Stream is one conversation on a connection. Each class flows by itself, in order, with its own credit: a consumer
// that does not read messages of one class stops only that class of that stream.
//
// Send and Recv may be called from many goroutines. Close must be called in the end.
type Stream struct {
	c    *Conn
	id   uint32
	kind StreamKind
	ours bool // opened by this side
	done chan struct{}

	// All below is guarded by c.mu.
	err     error // why the stream is over
	gone    bool  // over: neither side sends any more
	closing *closing
	sendSeq uint32
	recvSeq uint32
	in      [classes]inbox
	out     [classes]outbox
	extra   int64 // bytes taken from the budget
	giveUp  func() bool
}

// inbox is what has arrived of a class.
type inbox struct {
	ready signal
	queue []*Received

	// The message that is arriving; read only by the connection's reader.
	typ      Type
	buf      *Buffer
	rest     uint32
	cost     int64
	total    int64 // cost of the whole message
	loan     int64
	arriving bool
	asked    bool // for a loan

	// INVARIANT: window = avail (what the peer may send) + owed (consumed, not yet told) + what is held here.
	window, avail, owed int64
}

// outbox is what waits to be sent of a class.
type outbox struct {
	room   signal
	queue  []message
	bytes  int // in queue
	credit int64
	ringed bool // in the connection's ring
}

type message struct {
	typ Type
	buf *Buffer
	off int
}

// Received is a message that has arrived. Release it when its bytes are no longer used: that gives the sender credit.
type Received struct {
	Type    Type
	Payload []byte

	buf    *Buffer
	stream *Stream
	cost   int64
	loan   int64
}

func newStream(c *Conn, id uint32, kind StreamKind) *Stream {
	s := &Stream{c: c, id: id, kind: kind, done: make(chan struct{})}
	for class := ClassOrder; class < classes; class++ {
		w := windows[class]
		s.in[class] = inbox{ready: newSignal(), window: w, avail: w}
		s.out[class] = outbox{room: newSignal(), credit: w}
	}
	return s
}

// ID returns the stream's number on its connection.
func (s *Stream) ID() uint32 { return s.id }

// Kind says what the stream is for.
func (s *Stream) Kind() StreamKind { return s.kind }

// Conn returns the connection that the stream belongs to.
func (s *Stream) Conn() *Conn { return s.c }

// Done is closed when the stream is over, by either side. What has arrived can still be received.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Err tells why the stream is over: io.EOF after a good Close by the peer, nil while it is not over.
func (s *Stream) Err() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.err
}

// Send queues a message; it blocks while too much waits to be sent already.
func (s *Stream) Send(ctx context.Context, m Message) error {
	return s.SendBuffer(ctx, m.Type(), encode(m, 256))
}

// SendBuffer queues a message that is encoded already. It takes over one reference of b, also when it fails.
func (s *Stream) SendBuffer(ctx context.Context, t Type, b *Buffer) error {
	class := t.Class()
	if limit := specs[t].max; uint32(len(b.B)) > limit {
		b.Release()
		return Errorf(CodeProtocol, "send %v: it has %d bytes, limit %d", t, len(b.B), limit)
	}
	out := &s.out[class]
	for {
		s.c.mu.Lock()
		if s.err != nil || s.closing != nil {
			err := s.err
			s.c.mu.Unlock()
			b.Release()
			return sendError(err)
		}
		if out.bytes < sendQueue {
			out.queue = append(out.queue, message{typ: t, buf: b})
			out.bytes += len(b.B)
			s.enqueueLocked(class)
			if out.bytes < sendQueue {
				out.room.set() // for the next one who waits
			}
			s.c.mu.Unlock()
			return nil
		}
		s.c.mu.Unlock()
		select {
		case <-out.room:
		case <-s.done:
		case <-ctx.Done():
			b.Release()
			return ctx.Err()
		}
	}
}

// sendError makes an error of why a stream is over: to a sender, a good end is one, too.
func sendError(err error) error {
	if err == nil || err == io.EOF {
		return Errorf(CodeInternal, "send on a stream that is closed")
	}
	return err
}

// Recv returns the next message of a class. After the end of the stream it returns what has arrived before, then Err.
func (s *Stream) Recv(ctx context.Context, class Class) (*Received, error) {
	in := &s.in[class]
	for {
		s.c.mu.Lock()
		if len(in.queue) > 0 {
			r := in.queue[0]
			in.queue[0] = nil
			in.queue = in.queue[1:]
			if len(in.queue) > 0 {
				in.ready.set() // for another one who waits
			}
			s.c.mu.Unlock()
			return r, nil
		}
		if s.err != nil {
			err := s.err
			s.c.mu.Unlock()
			return nil, err
		}
		s.c.mu.Unlock()
		select {
		case <-in.ready:
		case <-s.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Waiting returns how many messages of a class have arrived and are not received.
func (s *Stream) Waiting(class Class) int {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return len(s.in[class].queue)
}

// RecvMessage receives the next message of m's class, which must be of m's type, into m. Not for messages that keep a
// part of what they are decoded from.
func (s *Stream) RecvMessage(ctx context.Context, m Message) error {
	r, err := s.Recv(ctx, m.Type().Class())
	if err != nil {
		return err
	}
	defer r.Release()
	return r.Decode(m)
}

// Decode reads the message into m, which must be of its type. Frames keep a part of the Payload.
func (r *Received) Decode(m Message) error {
	if r.Type != m.Type() {
		return Errorf(CodeProtocol, "got a message of type %v, want %v", r.Type, m.Type())
	}
	return Unmarshal(m, r.Payload)
}

// Close ends the stream in both directions. With an empty code what was sent before is delivered first; else it is
// dropped, and the peer gets the code and message. What has arrived and was not received is dropped.
func (s *Stream) Close(code Code, reason string) {
	c := s.c
	c.mu.Lock()
	var back int64
	switch {
	case s.gone || s.closing != nil && code == "":
		s.dropInLocked()
	case code == "" && !s.emptyLocked():
		s.closing = &closing{}
		s.dropInLocked()
	default:
		c.controlLocked(s, &closing{code, reason})
		back = s.endLocked(closedHere(code, reason))
		s.dropInLocked()
	}
	c.mu.Unlock()
	c.opts.Budget.giveBack(back)
}

func closedHere(code Code, reason string) error {
	if code == "" {
		return Errorf(CodeInternal, "the stream is closed")
	}
	return &Error{Code: code, Message: reason}
}

// read reads a packet's payload behind what has arrived of the message.
func (in *inbox) read(br *bufio.Reader, h header) ([]byte, error) {
	n := len(in.buf.B)
	end := n + int(h.Length)
	if end > cap(in.buf.B) {
		in.buf = in.buf.grow(max(end, min(2*n, end+int(h.Rest))))
	}
	in.buf.B = in.buf.B[:end]
	_, err := io.ReadFull(br, in.buf.B[n:])
	return in.buf.B[n:], err
}

// begin checks that a packet continues the message that is arriving, or starts one.
func (in *inbox) begin(h header) error {
	total := h.Length + h.Rest
	if in.buf == nil {
		in.typ, in.total = h.Type, messageCost(int64(total))
		n := total
		if in.total > in.window {
			n = h.Length // memory is for what has credit
		}
		in.buf = NewBuffer(int(n))
	} else if in.typ != h.Type || in.rest != total {
		return Errorf(CodeProtocol, "packet of type %v does not continue the message of type %v before it", h.Type, in.typ)
	}
	in.rest, in.arriving = h.Rest, true
	return nil
}

// SendSized is Send for a message whose encoding is known to be size bytes long: its buffer is pooled.
func (s *Stream) SendSized(ctx context.Context, m Message, size int) error {
	return s.SendBuffer(ctx, m.Type(), encode(m, size))
}
