package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// Session is a run over a Link. A keeper goroutine gives it a run stream on every connection that the Link makes, and
// each lane has a keeper of its own; all end with the session.
type Session struct {
	link     *Link
	token    sms.Token
	welcome  sms.RunWelcome
	domain   Domain
	parent   *Parent
	run      *pipe // the run stream's
	inflight *inflight
	out      *nodeWriter
	in       *nodeReader
	fetchers chan uint8 // lanes that are free for a Fetch
	progress latest[sms.Progress]

	done   chan struct{}
	cancel context.CancelFunc // ends the keepers
	keeper sync.WaitGroup

	mu sync.Mutex
	// mu guards all below.
	err      error
	over     bool
	lanes    map[uint8]*lane
	start    func(l *lane) // starts a lane's keeper
	at       *attachment
	reopened chan struct{} // closed when at changes
	final    chan error    // gets the end of a commit or finish; nil while none is asked for
	told     bool          // the commit or finish was answered
	result   sms.CommitResult
}

var _ Run = (*Session)(nil)

// attachment is one connection on which the run is open.
type attachment struct {
	conn *sms.Conn
	st   *sms.Stream
}

// runWindow is how many bytes of nodes and notices are kept unacknowledged.
const runWindow = 4 << 20

// reopenPause is the wait before a run is opened again on a connection that is still up.
const reopenPause = 100 * time.Millisecond

// Open opens the run that an order named by its token. ctx bounds the opening alone.
func (l *Link) Open(ctx context.Context, token sms.Token) (*Session, error) {
	s := &Session{link: l, token: token, done: make(chan struct{}), lanes: map[uint8]*lane{}, reopened: make(chan struct{})}
	s.run = newPipe(runWindow, s.done, s.Err)
	s.inflight = newInflight(s.done, s.Err)
	at, err := s.openAnywhere(ctx, nil, false, &s.welcome)
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	w := &s.welcome
	s.domain = Domain{ID: w.Domain, Keys: digest.Derive(w.Key), Chunking: w.Chunking}
	if !w.Restore && !w.Root.Digest.IsZero() {
		s.parent = &Parent{Root: w.Root, Side: w.Side, Started: w.ParentStarted}
	}
	s.progress = newLatest[sms.Progress]()
	s.in = newNodeReader(s)
	s.out = newNodeWriter(s)
	s.fetchers = make(chan uint8, s.MaxLanes())
	for i := range s.MaxLanes() {
		s.fetchers <- uint8(i)
	}
	live, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.start = func(l *lane) { s.keeper.Go(func() { l.keep(live) }) }
	s.keeper.Go(func() { s.keep(live, at) })
	s.keeper.Go(func() { s.out.work(live) })
	return s, nil
}

// open opens the run on a connection.
func (s *Session) open(ctx context.Context, conn *sms.Conn, resume bool, w *sms.RunWelcome) (*attachment, error) {
	st, err := conn.Open(sms.StreamRun)
	if err != nil {
		return nil, err
	}
	if err = st.Send(ctx, &sms.RunOpen{Token: s.token, Resume: resume}); err == nil {
		err = st.RecvMessage(ctx, w)
	}
	if err == nil && w.MaxLanes == 0 {
		err = sms.Errorf(sms.CodeProtocol, "the appliance allows no lane")
	}
	if err != nil {
		st.Close(sms.CodeInternal, "the run was not opened")
		return nil, err
	}
	return &attachment{conn, st}, nil
}

// keep serves the run stream, and opens it anew on a new connection, until the session is over.
func (s *Session) keep(ctx context.Context, at *attachment) {
	received := s.welcome.Received
	for {
		err := s.serve(ctx, at, received)
		at.st.Close("", "")
		if ctx.Err() != nil || s.answered() {
			return
		}
		if e, ok := errors.AsType[*sms.Error](err); ok && at.conn.Err() == nil {
			s.end(e) // the appliance ended the run, or broke the protocol
			return
		}
		s.link.opts.Logger.Warn("run interrupted", "run", s.ID(), "cause", err)
		if at, received, err = s.reopen(ctx, at); err != nil {
			s.end(err)
			return
		}
		s.link.opts.Logger.Info("run resumed", "run", s.ID())
	}
}

// reopen waits for a new connection and comes back to the run on it.
func (s *Session) reopen(ctx context.Context, old *attachment) (*attachment, uint64, error) {
	window := s.link.opts.ResumeWindow
	if w := s.welcome.ResumeWindow; w > 0 {
		window = min(window, w)
	}
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	last := old.conn
	if last.Err() == nil {
		last = nil // the stream alone was lost
	}
	var w sms.RunWelcome
	at, err := s.openAnywhere(ctx, last, true, &w)
	if errors.Is(err, context.DeadlineExceeded) {
		err = sms.Errorf(sms.CodeTimeout, "no connection to the appliance for %v", window)
	}
	return at, w.Received, err
}

// openAnywhere opens the run on a connection other than last, and on the next one where that is lost.
func (s *Session) openAnywhere(ctx context.Context, last *sms.Conn, resume bool, w *sms.RunWelcome) (*attachment, error) {
	for {
		conn, err := s.link.conn(ctx, last)
		if err != nil {
			return nil, err
		}
		at, err := s.open(ctx, conn, resume, w)
		if err == nil {
			return at, nil
		}
		if e, ok := errors.AsType[*sms.Error](err); ok && conn.Err() == nil {
			return nil, e
		}
		last = conn
		if conn.Err() == nil { // the stream alone was lost
			last = nil
			select {
			case <-time.After(reopenPause):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// serve runs the session on one connection.
func (s *Session) serve(ctx context.Context, at *attachment, received uint64) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.setAttached(nil)
	defer s.run.detach(at.st)
	var all sync.WaitGroup
	defer all.Wait() // first: what has arrived is taken before anybody learns that the connection is gone
	errs := make(chan error, 5)
	run := func(fn func() error) {
		all.Go(func() {
			errs <- fn()
			cancel()
		})
	}
	run(func() error { return s.orders(inner, at.st) })
	run(func() error { return s.answers(inner, at.st) })
	run(func() error { return s.nodes(inner, at.st) })
	s.setAttached(at)
	if err := s.run.attach(inner, at.st, received); err != nil {
		cancel()
		return err
	}
	run(func() error { return s.run.send(inner, at.st) })
	run(func() error { return s.report(inner, at.st) })
	err := <-errs
	cancel()
	return err
}

func (s *Session) setAttached(at *attachment) {
	s.mu.Lock()
	s.at = at
	close(s.reopened)
	s.reopened = make(chan struct{})
	s.mu.Unlock()
}

// attached waits for an attachment other than not.
func (s *Session) attached(ctx context.Context, not *attachment) (*attachment, error) {
	for {
		s.mu.Lock()
		at, reopened := s.at, s.reopened
		s.mu.Unlock()
		if at != nil && at != not {
			return at, nil
		}
		select {
		case <-reopened:
		case <-s.done:
			return nil, whyOver(s.Err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// orders takes what the appliance tells about the end of the run.
func (s *Session) orders(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassOrder)
		if err != nil {
			return err
		}
		switch m.Type {
		case sms.TypeCommitResult:
			var res sms.CommitResult
			if err = m.Decode(&res); err == nil {
				s.mu.Lock()
				s.result = res
				s.mu.Unlock()
				s.finished()
			}
		case sms.TypeFinished:
			s.finished()
		default:
			err = sms.Errorf(sms.CodeProtocol, "unexpected message of type %v", m.Type)
		}
		m.Release()
		if err != nil {
			return err
		}
	}
}

// finished ends the session well, when it has asked for that.
func (s *Session) finished() {
	s.mu.Lock()
	final := s.final
	s.final, s.told = nil, true
	s.mu.Unlock()
	if final != nil {
		final <- nil
	}
}

// answered reports whether the last question of the run has its answer.
func (s *Session) answered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told
}

// answers takes the query class of the run stream.
func (s *Session) answers(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassQuery)
		if err != nil {
			return err
		}
		err = takeAnswer(s.run, m)
		m.Release()
		if err != nil {
			return err
		}
	}
}

// report sends the newest progress.
func (s *Session) report(ctx context.Context, st *sms.Stream) error {
	for {
		p, err := s.progress.next(ctx)
		if err != nil {
			return err
		}
		if err := st.Send(ctx, &p); err != nil {
			return err
		}
	}
}

// end ends the session; the first cause stays. A nil one means that all is done.
func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over, s.err = true, err
	close(s.done)
	s.cancel()
}

// ID implements Run.
func (s *Session) ID() string { return s.welcome.RunID }

// Domain implements Run.
func (s *Session) Domain() Domain { return s.domain }

// Parent implements Run.
func (s *Session) Parent() *Parent { return s.parent }

// Root implements Run.
func (s *Session) Root() recipe.Ref {
	if !s.welcome.Restore {
		return recipe.Ref{}
	}
	return s.welcome.Root
}

// MaxLanes implements Run.
func (s *Session) MaxLanes() int { return int(s.welcome.MaxLanes) }

// Lane implements Run.
func (s *Session) Lane(i int) Lane {
	if i < 0 || i >= s.MaxLanes() {
		panic(fmt.Sprintf("uplink: lane %d of %d", i, s.MaxLanes()))
	}
	return s.lane(uint8(i))
}

func (s *Session) lane(i uint8) *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[i]
	if l == nil {
		l = newLane(s, i)
		s.lanes[i] = l
		if !s.over {
			s.start(l)
		}
	}
	return l
}

// PutNode implements Run.
func (s *Session) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	return s.out.put(ctx, d, rec)
}

// Node implements Run.
func (s *Session) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	return s.in.node(ctx, d)
}

// Progress implements Run.
func (s *Session) Progress(p sms.Progress) {
	p.Current = p.Current[:min(len(p.Current), 4<<10)]
	s.progress.set(p)
}

// Notice implements Run. It blocks only while megabytes of notices and nodes wait to be sent.
func (s *Session) Notice(n sms.Notice) {
	n.Message = n.Message[:min(len(n.Message), 8<<10)]
	n.Path = n.Path[:min(len(n.Path), 32<<10)] // JSON may make six bytes of one: the message must stay within its limit
	b := sms.NewBuffer(512)
	b.B = sms.Append(b.B, &sms.SentNotice{Notice: n})
	_ = s.run.put(context.Background(), sms.TypeNotice, b, nil) // fails only when the session is over
}

// Commit implements Run.
func (s *Session) Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error) {
	err := s.out.finish(ctx)
	if err == nil {
		err = s.drain(ctx)
	}
	if err == nil {
		err = s.ask(ctx, &c)
	}
	if err != nil {
		return sms.CommitResult{}, fmt.Errorf("commit run %s: %w", s.ID(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result, nil
}

// drain waits until the appliance has taken all frames, nodes and notices.
func (s *Session) drain(ctx context.Context) error {
	s.mu.Lock()
	pipes := []*pipe{s.run}
	for _, l := range s.lanes {
		pipes = append(pipes, l.p)
	}
	s.mu.Unlock()
	for _, p := range pipes {
		if err := p.drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Finish implements Run.
func (s *Session) Finish(ctx context.Context, o sms.Outcome) error {
	err := s.run.drain(ctx) // the notices
	if err == nil {
		err = s.ask(ctx, &o)
	}
	if err != nil {
		return fmt.Errorf("finish run %s: %w", s.ID(), err)
	}
	return nil
}

// ask sends the last message of a run, again on every new connection, until it is answered. Then the session is over.
func (s *Session) ask(ctx context.Context, m sms.Message) error {
	final := make(chan error, 1)
	s.mu.Lock()
	s.final = final
	s.mu.Unlock()
	var last *attachment
	for {
		at, err := s.attached(ctx, last)
		if err != nil {
			return err
		}
		last = at
		_ = at.st.Send(ctx, m) // where this fails there is a new attachment soon, or the session is over
		select {
		case <-final:
			s.end(nil)
			return nil
		case <-s.left(at):
			select { // the answer may have been the last thing to arrive
			case <-final:
				s.end(nil)
				return nil
			default:
			}
		case <-s.done:
			return whyOver(s.Err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// left returns a channel that is closed when the session is no longer attached to at.
func (s *Session) left(at *attachment) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == at {
		return s.reopened
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// Done implements Run.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err implements Run.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close implements Run.
func (s *Session) Close() error {
	s.mu.Lock()
	at, over := s.at, s.over
	s.mu.Unlock()
	if !over && at != nil {
		at.st.Close(sms.CodeCancelled, "the agent gave the run up")
	}
	s.end(sms.Errorf(sms.CodeCancelled, "the run was closed"))
	s.keeper.Wait()
	s.run.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		l.p.release()
	}
	return nil
}
