package ingest

import (
	"context"
	"sync"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// Store is the run of the store that a backup writes to. FromRun makes one of a *dedup.Run.
type Store interface {
	// Have fills out: true means present and pinned for the run.
	Have(ctx context.Context, ds []digest.Digest, out []bool) error
	// Lane opens a stream of data frames. durable gets the sequence up to which frames are durable; it must not block.
	Lane(durable func(seq uint64)) (Lane, error)
	// PutNodes takes a frame of nodes, children before parents.
	PutNodes(ctx context.Context, f frame.Frame) error
}

// Lane is one stream of data frames into the store; *dedup.Lane implements it.
type Lane interface {
	// PutFrame verifies a frame and takes it. f.Stored is not kept.
	PutFrame(ctx context.Context, f frame.Frame) (seq uint64, err error)
	// Flush makes everything put so far durable.
	Flush(ctx context.Context) error
	// Durable returns the sequence of the last durable frame.
	Durable() uint64
}

// View reads a saveset; *dedup.View implements it. Methods may be called from many goroutines.
type View interface {
	Node(ctx context.Context, d digest.Digest) ([]byte, error)
	Plan(ctx context.Context, ds []digest.Digest) ([]dedup.PlanItem, error)
	// Frame returns a frame that lies in buf and is valid until buf is used again.
	Frame(ctx context.Context, loc dedup.Loc, buf *dedup.FrameBuffer) (frame.Frame, error)
}

var (
	_ View = (*dedup.View)(nil)
	_ Lane = (*dedup.Lane)(nil)
)

// Sink gets what a run's agent reports. Calls come one at a time.
type Sink interface {
	// Opened is called when the agent has opened the run, and again each time it resumed.
	Opened(resumed bool)
	// Interrupted is called when the connection is lost; the run waits for the agent until the time given.
	Interrupted(cause error, until time.Time)
	Progress(p sms.Progress)
	Notice(n sms.Notice)
	// Commit makes the saveset: it calls the store run's Commit and whatever the appliance records. It is called at most
	// once, when all that the agent sent is in the store and no other call to the store is running. The error is told to
	// the agent and is the run's.
	Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error)
}

// RunOptions describe a run that is expected from an agent.
type RunOptions struct {
	ID     string
	Client string
	// Token is what the order carries; a zero one is made.
	Token sms.Token
	Sink  Sink

	// The domain of the store.
	Domain   digest.DomainID
	Key      digest.DomainKey
	Chunking chunk.Params

	// Store of a backup run; nil in a restore run.
	Store Store
	// Parent of a backup run, read through View; nil when everything is read.
	Parent *Parent
	// Root is what a restore run restores, read through View.
	Root recipe.Ref
	// View of the parent's or the restored saveset.
	View View
	// MaxLanes bounds the lanes; 0 means DefaultLanes.
	MaxLanes int
}

// Parent is the reference of a backup run.
type Parent struct {
	Root, Side recipe.Ref
	Started    time.Time // by the client's clock
}

// DefaultLanes is how many lanes a run may open.
const DefaultLanes = 8

// FromRun adapts a store's run.
func FromRun(r *dedup.Run) Store { return storeRun{r} }

type storeRun struct{ *dedup.Run }

func (r storeRun) Lane(durable func(seq uint64)) (Lane, error) {
	l, err := r.Run.Lane(dedup.LaneOptions{Durable: durable})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Result is how a run ended.
type Result struct {
	// Committed is set when the saveset was made.
	Committed *sms.CommitResult
	// Outcome is what the agent told in the end where there was no commit.
	Outcome *sms.Outcome
	// Err is why the run failed: nil when committed or when the agent told a good outcome. sms.CodeOf tells the kind;
	// an error of the store is within reach of errors.As.
	Err error
}

// Run is one run of an agent, from before its order is sent until it is over.
//
// States: waiting (for the agent to open it, or to come back) ⇄ attached (to a stream of a connection) → over. A run that
// waits too long is over. The stream handlers of a run are its only goroutines; each registers with enter and leaves
// before Wait returns.
type Run struct {
	srv   *Server
	opts  RunOptions
	shown shown

	over  chan struct{}
	inUse sync.WaitGroup // handlers that may touch store and sink

	// store is held shared by every call to the store, and whole by the commit.
	store sync.RWMutex
	// sink serialises the calls to the sink.
	sink sync.Mutex

	mu sync.Mutex
	// mu guards all below.
	result   Result
	isOver   bool
	opened   bool
	attached *agentConn
	takeover func()           // ends the handler of the run stream
	released chan struct{}    // closed when that handler is gone
	received uint64           // highest sequence taken from the run stream
	lanes    map[uint8]*lane  // made at their first opening
	hooks    map[*hook]func() // called at the end
	timer    *time.Timer
}

type hook struct{ _ byte }

// StartRun registers a run under its token; then send the order. The caller must Wait.
func (s *Server) StartRun(opts RunOptions) (*Run, error) {
	if opts.Token.IsZero() {
		opts.Token = sms.NewToken()
	}
	if opts.MaxLanes <= 0 || opts.MaxLanes > 255 {
		opts.MaxLanes = DefaultLanes
	}
	r := &Run{srv: s, opts: opts, shown: newShown(), over: make(chan struct{}), lanes: map[uint8]*lane{}, hooks: map[*hook]func(){}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs[opts.Token] != nil {
		return nil, sms.Errorf(sms.CodeInternal, "start run %s: its token is in use", opts.ID)
	}
	s.runs[opts.Token] = r
	r.timer = time.AfterFunc(s.opts.ResumeWindow, func() {
		r.end(Result{Err: sms.Errorf(sms.CodeTimeout, "the agent did not come within %v", s.opts.ResumeWindow)})
	})
	return r, nil
}

// Token is what the order must carry.
func (r *Run) Token() sms.Token { return r.opts.Token }

// Wait returns when the run is over and no goroutine of it touches the store or the sink any more. A done ctx cancels the
// run first. It must be called once.
func (r *Run) Wait(ctx context.Context) Result {
	select {
	case <-r.over:
	case <-ctx.Done():
		r.Cancel(context.Cause(ctx).Error())
		<-r.over
	}
	r.inUse.Wait()
	r.shown.drop()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lanes = nil
	return r.result
}

// Cancel ends the run: the agent is told, and Wait returns an error with sms.CodeCancelled. Calls after the first, and
// after the end, do nothing. A commit that has begun is not cancelled.
func (r *Run) Cancel(reason string) {
	r.stop(sms.Errorf(sms.CodeCancelled, "cancelled: %s", reason))
}

// stop ends the run from outside. A commit that is running has won: it is waited for.
func (r *Run) stop(cause error) {
	r.store.Lock()
	defer r.store.Unlock()
	r.end(Result{Err: cause})
}

// end ends the run; the first result stays.
func (r *Run) end(res Result) {
	r.mu.Lock()
	if r.isOver {
		r.mu.Unlock()
		return
	}
	r.isOver = true
	r.result = res
	r.timer.Stop()
	hooks := r.hooks
	r.hooks = nil
	close(r.over)
	r.mu.Unlock()
	for _, cancel := range hooks {
		cancel()
	}
	time.AfterFunc(r.srv.opts.ResumeWindow, r.forget)
}

// forget drops the record of a run that is over.
func (r *Run) forget() {
	r.srv.mu.Lock()
	defer r.srv.mu.Unlock()
	delete(r.srv.runs, r.opts.Token)
}

// endWire ends the run with an error and returns what the agent is told.
func (r *Run) endWire(err error) error {
	e := wireError(err)
	r.end(Result{Err: e})
	return e
}

// enter registers a handler; its ctx ends with the run. The handler must call leave.
func (r *Run) enter(ctx context.Context) (inner context.Context, leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver {
		return nil, nil, r.overLocked()
	}
	inner, cancel := context.WithCancel(ctx)
	h := &hook{}
	r.hooks[h] = cancel
	r.inUse.Add(1)
	return inner, func() {
		cancel()
		r.mu.Lock()
		delete(r.hooks, h)
		r.mu.Unlock()
		r.inUse.Done()
	}, nil
}

// whyOver tells an agent why a run is over, nil while it is not.
func (r *Run) whyOver() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver {
		return nil
	}
	return r.overLocked()
}

// overLocked tells an agent why a run is over.
func (r *Run) overLocked() error {
	if r.result.Err != nil {
		return ended{wireError(r.result.Err)}
	}
	return ended{sms.Errorf(sms.CodeUnknownRun, "run %s is over", r.opts.ID)}
}

// run finds a run for a client by its token. Another client's run is as unknown as one that never was.
func (a *agentConn) run(token sms.Token) (*Run, error) {
	a.srv.mu.Lock()
	r := a.srv.runs[token]
	a.srv.mu.Unlock()
	switch {
	case r == nil:
		a.log.Warn("agent shows an unknown run token")
	case r.opts.Client != a.client:
		a.log.Warn("agent shows the run token of another client", "run", r.opts.ID, "owner", r.opts.Client)
	default:
		return r, nil
	}
	return nil, sms.Errorf(sms.CodeUnknownRun, "no run has this token, or it is over since long")
}
