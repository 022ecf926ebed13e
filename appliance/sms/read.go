package sms

import (
	"bufio"
	"io"
	"time"
)

// readPacket takes one packet off the wire and does what it says.
func (c *Conn) readPacket(br *bufio.Reader) error {
	var b [HeaderLen]byte
	if _, err := io.ReadFull(br, b[:]); err != nil {
		return err
	}
	h, err := parseHeader(&b)
	if err != nil {
		return err
	}
	if h.Type.Class() == ClassControl {
		return c.readControl(br, &b, h)
	}
	s, in, loan, err := c.admit(h)
	if err != nil {
		return err
	}
	if s == nil {
		_, err := io.CopyN(io.Discard, br, int64(h.Length))
		return err
	}
	if loan > 0 {
		s.borrow(loan)
	}
	payload, err := in.read(br, h)
	if err != nil {
		return err
	}
	if err := checkCRC(&b, payload); err != nil {
		return err
	}
	if h.Rest == 0 {
		c.deliver(s, in)
	}
	return nil
}

// admit checks a packet against the state of its stream: sequence, credit, the message that it belongs to. A nil Stream
// means that the packet belongs to a stream that is over. loan is what the message needs beyond its window.
func (c *Conn) admit(h header) (s *Stream, in *inbox, loan int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s = c.streams[h.Stream]
	if s == nil {
		return nil, nil, 0, c.checkOverLocked(h)
	}
	if err := s.nextSeqLocked(h); err != nil {
		return nil, nil, 0, err
	}
	class := h.Type.Class()
	in = &s.in[class]
	if err := in.begin(h); err != nil {
		return nil, nil, 0, err
	}
	cost := packetCost(h.Length)
	if in.avail -= cost; in.avail < 0 {
		return nil, nil, 0, Errorf(CodeProtocol, "stream %d exceeds its %v credit by %d bytes", h.Stream, class, -in.avail)
	}
	in.cost += cost
	if class == ClassData {
		loan = s.growLocked(in)
	}
	s.settleLocked(class)
	return s, in, loan, nil
}

// checkOverLocked tells packets of streams that are over, which are dropped, from those of streams that never were.
func (c *Conn) checkOverLocked(h header) error {
	if (c.ours(h.Stream) && h.Stream < c.nextID) || (!c.ours(h.Stream) && h.Stream <= c.lastPeer) || h.Stream == 0 {
		return nil
	}
	return Errorf(CodeProtocol, "packet of type %v for stream %d, which was never opened", h.Type, h.Stream)
}

// ours reports whether a stream id is one that this side gives.
func (c *Conn) ours(id uint32) bool { return (id%2 == 0) == (c.side == ApplianceSide) }

// deliver hands a whole message to the consumer.
func (c *Conn) deliver(s *Stream, in *inbox) {
	c.mu.Lock()
	r := &Received{Type: in.typ, Payload: in.buf.B, buf: in.buf, stream: s, cost: in.cost, loan: in.loan}
	in.buf, in.cost, in.loan, in.arriving, in.asked = nil, 0, 0, false, false
	var giveUp func() bool
	if r.Type.Class() == ClassData {
		giveUp, s.giveUp = s.giveUp, nil
	}
	if !s.gone {
		in.queue = append(in.queue, r)
		in.ready.set()
		r = nil
	}
	c.mu.Unlock()
	if giveUp != nil {
		giveUp() // the credit came in another way
	}
	if r != nil {
		r.buf.Release()
	}
}

// readControl takes a message that belongs to the connection itself.
func (c *Conn) readControl(br *bufio.Reader, b *[HeaderLen]byte, h header) error {
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(br, payload); err != nil {
		return err
	}
	if err := checkCRC(b, payload); err != nil {
		return err
	}
	m, err := Decode(h.Type, payload)
	if err != nil {
		return err
	}
	back, err := c.obey(h, m)
	c.opts.Budget.giveBack(back)
	return err
}

// maxAnswers is how many control messages may wait to be sent: a peer that sends pings and reads nothing ends there.
const maxAnswers = 4096

// obey does what a control message says; it returns what goes back to the budget.
func (c *Conn) obey(h header, m Message) (back int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.control) > maxAnswers {
		return 0, Errorf(CodeProtocol, "%d answers wait for a peer that does not read them", len(c.control))
	}
	if m, ok := m.(*open); ok {
		return 0, c.acceptLocked(h, m)
	}
	if m, ok := m.(*goAway); ok { // also where this side has ended the connection: both may say farewell at a time
		return 0, &Error{Code: m.Code, Message: m.Message, Remote: true}
	}
	s := c.streams[h.Stream]
	if s == nil {
		return 0, c.checkOverLocked(h)
	}
	if err := s.nextSeqLocked(h); err != nil {
		return 0, err
	}
	switch m := m.(type) {
	case *ping:
		c.controlLocked(c.main, &pong{m.Nonce})
	case *pong:
		// The least one tells of the line, the others of what both machines were busy with.
		if rtt, least := time.Now().UnixNano()-int64(m.Nonce), c.rtt.Load(); rtt > 0 && (least == 0 || rtt < least) {
			c.rtt.Store(rtt)
		}
	case *credit:
		return 0, s.creditLocked(m)
	case *closing:
		if s == c.main {
			return 0, Errorf(CodeProtocol, "stream 0 was closed")
		}
		return s.endLocked(m.cause()), nil
	}
	return 0, nil
}

// cause is what a stream that the peer has closed ends with.
func (m *closing) cause() error {
	if m.Code == "" {
		return io.EOF
	}
	return &Error{Code: m.Code, Message: m.Message, Remote: true}
}

// acceptLocked takes a stream that the peer opens, or refuses it where there are too many.
func (c *Conn) acceptLocked(h header, m *open) error {
	if c.ours(h.Stream) || h.Stream <= c.lastPeer || h.Seq != 0 {
		return Errorf(CodeProtocol, "stream %d opened out of order", h.Stream)
	}
	c.lastPeer = h.Stream
	if c.err != nil {
		return nil
	}
	s := newStream(c, h.Stream, m.Kind)
	s.recvSeq = 1
	if c.peerOpen < c.opts.MaxStreams {
		select {
		case c.accept <- s:
			c.peerOpen++
			c.streams[s.id] = s
			return nil
		default:
		}
	}
	c.controlLocked(s, &closing{CodeBusy, "too many streams"})
	return nil
}
