package ingest

import (
	"context"
	"errors"
	"math"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup/recipe"
)

// serveRun serves a run stream until the run is over or the connection is lost.
func (a *agentConn) serveRun(ctx context.Context, st *sms.Stream) error {
	var m sms.RunOpen
	if err := st.RecvMessage(ctx, &m); err != nil {
		return err
	}
	r, err := a.run(m.Token)
	if err != nil {
		return err
	}
	inner, leave, err := r.enter(ctx)
	if err != nil {
		return r.afterlife(ctx, st, err)
	}
	inner, err = r.attach(inner, a)
	if err != nil {
		leave()
		if why := r.whyOver(); why != nil { // a commit that an earlier connection asked for has just ended
			return r.afterlife(ctx, st, why)
		}
		return err
	}
	err = r.converse(inner, st)
	r.detach(a, st, err)
	leave()
	return r.goodbye(st, err)
}

// goodbye returns what a stream of the run is closed with.
func (r *Run) goodbye(st *sms.Stream, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e, ok := errors.AsType[*sms.Error](err); {
	case ok && e.Code == sms.CodeProtocol && !e.Remote:
		return err // the connection ends with it
	case errors.Is(err, errOver):
		return nil // answered: the answer is to be delivered, not dropped
	case r.isOver && r.result.Err != nil:
		return r.overLocked()
	case r.isOver:
		return nil
	}
	return err
}

// attach makes this connection the run's. A handler of an earlier connection, which may not have noticed that it is
// dead, is ended first.
func (r *Run) attach(ctx context.Context, a *agentConn) (context.Context, error) {
	ctx, cancel := context.WithCancel(ctx)
	released := make(chan struct{})
	for {
		r.mu.Lock()
		if r.attached == nil {
			break
		}
		takeover, gone := r.takeover, r.released
		r.mu.Unlock()
		takeover()
		select {
		case <-gone:
		case <-ctx.Done():
			cancel()
			return nil, ctx.Err()
		}
	}
	r.attached, r.released, r.takeover = a, released, cancel
	r.timer.Stop()
	resumed := r.opened
	r.opened = true
	r.mu.Unlock()
	r.sink.Lock()
	defer r.sink.Unlock()
	r.opts.Sink.Opened(resumed)
	return ctx, nil
}

// detach leaves the run waiting for its agent, unless it is over or the agent broke the protocol.
func (r *Run) detach(a *agentConn, st *sms.Stream, cause error) {
	r.mu.Lock()
	takeover := r.takeover
	close(r.released)
	r.attached, r.takeover, r.released = nil, nil, nil
	over := r.isOver
	if !over {
		r.timer.Reset(r.srv.opts.ResumeWindow)
	}
	r.mu.Unlock()
	takeover()
	if over {
		return
	}
	end := a.conn.Err()
	for _, err := range []error{cause, end} {
		if e, ok := errors.AsType[*sms.Error](err); ok && !e.Remote && e.Code == sms.CodeProtocol {
			r.end(Result{Err: e})
			return
		}
	}
	if end != nil {
		cause = end
	} else if end := st.Err(); end != nil {
		r.end(Result{Err: gaveUp(end)})
		return
	}
	a.log.Warn("run interrupted", "run", r.opts.ID, "cause", cause)
	r.sink.Lock()
	defer r.sink.Unlock()
	r.opts.Sink.Interrupted(cause, r.srv.opts.Now().Add(r.srv.opts.ResumeWindow))
}

// gaveUp is the error of a run whose agent closed the run's stream, and not its connection.
func gaveUp(end error) error {
	if e, ok := errors.AsType[*sms.Error](end); ok && e.Remote {
		return e
	}
	return sms.Errorf(sms.CodeInternal, "the agent gave the run up")
}

// converse welcomes the agent and serves the three classes of the run stream side by side, so that none waits for
// another.
func (r *Run) converse(ctx context.Context, st *sms.Stream) error {
	r.mu.Lock()
	received := r.received
	r.mu.Unlock()
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := st.Send(inner, r.welcome(received)); err != nil {
		return err
	}
	return together(inner, cancel,
		func(ctx context.Context) error { return r.reports(ctx, st) },
		func(ctx context.Context) error { return r.questions(ctx, st) },
		func(ctx context.Context) error { return r.deliveries(ctx, st) },
	)
}

// together runs functions side by side until all have returned; the first error ends the others and is returned.
func together(ctx context.Context, cancel context.CancelCauseFunc, fns ...func(context.Context) error) error {
	done := make(chan error, len(fns))
	for _, fn := range fns {
		go func() { done <- fn(ctx) }()
	}
	var first error
	for range fns {
		if err := <-done; err != nil && first == nil {
			first = err
			cancel(err)
		}
	}
	return first
}

func (r *Run) welcome(received uint64) *sms.RunWelcome {
	o := &r.opts
	w := &sms.RunWelcome{RunID: o.ID, Restore: o.Store == nil, MaxLanes: uint8(o.MaxLanes), Received: received,
		ResumeWindow: r.srv.opts.ResumeWindow, Domain: o.Domain, Key: o.Key, Chunking: o.Chunking}
	w.Root, w.Side = r.roots()
	if o.Parent != nil {
		w.ParentStarted = o.Parent.Started
	}
	return w
}

// roots are the nodes that the order named: where all that the run may see hangs on.
func (r *Run) roots() (root, side recipe.Ref) {
	switch {
	case r.opts.Store == nil:
		return r.opts.Root, recipe.Ref{}
	case r.opts.Parent != nil:
		return r.opts.Parent.Root, r.opts.Parent.Side
	}
	return recipe.Ref{}, recipe.Ref{}
}

// reports takes what the agent tells about its progress.
func (r *Run) reports(ctx context.Context, st *sms.Stream) error {
	for {
		var p sms.Progress
		if err := st.RecvMessage(ctx, &p); err != nil {
			return err
		}
		r.sink.Lock()
		r.opts.Sink.Progress(p)
		r.sink.Unlock()
	}
}

// questions answers queries and fetches of nodes.
func (r *Run) questions(ctx context.Context, st *sms.Stream) error {
	var asker asker
	nodes := newNodeSender(r, st)
	for {
		m, err := st.Recv(ctx, sms.ClassQuery)
		if err != nil {
			return err
		}
		switch m.Type {
		case sms.TypeQuery:
			err = asker.answer(ctx, r, st, m)
		case sms.TypeFetchNodes:
			err = nodes.answer(ctx, m)
		default:
			err = unexpected(m, st)
		}
		m.Release()
		if err != nil {
			return err
		}
	}
}

func unexpected(m *sms.Received, st *sms.Stream) error {
	return sms.Errorf(sms.CodeProtocol, "unexpected message of type %v on a %v stream", m.Type, st.Kind())
}

// deliveries takes nodes, notices and the end of the run, in order.
func (r *Run) deliveries(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassData)
		if err != nil {
			return err
		}
		switch m.Type {
		case sms.TypeFrame:
			err = r.takeNodes(ctx, m)
		case sms.TypeNotice:
			err = r.takeNotice(m)
		case sms.TypeCommit:
			err = r.commit(ctx, st, m)
		case sms.TypeFinish:
			err = r.finish(ctx, st, m)
		default:
			err = unexpected(m, st)
		}
		m.Release()
		if err != nil {
			return err
		}
		if st.Waiting(sms.ClassData) == 0 {
			err = r.ack(ctx, st)
		}
		if err != nil {
			return err
		}
	}
}

// next checks the sequence of a message of the run stream; false means that it was taken before a lost connection.
func (r *Run) next(seq uint64) (fresh bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case seq == 0 || seq > r.received+1:
		return false, sms.Errorf(sms.CodeProtocol, "message %d on the run stream after %d", seq, r.received)
	case seq <= r.received:
		return false, nil
	}
	return true, nil
}

func (r *Run) taken(seq uint64) {
	r.mu.Lock()
	r.received = seq
	r.mu.Unlock()
}

func (r *Run) takeNodes(ctx context.Context, m *sms.Received) error {
	var f sms.Frame
	if err := m.Decode(&f); err != nil {
		return err
	}
	if fresh, err := r.next(f.Seq); !fresh {
		return err
	}
	err := r.withStore(func() error { return r.opts.Store.PutNodes(context.WithoutCancel(ctx), f.Frame) })
	if err != nil {
		return r.endWire(err)
	}
	r.taken(f.Seq)
	return nil
}

// withStore makes a call to the store of a backup run. A call that is not cancelled with its connection: a store run that
// saw one half done is of no more use.
func (r *Run) withStore(call func() error) error {
	if r.opts.Store == nil {
		return sms.Errorf(sms.CodeProtocol, "a restore run does not write")
	}
	r.store.RLock()
	defer r.store.RUnlock()
	select {
	case <-r.over:
		return sms.Errorf(sms.CodeUnknownRun, "run %s is over", r.opts.ID)
	default:
		return call()
	}
}

func (r *Run) takeNotice(m *sms.Received) error {
	var n sms.SentNotice
	if err := m.Decode(&n); err != nil {
		return err
	}
	if fresh, err := r.next(n.Seq); !fresh {
		return err
	}
	r.sink.Lock()
	r.opts.Sink.Notice(n.Notice)
	r.sink.Unlock()
	r.taken(n.Seq)
	return nil
}

func (r *Run) ack(ctx context.Context, st *sms.Stream) error {
	r.mu.Lock()
	n := r.received
	r.mu.Unlock()
	return st.Send(ctx, &sms.Ack{Received: n})
}

// commit makes the saveset. INVARIANT: no other call to the store is running, and none follows.
func (r *Run) commit(ctx context.Context, st *sms.Stream, m *sms.Received) error {
	var c sms.Commit
	if err := m.Decode(&c); err != nil {
		return err
	}
	if r.opts.Store == nil {
		return sms.Errorf(sms.CodeProtocol, "commit of a restore run")
	}
	r.store.Lock()
	defer r.store.Unlock()
	select {
	case <-r.over:
		return nil // goodbye tells the reason
	default:
	}
	r.sink.Lock()
	res, err := r.opts.Sink.Commit(context.WithoutCancel(ctx), c)
	r.sink.Unlock()
	if err != nil {
		return r.endWire(err)
	}
	// The answer first: the end of the run ends ctx and this stream. If it gets lost the agent asks again: afterlife.
	_ = st.Send(ctx, &res)
	r.end(Result{Committed: &res})
	return errOver
}

// errOver ends the handlers of a run that is over.
var errOver = errors.New("the run is over")

// finish takes the agent's word on how the run ended.
func (r *Run) finish(ctx context.Context, st *sms.Stream, m *sms.Received) error {
	var o sms.Outcome
	if err := m.Decode(&o); err != nil {
		return err
	}
	res := Result{Outcome: &o}
	if o.Code != "" {
		res.Err = &sms.Error{Code: sms.Code(o.Code), Message: o.Message, Remote: true}
	} else if r.opts.Store != nil {
		res.Err = sms.Errorf(sms.CodeInternal, "the agent ended a backup without a commit")
	}
	_ = st.Send(ctx, &sms.Finished{})
	r.end(res)
	return errOver
}

// afterlife answers an agent that lost the connection before it learned how the run ended.
func (r *Run) afterlife(ctx context.Context, st *sms.Stream, why error) error {
	r.mu.Lock()
	res := r.result
	r.mu.Unlock()
	if res.Committed == nil && res.Outcome == nil {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := st.Send(ctx, r.welcome(math.MaxUint64)); err != nil {
		return err
	}
	for {
		m, err := st.Recv(ctx, sms.ClassData)
		if err != nil {
			return err
		}
		t := m.Type
		m.Release()
		switch {
		case t == sms.TypeCommit && res.Committed != nil:
			return st.Send(ctx, res.Committed)
		case t == sms.TypeFinish && res.Outcome != nil:
			return st.Send(ctx, &sms.Finished{})
		case t == sms.TypeCommit || t == sms.TypeFinish:
			return why
		}
	}
}
