package ingest

import (
	"context"
	"sync/atomic"

	"coffer/appliance/sms"
)

// lane is the appliance's side of one lane; it outlives its connections.
type lane struct {
	owner chan struct{} // holds one token: who has it is the lane's handler
	evict atomic.Pointer[context.CancelFunc]

	// Only the owner uses these.
	store    Lane
	received uint64
}

// serveLane serves a lane's stream until the run is over or the connection is lost.
func (a *agentConn) serveLane(ctx context.Context, st *sms.Stream) error {
	var m sms.LaneOpen
	if err := st.RecvMessage(ctx, &m); err != nil {
		return err
	}
	r, err := a.run(m.Token)
	if err != nil {
		return err
	}
	inner, leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	l, err := r.lane(a, m.Lane)
	if err != nil {
		return err
	}
	err = r.withLane(inner, st, l)
	return r.goodbye(st, err)
}

// lane returns a lane of the run. INVARIANT: lanes are served on the connection that the run is attached to, and on no
// other: a frame that an old connection still delivers cannot come after what the new one sends.
func (r *Run) lane(a *agentConn, n uint8) (*lane, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attached != a {
		return nil, sms.Errorf(sms.CodeUnknownRun, "lane %d: the run is not open on this connection", n)
	}
	if int(n) >= r.opts.MaxLanes {
		return nil, sms.Errorf(sms.CodeProtocol, "lane %d of %d", n, r.opts.MaxLanes)
	}
	l := r.lanes[n]
	if l == nil {
		l = &lane{owner: make(chan struct{}, 1)}
		l.owner <- struct{}{}
		r.lanes[n] = l
	}
	return l, nil
}

// withLane takes the lane over from an earlier connection's handler and serves it.
func (r *Run) withLane(ctx context.Context, st *sms.Stream, l *lane) error {
	if evict := l.evict.Load(); evict != nil {
		(*evict)()
	}
	select {
	case <-l.owner:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { l.owner <- struct{}{} }()
	evicted, evict := context.WithCancel(ctx)
	defer evict()
	l.evict.Store(&evict)
	if err := r.openLane(l); err != nil {
		return r.endWire(err)
	}
	if err := st.Send(evicted, &sms.LaneWelcome{Received: l.received, Durable: l.durable()}); err != nil {
		return err
	}
	inner, cancel := context.WithCancelCause(evicted)
	defer cancel(nil)
	return together(inner, cancel,
		func(ctx context.Context) error { return r.laneQuestions(ctx, st) },
		func(ctx context.Context) error { return r.laneFrames(ctx, st, l) },
	)
}

// openLane opens the store's side of a lane at its first use; a restore has none.
func (r *Run) openLane(l *lane) error {
	if l.store != nil || r.opts.Store == nil {
		return nil
	}
	return r.withStore(func() (err error) {
		l.store, err = r.opts.Store.Lane(func(uint64) {})
		return err
	})
}

func (l *lane) durable() uint64 {
	if l.store == nil {
		return 0
	}
	return l.store.Durable()
}

// laneQuestions answers queries of a backup and fetches of a restore.
func (r *Run) laneQuestions(ctx context.Context, st *sms.Stream) error {
	var asker asker
	chunks := newChunkSender(r, st)
	for {
		m, err := st.Recv(ctx, sms.ClassQuery)
		if err != nil {
			return err
		}
		switch m.Type {
		case sms.TypeQuery:
			err = asker.answer(ctx, r, st, m)
		case sms.TypeFetch:
			err = chunks.answer(ctx, m)
		default:
			err = unexpected(m, st)
		}
		m.Release()
		if err != nil {
			return err
		}
	}
}

// asker answers queries; its memory is used again.
type asker struct {
	query sms.Query
	have  []bool
}

func (k *asker) answer(ctx context.Context, r *Run, st *sms.Stream, m *sms.Received) error {
	if err := m.Decode(&k.query); err != nil {
		return err
	}
	n := len(k.query.Digests)
	if cap(k.have) < n {
		k.have = make([]bool, max(n, 256))
	}
	have := k.have[:n]
	err := r.withStore(func() error { return r.opts.Store.Have(context.WithoutCancel(ctx), k.query.Digests, have) })
	if err != nil {
		return r.endWire(err)
	}
	return st.Send(ctx, &sms.Answer{ID: k.query.ID, Have: have})
}

// laneFrames takes the frames of a lane in order.
func (r *Run) laneFrames(ctx context.Context, st *sms.Stream, l *lane) error {
	for {
		m, err := st.Recv(ctx, sms.ClassData)
		if err != nil {
			return err
		}
		flush := false
		switch m.Type {
		case sms.TypeFrame:
			err = r.takeFrame(ctx, l, m)
		case sms.TypeFlush:
			flush = true
			err = r.flushLane(ctx, l)
		default:
			err = unexpected(m, st)
		}
		m.Release()
		if err == nil && (flush || st.Waiting(sms.ClassData) == 0 || l.received%ackEvery == 0) {
			err = st.Send(ctx, &sms.Ack{Received: l.received, Durable: l.durable()})
		}
		if err != nil {
			return err
		}
	}
}

// ackEvery is after how many frames an Ack is sent where frames come without a pause.
const ackEvery = 4

func (r *Run) takeFrame(ctx context.Context, l *lane, m *sms.Received) error {
	var f sms.Frame
	if err := m.Decode(&f); err != nil {
		return err
	}
	switch {
	case f.Seq == 0 || f.Seq > l.received+1:
		return sms.Errorf(sms.CodeProtocol, "frame %d on a lane after %d", f.Seq, l.received)
	case f.Seq <= l.received:
		return nil // it came before the connection was lost
	}
	err := r.withStore(func() error {
		_, err := l.store.PutFrame(context.WithoutCancel(ctx), f.Frame)
		return err
	})
	if err != nil {
		return r.endWire(err)
	}
	l.received = f.Seq
	return nil
}

func (r *Run) flushLane(ctx context.Context, l *lane) error {
	err := r.withStore(func() error { return l.store.Flush(context.WithoutCancel(ctx)) })
	if err != nil {
		return r.endWire(err)
	}
	return nil
}
