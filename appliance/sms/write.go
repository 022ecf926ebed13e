package sms

import (
	"fmt"
	"time"
)

// batchBytes is how much the writer collects before it writes: with more than one packet it stops at this size.
const (
	batchBytes = 256 << 10
	writeBytes = 128 << 10 // of a single write
)

// outgoing is one packet that the writer has taken.
type outgoing struct {
	h       header
	stream  *Stream
	payload []byte
	buf     *Buffer // released when the packet is written; nil for control messages and middle packets
}

// ring is the streams of a class that have something to send and the credit for it, in turn.
type ring struct{ streams []*Stream }

func (r *ring) push(s *Stream) { r.streams = append(r.streams, s) }

func (r *ring) pop() *Stream {
	s := r.streams[0]
	r.streams[0] = nil
	r.streams = r.streams[1:]
	return s
}

// controlLocked queues a control message on a stream.
func (c *Conn) controlLocked(s *Stream, m Message) {
	c.control = append(c.control, outgoing{h: header{Stream: s.id, Type: m.Type()}, stream: s, payload: m.append(nil)})
	c.wake.set()
}

// writeLoop writes until the connection ends; then it tells the peer why, and closes.
func (c *Conn) writeLoop() {
	err := c.deadline()
	if err == nil {
		_, err = c.nc.Write([]byte(preamble))
	}
	var batch []outgoing
	for err == nil {
		c.mu.Lock()
		batch = c.collectLocked(batch[:0])
		over := c.err != nil
		c.mu.Unlock()
		if len(batch) > 0 {
			err = c.write(batch)
			continue
		}
		if over {
			break
		}
		select {
		case <-c.wake:
		case <-c.done:
		}
	}
	if err != nil {
		c.fail(fmt.Errorf("connection lost: %w", err), false)
	} else if c.tell != nil { // c.err is set: nobody writes tell any more
		c.mu.Lock()
		last := outgoing{h: header{Seq: c.main.sendSeq, Type: TypeGoAway}, payload: c.tell.append(nil)}
		c.mu.Unlock()
		if c.write([]outgoing{last}) == nil {
			<-c.read // the peer closes, or the deadline passes
		}
	}
	_ = c.nc.Close()
}

// collectLocked takes the packets of the next write: control messages first, then class by class, stream by stream.
func (c *Conn) collectLocked(batch []outgoing) []outgoing {
	for _, o := range c.control {
		o.h.Seq = o.stream.sendSeq
		o.stream.sendSeq++
		batch = append(batch, o)
	}
	clear(c.control)
	c.control = c.control[:0]
	if c.err != nil {
		return batch
	}
	size := 0
	for class := ClassOrder; class < classes; class++ {
		r := &c.rings[class]
		for len(r.streams) > 0 && size < batchBytes {
			s := r.pop()
			o, ok := s.nextLocked(class)
			if !ok {
				continue
			}
			size += len(o.payload) + HeaderLen
			batch = append(batch, o)
			s.enqueueLocked(class)
			if s.finishedLocked() {
				batch = append(batch, s.finalLocked())
			}
		}
	}
	return batch
}

// write sends a batch in one write.
func (c *Conn) write(batch []outgoing) error {
	size := 0
	for i := range batch {
		size += HeaderLen + len(batch[i].payload)
	}
	w := NewBuffer(size)
	defer w.Release()
	p := w.B
	for i := range batch {
		o := &batch[i]
		o.h.Length = uint32(len(o.payload))
		p = append(appendHeader(p, o.h, o.payload), o.payload...)
		if o.buf != nil {
			o.buf.Release()
		}
		*o = outgoing{}
	}
	w.set(p)
	for len(p) > 0 { // a deadline for each piece: a slow line is not a dead one
		n := min(len(p), writeBytes)
		if err := c.deadline(); err != nil {
			return err
		}
		if _, err := c.nc.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return c.flush()
}

// deadline gives the next write its time: little once the connection is over.
func (c *Conn) deadline() error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.opts.DeadAfter)); err != nil {
		return err
	}
	select {
	case <-c.done:
		return c.nc.SetWriteDeadline(time.Now().Add(farewell))
	default:
		return nil
	}
}
