package ingest

import (
	"context"
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
	// Lane opens a stream of data frames.
	Lane(durable func(seq uint64)) (Lane, error)
	// PutNodes takes a frame of nodes, children before parents.
	PutNodes(ctx context.Context, f frame.Frame) error
}

// Lane is one stream of data frames into the store.
type Lane interface {
	PutFrame(ctx context.Context, f frame.Frame) (seq uint64, err error)
	Flush(ctx context.Context) error
	Durable() uint64
}

// View reads a saveset; *dedup.View implements it.
type View interface {
	Node(ctx context.Context, d digest.Digest) ([]byte, error)
	Plan(ctx context.Context, ds []digest.Digest) ([]dedup.PlanItem, error)
	Frame(ctx context.Context, loc dedup.Loc) (frame.Frame, error)
}

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

// Run is one run of an agent, from before its order is sent until it is over.
type Run struct{}

// StartRun registers a run under its token; then send the order. The caller must Wait.
func (s *Server) StartRun(opts RunOptions) (*Run, error) { panic("todo") }

// Token is what the order must carry.
func (r *Run) Token() sms.Token { panic("todo") }

// Result is how a run ended.
type Result struct {
	// Committed is set when the saveset was made.
	Committed *sms.CommitResult
	// Outcome is what the agent told in the end where there was no commit.
	Outcome *sms.Outcome
	// Err is why the run failed: *sms.Error or an error of the store; nil when committed or a restore was done.
	Err error
}

// Wait returns when the run is over and no goroutine of it touches the store or the sink any more. A done ctx cancels the
// run first. It must be called once.
func (r *Run) Wait(ctx context.Context) Result { panic("todo") }

// Cancel ends the run: the agent is told, and Wait returns an error with sms.CodeCancelled. Calls after the first, and
// after the end, do nothing. A commit that has begun is not cancelled.
func (r *Run) Cancel(reason string) { panic("todo") }
