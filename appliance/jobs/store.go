package jobs

import (
	"context"
	"sync/atomic"
	"time"

	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// Store is what jobs needs of the store; FromStore makes one of a *dedup.Store.
type Store interface {
	// DomainByID finds the domain of a task's runs, or of a saveset; Domain is that of tasks which are not encrypted.
	DomainByID(id digest.DomainID) (dedup.Domain, error)
	Domain() dedup.Domain
	Begin(ctx context.Context, o dedup.RunOptions) (StoreRun, error)
	View(ctx context.Context, id dedup.SavesetID) (StoreView, error)
	// SetState writes a new state, durable on return.
	SetState(ctx context.Context, id dedup.SavesetID, change func(dedup.State) dedup.State) (dedup.State, error)
	// Harmed returns the savesets that cannot be read whole.
	Harmed(ctx context.Context) (map[dedup.SavesetID]bool, error)
}

// StoreRun is a run of the store.
type StoreRun interface {
	ingest.Store
	Commit(ctx context.Context, d dedup.Draft) (dedup.Manifest, error)
	Abort(ctx context.Context, reason string) error
	Stats() dedup.RunStats
}

// StoreView reads one saveset.
type StoreView interface {
	ingest.View
	Manifest() dedup.Manifest
	Close() error
}

// FromStore adapts the engine's store.
func FromStore(s *dedup.Store) Store { return engine{s} }

type engine struct{ *dedup.Store }

func (e engine) Begin(ctx context.Context, o dedup.RunOptions) (StoreRun, error) {
	r, err := e.Store.Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	return engineRun{ingest.FromRun(r), r}, nil
}

func (e engine) View(ctx context.Context, id dedup.SavesetID) (StoreView, error) {
	v, err := e.Store.View(ctx, id)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// engineRun has ingest's methods from the adapter and the rest from the run.
type engineRun struct {
	ingest.Store
	run *dedup.Run
}

func (r engineRun) Commit(ctx context.Context, d dedup.Draft) (dedup.Manifest, error) {
	return r.run.Commit(ctx, d)
}
func (r engineRun) Abort(ctx context.Context, reason string) error { return r.run.Abort(ctx, reason) }
func (r engineRun) Stats() dedup.RunStats                          { return r.run.Stats() }

// Agents is what jobs needs of the connections to agents; FromServer makes one of an *ingest.Server.
type Agents interface {
	Presence(client string) ingest.Presence
	Send(ctx context.Context, client string, o sms.Order) (sms.Reply, error)
	StartRun(o ingest.RunOptions) (AgentRun, error)
}

// AgentRun is the agent's end of a run, as *ingest.Run.
type AgentRun interface {
	Token() sms.Token
	Wait(ctx context.Context) ingest.Result
	Cancel(reason string)
}

// FromServer adapts ingest's server.
func FromServer(s *ingest.Server) Agents { return server{s} }

type server struct{ *ingest.Server }

func (s server) StartRun(o ingest.RunOptions) (AgentRun, error) {
	r, err := s.Server.StartRun(o)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// stopwatch sums the time that all workers spend in the store.
type stopwatch struct{ ns atomic.Int64 }

func (w *stopwatch) since(start time.Time) { w.ns.Add(int64(time.Since(start))) }
func (w *stopwatch) total() time.Duration  { return time.Duration(w.ns.Load()) }

// timedStore measures a backup's time in the store.
type timedStore struct {
	ingest.Store
	watch *stopwatch
}

func (s timedStore) Have(ctx context.Context, ds []digest.Digest, out []bool) error {
	defer s.watch.since(time.Now())
	return s.Store.Have(ctx, ds, out)
}

func (s timedStore) PutNodes(ctx context.Context, f frame.Frame) error {
	defer s.watch.since(time.Now())
	return s.Store.PutNodes(ctx, f)
}

func (s timedStore) Lane(durable func(uint64)) (ingest.Lane, error) {
	l, err := s.Store.Lane(durable)
	if err != nil {
		return nil, err
	}
	return timedLane{l, s.watch}, nil
}

type timedLane struct {
	ingest.Lane
	watch *stopwatch
}

func (l timedLane) PutFrame(ctx context.Context, f frame.Frame) (uint64, error) {
	defer l.watch.since(time.Now())
	return l.Lane.PutFrame(ctx, f)
}

func (l timedLane) Flush(ctx context.Context) error {
	defer l.watch.since(time.Now())
	return l.Lane.Flush(ctx)
}

// timedView measures the time of reading from the store.
type timedView struct {
	ingest.View
	watch *stopwatch
}

func (v timedView) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	defer v.watch.since(time.Now())
	return v.View.Node(ctx, d)
}

func (v timedView) Plan(ctx context.Context, ds []digest.Digest) ([]dedup.PlanItem, error) {
	defer v.watch.since(time.Now())
	return v.View.Plan(ctx, ds)
}

func (v timedView) Frame(ctx context.Context, loc dedup.Loc, buf *dedup.FrameBuffer) (frame.Frame, error) {
	defer v.watch.since(time.Now())
	return v.View.Frame(ctx, loc, buf)
}
