package sms

// This file is the flow control: credits in both directions, windows that grow, and the end of a stream.

// nextSeqLocked checks a packet's sequence number.
func (s *Stream) nextSeqLocked(h header) error {
	if h.Seq != s.recvSeq {
		return Errorf(CodeProtocol, "packet %d on stream %d, want %d", h.Seq, h.Stream, s.recvSeq)
	}
	s.recvSeq++
	return nil
}

// growLocked enlarges a data window where the sender is held up by it and the budget allows. It returns what must be
// borrowed for a message that does not fit otherwise.
func (s *Stream) growLocked(in *inbox) (loan int64) {
	need := in.total - in.window
	g := int64(0)
	switch {
	case need > 0:
		g = max(need, min(in.window, MaxWindow-in.window))
	case in.avail < in.window/4 && len(in.queue) <= 1:
		g = min(in.window, MaxWindow-in.window)
	}
	if g <= 0 || s.gone {
		return 0
	}
	if s.c.opts.Budget.tryGrow(g) {
		s.enlargeLocked(in, g)
		return 0
	}
	if need > 0 && !in.asked {
		in.asked = true
		return need
	}
	return 0
}

func (s *Stream) enlargeLocked(in *inbox, n int64) {
	s.extra += n
	in.window += n
	in.avail += n
	s.c.controlLocked(s, &credit{ClassData, uint32(n)})
}

// borrow asks the budget for what the arriving message needs. Called by the connection's reader, without c.mu.
func (s *Stream) borrow(n int64) {
	c := s.c
	giveUp := c.opts.Budget.borrow(n, func() {
		c.mu.Lock()
		in := &s.in[ClassData]
		if s.gone || !in.arriving {
			c.mu.Unlock()
			c.opts.Budget.giveBack(n)
			return
		}
		in.loan += n
		s.enlargeLocked(in, n)
		c.mu.Unlock()
	})
	c.mu.Lock()
	gone := s.gone
	if !gone {
		s.giveUp = giveUp // where the loan is there already this does nothing
	}
	c.mu.Unlock()
	if gone {
		giveUp()
	}
}

// Release gives the message's memory and credit back. It must be called once.
func (r *Received) Release() {
	s := r.stream
	c := s.c
	c.mu.Lock()
	in := &s.in[r.Type.Class()]
	back := int64(0)
	if !s.gone {
		in.owed += r.cost
		back = in.spareLocked(r, c.opts.Budget)
		in.window -= back
		in.owed -= back
		s.extra -= back
		s.settleLocked(r.Type.Class())
	}
	c.mu.Unlock()
	c.opts.Budget.giveBack(back)
	r.Payload = nil
	r.buf.Release()
}

// settleLocked tells the sender what has been consumed, in few messages: when a quarter of the window is owed, or when
// the sender might wait for it.
//
// INVARIANT: where anything is owed the sender has credit for a packet of any length. So a message that needs its whole
// window comes through although its first packets found a part of the window owed.
func (s *Stream) settleLocked(class Class) {
	in := &s.in[class]
	if in.owed <= 0 || s.gone || in.owed < in.window/4 && in.avail >= packetCost(MaxPayload) {
		return
	}
	s.c.controlLocked(s, &credit{class, uint32(in.owed)})
	in.avail += in.owed
	in.owed = 0
}

// spareLocked returns by how much the window shrinks when r is released: by its loan, or by what it has grown where the
// budget is under pressure. INVARIANT: while a large message arrives the window does not shrink, for the message may have
// counted on it: its sender would wait for credit that never comes. A loan then passes to that message.
func (in *inbox) spareLocked(r *Received, b *Budget) int64 {
	if in.arriving && in.total > DataWindow {
		in.loan += r.loan
		return 0
	}
	if r.loan > 0 {
		return r.loan
	}
	if r.Type.Class() == ClassData && in.window > DataWindow && b.pressed() {
		return min(in.window-DataWindow, in.owed)
	}
	return 0
}

// creditLocked takes credit from the peer.
func (s *Stream) creditLocked(m *credit) error {
	if m.Class == ClassControl || m.Class >= classes {
		return Errorf(CodeProtocol, "credit for class %v", m.Class)
	}
	out := &s.out[m.Class]
	if out.credit += int64(m.Bytes); out.credit > 1<<32 {
		return Errorf(CodeProtocol, "too much %v credit on stream %d", m.Class, s.id)
	}
	s.enqueueLocked(m.Class)
	return nil
}

// enqueueLocked puts the stream in line where it has a packet of the class and the credit for it.
func (s *Stream) enqueueLocked(class Class) {
	out := &s.out[class]
	if out.ringed || s.gone || len(out.queue) == 0 || out.credit < out.queue[0].nextCost() {
		return
	}
	out.ringed = true
	s.c.rings[class].push(s)
	s.c.wake.set()
}

func (m *message) nextCost() int64 { return packetCost(uint32(min(len(m.buf.B)-m.off, MaxPayload))) }

// nextLocked takes the next packet of a class.
func (s *Stream) nextLocked(class Class) (outgoing, bool) {
	out := &s.out[class]
	out.ringed = false
	if s.gone || len(out.queue) == 0 || out.credit < out.queue[0].nextCost() {
		return outgoing{}, false
	}
	m := &out.queue[0]
	out.credit -= m.nextCost()
	end := min(m.off+MaxPayload, len(m.buf.B))
	o := outgoing{stream: s, payload: m.buf.B[m.off:end], buf: m.buf,
		h: header{Stream: s.id, Seq: s.sendSeq, Type: m.typ, Rest: uint32(len(m.buf.B) - end)}}
	s.sendSeq++
	if o.h.Rest > 0 {
		m.off = end
		m.buf.Retain() // the packet's reference; the message keeps its own
		return o, true
	}
	out.bytes -= len(m.buf.B)
	*m = message{}
	out.queue = out.queue[1:]
	out.room.set()
	return o, true
}

func (s *Stream) emptyLocked() bool {
	for class := ClassOrder; class < classes; class++ {
		if len(s.out[class].queue) > 0 {
			return false
		}
	}
	return true
}

// finishedLocked reports whether a stream that shall close has sent all.
func (s *Stream) finishedLocked() bool { return s.closing != nil && !s.gone && s.emptyLocked() }

// finalLocked ends the stream and returns its last packet.
func (s *Stream) finalLocked() outgoing {
	o := outgoing{stream: s, payload: s.closing.append(nil), h: header{Stream: s.id, Seq: s.sendSeq, Type: TypeClose}}
	s.sendSeq++
	back := s.endLocked(closedHere("", ""))
	if back > 0 { // a budget calls other connections, whose locks must not be taken under this one's
		s.c.ended.Go(func() { s.c.opts.Budget.giveBack(back) })
	}
	return o
}

// endLocked ends the stream. It returns what goes back to the budget, once c.mu is released.
func (s *Stream) endLocked(err error) (back int64) {
	if s.gone {
		return 0
	}
	s.gone, s.err = true, err
	close(s.done)
	if s.c.streams[s.id] == s {
		delete(s.c.streams, s.id)
		if !s.ours && s.id != 0 {
			s.c.peerOpen--
		}
	}
	for class := ClassOrder; class < classes; class++ {
		out := &s.out[class]
		for i := range out.queue {
			out.queue[i].buf.Release()
		}
		out.queue, out.bytes = nil, 0
	}
	if giveUp := s.giveUp; giveUp != nil {
		s.giveUp = nil
		s.c.ended.Go(func() { giveUp() })
	}
	back, s.extra = s.extra, 0
	return back
}

// dropInLocked drops what has arrived and is not received.
func (s *Stream) dropInLocked() {
	for class := ClassOrder; class < classes; class++ {
		in := &s.in[class]
		for _, r := range in.queue {
			r.buf.Release()
		}
		in.queue = nil
	}
}
