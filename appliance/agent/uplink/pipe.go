package uplink

import (
	"context"
	"encoding/binary"
	"sync"

	"coffer/appliance/sms"
)

// pipe is what a run stream and a lane have in common: messages that must arrive once and in order, and questions that
// want an answer, both across lost connections. Messages are kept until the appliance has acknowledged them, questions
// until they are answered; both are sent again on the next stream.
type pipe struct {
	window int             // bytes kept before put blocks
	over   <-chan struct{} // closed when the session is over
	why    func() error    // why it is

	mu sync.Mutex
	// mu guards all below.
	st        *sms.Stream // nil while there is no connection
	pending   []pendingMessage
	bytes     int    // in pending
	next      int    // index in pending of the next one to send on st
	seq       uint64 // of the last message put
	received  uint64
	durable   uint64
	questions map[uint32]*question
	lastID    uint32
	changed   chan struct{} // closed at every change; made anew by who waits
	acked     func(received uint64)
}

type pendingMessage struct {
	seq uint64
	typ sms.Type
	buf *sms.Buffer
}

// question is a request that waits for its answer.
type question struct {
	typ    sms.Type
	buf    *sms.Buffer
	answer func(m *sms.Received) (done bool) // called by the stream's receivers; must not block
}

func newPipe(window int, over <-chan struct{}, why func() error) *pipe {
	return &pipe{window: window, over: over, why: why, questions: map[uint32]*question{}, changed: make(chan struct{})}
}

// notifyLocked wakes all who wait for a change.
func (p *pipe) notifyLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait returns when ok does. ok is called with mu held.
func (p *pipe) wait(ctx context.Context, ok func() bool) error {
	p.mu.Lock()
	for !ok() {
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.over:
			return whyOver(p.why)
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// whyOver is the error of calls to a session that is over.
func whyOver(why func() error) error {
	if err := why(); err != nil {
		return err
	}
	return sms.Errorf(sms.CodeInternal, "the run is over")
}

// put queues a message whose first eight bytes are its sequence number, which it fills in and tells to note. It waits for
// room in the window. It takes over the buffer, also when it fails.
func (p *pipe) put(ctx context.Context, typ sms.Type, b *sms.Buffer, note func(seq uint64)) error {
	err := p.wait(ctx, func() bool {
		if len(p.pending) > 0 && p.bytes >= p.window {
			return false
		}
		p.seq++
		binary.LittleEndian.PutUint64(b.B, p.seq)
		if note != nil {
			note(p.seq)
		}
		p.pending = append(p.pending, pendingMessage{p.seq, typ, b})
		p.bytes += len(b.B)
		p.notifyLocked()
		return true
	})
	if err != nil {
		b.Release()
	}
	return err
}

// send sends what is pending on st, in order, until st is over.
func (p *pipe) send(ctx context.Context, st *sms.Stream) error {
	for {
		var m pendingMessage
		err := p.wait(ctx, func() bool {
			if p.st != st {
				return true
			}
			if p.next >= len(p.pending) {
				return false
			}
			m = p.pending[p.next]
			m.buf.Retain()
			p.next++
			return true
		})
		if err != nil {
			return err
		}
		if m.buf == nil {
			return st.Err()
		}
		if err := st.SendBuffer(ctx, m.typ, m.buf); err != nil {
			return err
		}
	}
}

// attach makes st the pipe's stream, the appliance having taken everything up to received; unanswered questions are
// asked again.
func (p *pipe) attach(ctx context.Context, st *sms.Stream, received uint64) error {
	p.mu.Lock()
	p.dropLocked(received)
	p.st, p.next = st, 0
	var again []*question
	for _, q := range p.questions {
		q.buf.Retain()
		again = append(again, q)
	}
	p.notifyLocked()
	acked := p.acked
	p.mu.Unlock()
	if acked != nil {
		acked(received)
	}
	var err error
	for _, q := range again {
		if e := st.SendBuffer(ctx, q.typ, q.buf); err == nil {
			err = e
		}
	}
	return err
}

// detach forgets a stream that is over.
func (p *pipe) detach(st *sms.Stream) {
	p.mu.Lock()
	if p.st == st {
		p.st = nil
		p.notifyLocked()
	}
	p.mu.Unlock()
}

// ack takes an acknowledgement.
func (p *pipe) ack(a sms.Ack) {
	p.mu.Lock()
	p.durable = max(p.durable, a.Durable)
	p.dropLocked(a.Received)
	p.notifyLocked()
	acked := p.acked
	p.mu.Unlock()
	if acked != nil {
		acked(a.Received)
	}
}

// dropLocked drops messages that the appliance has taken.
func (p *pipe) dropLocked(received uint64) {
	p.received = max(p.received, min(received, p.seq))
	n := 0
	for n < len(p.pending) && p.pending[n].seq <= received {
		p.bytes -= len(p.pending[n].buf.B)
		p.pending[n].buf.Release()
		p.pending[n] = pendingMessage{}
		n++
	}
	p.pending = p.pending[n:]
	p.next = max(p.next-n, 0)
}

// ask asks a question: build gets its id. answer is called for every message that carries the id, until it says done.
func (p *pipe) ask(ctx context.Context, typ sms.Type, build func(id uint32) *sms.Buffer, answer func(*sms.Received) bool) {
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	q := &question{typ: typ, buf: build(id), answer: answer}
	p.questions[id] = q
	st := p.st
	q.buf.Retain()
	p.mu.Unlock()
	if st == nil {
		q.buf.Release()
		return
	}
	// Where this fails the stream is over, and the question is asked again on the next one; where ctx is done first, on the
	// next one, too, if anybody still cares.
	_ = st.SendBuffer(ctx, typ, q.buf)
}

// answered hands a message to the question with the id; false means that nobody waits for it (any more).
func (p *pipe) answered(id uint32, m *sms.Received) bool {
	p.mu.Lock()
	q := p.questions[id]
	p.mu.Unlock()
	if q == nil {
		return false
	}
	if q.answer(m) {
		p.mu.Lock()
		if p.questions[id] == q {
			delete(p.questions, id)
			q.buf.Release()
		}
		p.mu.Unlock()
	}
	return true
}

// drain waits until the appliance has taken everything that was put.
func (p *pipe) drain(ctx context.Context) error {
	return p.wait(ctx, func() bool { return len(p.pending) == 0 })
}

// stream waits for the pipe's stream.
func (p *pipe) stream(ctx context.Context) (st *sms.Stream, err error) {
	err = p.wait(ctx, func() bool {
		st = p.st
		return st != nil
	})
	return st, err
}

// release gives all buffers back when the session is over.
func (p *pipe) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.pending {
		p.pending[i].buf.Release()
	}
	p.pending, p.bytes, p.next = nil, 0, 0
	for id, q := range p.questions {
		q.buf.Release()
		delete(p.questions, id)
	}
}
