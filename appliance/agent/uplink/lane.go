package uplink

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// lane is one lane of a session. Its keeper gives it a stream on every connection that the run gets.
type lane struct {
	s *Session
	n uint8
	p *pipe

	// sent are the digests of frames that are not acknowledged, in order of their sequence.
	mu   sync.Mutex
	sent []sentFrame

	fetching fetchSlot
}

type sentFrame struct {
	seq uint64
	ds  []digest.Digest
}

var _ Lane = (*lane)(nil)

func newLane(s *Session, n uint8) *lane {
	l := &lane{s: s, n: n, p: newPipe(s.link.opts.LaneWindow, s.done, s.Err)}
	l.p.acked = l.acked
	return l
}

// keep gives the lane a stream as often as the run gets a connection, until the session is over.
func (l *lane) keep(ctx context.Context) {
	var last *attachment
	for {
		at, err := l.s.attached(ctx, last)
		if err != nil {
			return
		}
		last = at
		err = l.serve(ctx, at)
		// The run stream tells why a run is over; a lane that ends with it, or with its connection, has nothing to say.
		if e, ok := errors.AsType[*sms.Error](err); ok && e.Code != sms.CodeUnknownRun && at.conn.Err() == nil && ctx.Err() == nil {
			l.s.end(err)
			return
		}
	}
}

// serve runs the lane on one connection.
func (l *lane) serve(ctx context.Context, at *attachment) error {
	st, err := at.conn.Open(sms.StreamLane)
	if err != nil {
		return io.EOF
	}
	defer st.Close("", "")
	var w sms.LaneWelcome
	if err := st.Send(ctx, &sms.LaneOpen{Token: l.s.token, Lane: l.n}); err != nil {
		return err
	}
	if err := st.RecvMessage(ctx, &w); err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.p.detach(st)
	var all sync.WaitGroup
	defer all.Wait()
	errs := make(chan error, 3)
	run := func(fn func() error) {
		all.Go(func() {
			errs <- fn()
			cancel()
		})
	}
	run(func() error { return l.answers(inner, st) })
	run(func() error { return l.frames(inner, st) })
	if err := l.p.attach(inner, st, w.Received); err != nil {
		cancel()
		return err
	}
	run(func() error { return l.p.send(inner, st) })
	err = <-errs
	cancel()
	return err
}

// answers takes answers and acknowledgements.
func (l *lane) answers(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassQuery)
		if err != nil {
			return err
		}
		err = takeAnswer(l.p, m)
		m.Release()
		if err != nil {
			return err
		}
	}
}

// takeAnswer takes a message of the query class.
func takeAnswer(p *pipe, m *sms.Received) error {
	switch m.Type {
	case sms.TypeAnswer:
		if len(m.Payload) < 4 {
			return sms.Errorf(sms.CodeProtocol, "malformed answer")
		}
		p.answered(binary.LittleEndian.Uint32(m.Payload), m)
		return nil
	case sms.TypeAck:
		var a sms.Ack
		if err := m.Decode(&a); err != nil {
			return err
		}
		p.ack(a)
		return nil
	}
	return sms.Errorf(sms.CodeProtocol, "unexpected message of type %v", m.Type)
}

// acked forgets the digests of frames that have arrived.
func (l *lane) acked(received uint64) {
	for {
		l.mu.Lock()
		if len(l.sent) == 0 || l.sent[0].seq > received {
			l.mu.Unlock()
			return
		}
		ds := l.sent[0].ds
		l.sent[0] = sentFrame{}
		l.sent = l.sent[1:]
		l.mu.Unlock()
		l.s.inflight.remove(ds)
	}
}

// Have implements Lane.
func (l *lane) Have(ctx context.Context, ds []digest.Digest) ([]bool, error) {
	return l.HaveAsync(ctx, ds)(ctx)
}

// HaveAsync implements Lane.
func (l *lane) HaveAsync(ctx context.Context, ds []digest.Digest) func(context.Context) ([]bool, error) {
	mine := l.s.inflight.claim(ds)
	out := make([]bool, len(ds))
	if len(mine) < len(ds) {
		for i := range out {
			out[i] = true // what others have claimed they send
		}
	}
	if len(mine) == 0 {
		return func(context.Context) ([]bool, error) { return out, nil }
	}
	asked := ds
	if len(mine) < len(ds) {
		asked = make([]digest.Digest, len(mine))
		for i, j := range mine {
			asked[i] = ds[j]
		}
	}
	wait := askHave(ctx, l.p, asked)
	return func(ctx context.Context) ([]bool, error) {
		have, err := wait(ctx)
		if err != nil {
			return nil, err
		}
		var there []digest.Digest
		for i, j := range mine {
			out[j] = have[i]
			if have[i] {
				there = append(there, ds[j])
			}
		}
		l.s.inflight.remove(there)
		return out, nil
	}
}

// askHave asks the appliance for digests.
func askHave(ctx context.Context, p *pipe, ds []digest.Digest) (wait func(context.Context) ([]bool, error)) {
	if len(ds) > MaxHave {
		err := sms.Errorf(sms.CodeInternal, "query of %d digests, limit %d", len(ds), MaxHave)
		return func(context.Context) ([]bool, error) { return nil, err }
	}
	type result struct {
		have []bool
		err  error
	}
	done := make(chan result, 1)
	n := len(ds)
	p.ask(ctx, sms.TypeQuery, func(id uint32) *sms.Buffer {
		b := sms.NewBuffer(4 + digest.Size*n)
		b.B = sms.Append(b.B, &sms.Query{ID: id, Digests: ds})
		return b
	}, func(m *sms.Received) bool {
		var a sms.Answer
		err := m.Decode(&a)
		if err == nil && len(a.Have) != n {
			err = sms.Errorf(sms.CodeProtocol, "%d answers to a query of %d digests", len(a.Have), n)
		}
		done <- result{a.Have, err}
		return true
	})
	return func(ctx context.Context) ([]bool, error) {
		select {
		case r := <-done:
			return r.have, r.err
		case <-p.over:
			return nil, whyOver(p.why)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Put implements Lane.
func (l *lane) Put(ctx context.Context, f frame.Frame) error {
	ds := make([]digest.Digest, len(f.Refs))
	for i := range f.Refs {
		ds[i] = f.Refs[i].Digest
	}
	l.s.inflight.add(ds)
	return l.p.put(ctx, sms.TypeFrame, encodeFrame(f), func(seq uint64) {
		l.mu.Lock()
		l.sent = append(l.sent, sentFrame{seq, ds})
		l.mu.Unlock()
	})
}

// encodeFrame encodes a frame whose sequence number is filled in later.
func encodeFrame(f frame.Frame) *sms.Buffer {
	b := sms.NewBuffer(8 + frame.HeaderLen(len(f.Refs)) + len(f.Stored))
	b.B = sms.Append(b.B, &sms.Frame{Frame: f})
	return b
}

// Flush implements Lane.
func (l *lane) Flush(ctx context.Context) error {
	if err := l.p.drain(ctx); err != nil {
		return err
	}
	done := false
	for {
		st, err := l.p.stream(ctx)
		if err != nil {
			return err
		}
		l.p.mu.Lock()
		seq := l.p.seq
		l.p.mu.Unlock()
		_ = st.Send(ctx, &sms.Flush{Seq: seq}) // where this fails, wait tells why, or there is a new stream soon
		err = l.p.wait(ctx, func() bool {
			done = l.p.durable >= seq
			return done || l.p.st != st
		})
		if err != nil || done {
			return err
		}
	}
}
