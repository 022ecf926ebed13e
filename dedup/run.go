package dedup

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/seal"
)

// RunOptions describe a run.
type RunOptions struct {
	// ID is the run's name for logs and the manifest.
	ID string
	// Domain that the run writes into; its zero value means the primary one. Have and PutNodes know what this domain has,
	// and nothing else.
	Domain digest.DomainID
	// SealedBy is the task key that seals all nodes of the run; its zero value means that none is sealed. Only for a domain
	// that is not the primary one.
	SealedBy seal.ID
	// Parents are leased until the run ends.
	Parents []SavesetID
	// Rewrite lets the run store up to 5 % of what it has anew, where reading it back would gather it from many containers:
	// Have answers "missing" for such chunks. It is for runs that read everything again (FULL, COPY, streams).
	Rewrite bool
	// Previous is a saveset that the run is likely to be like: the last one of the same source. Where Rewrite is set, the frames of
	// which that one has little are stored anew before all else, as long as it is there. Its zero value: none is known.
	Previous SavesetID
}

// Run writes one saveset. It holds a lease on its parents and pins every container that it wrote or was told "have"
// from. Methods may be called from many goroutines. After an error of its own (disk full, I/O) the run has failed: every
// later call returns the same error, and only Abort is of use; refusals of what an agent sent (WrongDigest, BadFrame,
// UnknownChild, BadNode) do not fail the run: the caller decides.
type Run struct {
	s       *Store
	opts    RunOptions
	domain  Domain
	log     *slog.Logger
	pins    *pinSet
	known   *knownSet
	nodes   *nodeWriter
	lanes   *laneSet
	layout  *layout
	failure atomic.Pointer[Error]
	counts  runCounts
	damage  uint64 // version of the damage list when the run began
	// firstKey is the oldest store key that a container of the run may name.
	firstKey uint32

	endLookBack func() // ends the look at Previous and waits for that

	end   sync.Mutex // held by Commit and Abort
	ended bool       // guarded by end
}

// runCounts are the counters behind RunStats.
type runCounts struct {
	chunks, newBytes, nodes, nodeBytes, stored atomic.Uint64
}

// RunStats counts what a run added.
type RunStats struct {
	// Chunks and NewBytes (plain) that arrived in frames; Nodes and NodeBytes likewise.
	Chunks, NewBytes, Nodes, NodeBytes uint64
	// StoredBytes in sealed containers so far.
	StoredBytes uint64
}

// Begin opens a run. Kind NotFound for a parent or a domain that does not exist.
func (s *Store) Begin(ctx context.Context, opts RunOptions) (*Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	domain, err := s.runDomain(opts)
	if err != nil {
		return nil, err
	}
	r := &Run{s: s, opts: opts, domain: domain, log: s.log.With("run", opts.ID), pins: newPinSet(s.containers), known: newKnownSet(), lanes: &laneSet{},
		layout: newLayout(opts.Rewrite), endLookBack: func() {}}
	r.nodes = newNodeWriter(r)
	r.damage = s.damage.now()
	for i, id := range opts.Parents {
		if _, err := s.sets.lease(id); err != nil {
			s.releaseLeases(opts.Parents[:i])
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.releaseLeases(opts.Parents)
		return nil, &Error{Kind: Closed, Op: "begin run", Object: opts.ID}
	}
	r.firstKey = s.ring.Current() // before the run is seen: who finds no run with an old key finds no container to come
	s.runs[r] = struct{}{}
	r.lookBack(opts.Previous)
	return r, nil
}

func (s *Store) releaseLeases(ids []SavesetID) {
	for _, id := range ids {
		s.sets.release(id)
	}
}

// ID returns the name given at Begin.
func (r *Run) ID() string { return r.opts.ID }

// Stats returns what the run has added so far.
func (r *Run) Stats() RunStats {
	c := &r.counts
	return RunStats{Chunks: c.chunks.Load(), NewBytes: c.newBytes.Load(), Nodes: c.nodes.Load(),
		NodeBytes: c.nodeBytes.Load(), StoredBytes: c.stored.Load()}
}

// fail makes the run failed, by the first error that comes, and returns the error that made it so.
func (r *Run) fail(err error) error {
	var e *Error
	if wrapped, ok := wrap("run", r.opts.ID, err).(*Error); ok {
		e = wrapped
	} else {
		e = &Error{Kind: KindOf(err), Op: "run", Object: r.opts.ID, Err: err}
	}
	if r.failure.CompareAndSwap(nil, e) && e.Kind != Closed {
		r.log.Error("run failed", "err", e)
	}
	return r.failure.Load()
}

// alive returns the error of a run that has failed or ended.
func (r *Run) alive() error {
	if e := r.failure.Load(); e != nil {
		return e
	}
	return nil
}

// Have fills out[i] with whether ds[i] (a data chunk or a node) is present. len(out) must be len(ds).
//
// INVARIANT: true means present AND pinned: it stays so until the run ends. True for a node means that everything
// below it is present, too. What is on the damage list, or above it, is not present. False may be said of a chunk that is
// present: see RunOptions.Rewrite.
func (r *Run) Have(ctx context.Context, ds []digest.Digest, out []bool) error {
	if len(out) != len(ds) {
		return &Error{Kind: Invalid, Op: "have"}
	}
	if err := r.alive(); err != nil {
		return err
	}
	if r.known.has(ds, out) == 0 {
		return nil
	}
	todo := make([]int, 0, len(ds))
	for i := range ds {
		if !out[i] {
			todo = append(todo, i)
		}
	}
	places := make([]found, len(ds))
	err := r.pinPlaces(ctx, ds, todo, func(i int, at found) {
		if !r.s.damage.bars(at) {
			places[i] = at
		}
	})
	r.layout.had(ds, places, out)
	return err
}

// pinPlaces looks for those digests of ds that todo names, pins where they are and calls hit for each that is present
// and pinned. An error is one of I/O: then hit may have been called for some.
func (r *Run) pinPlaces(ctx context.Context, ds []digest.Digest, todo []int, hit func(i int, at found)) error {
	q := &query{r: r, ds: make([]digest.Digest, len(todo)), at: make([]found, len(todo)), rest: todo, hit: hit}
	for j, i := range todo {
		q.ds[j] = ds[i]
	}
	r.s.dirs.find(q.ds, q.at)
	q.takeNear()
	// What the index finds brings a directory in, and with it the neighbours: a few are asked for at a time, and more as
	// long as that does not help.
	for n := indexFirst; len(q.rest) > 0; {
		if err := q.askIndex(ctx, min(n, len(q.rest))); err != nil || len(q.rest) == 0 {
			return err
		}
		r.s.dirs.findAgain(q.ds[:len(q.rest)], q.at[:len(q.rest)])
		if near := q.takeNear(); near > 0 {
			r.s.dirs.came(near)
		} else {
			n *= 2
		}
	}
	return nil
}

// indexFirst is how many digests are looked up in the index before the locality cache is asked again.
const indexFirst = 8

// query is digests that are looked for. ds and at are of rest, and as long or longer.
type query struct {
	r    *Run
	ds   []digest.Digest
	at   []found
	rest []int // the caller's numbers of those not found yet
	hit  func(i int, at found)
}

// takeNear takes what the locality cache found, and returns how many those are.
func (q *query) takeNear() (n int) {
	rest := q.rest[:0]
	for j, i := range q.rest {
		if q.r.takeNear(q.at[j]) {
			q.hit(i, q.at[j])
			n++
		} else {
			q.ds[len(rest)] = q.ds[j]
			rest = append(rest, i)
		}
	}
	q.rest = rest
	return n
}

// askIndex looks the first n up in the index. They are done with then, found or not.
func (q *query) askIndex(ctx context.Context, n int) error {
	err := q.r.pinIndexed(ctx, q.ds[:n], func(j int, at found) { q.hit(q.rest[j], at) })
	q.ds, q.at, q.rest = q.ds[n:], q.at[n:], q.rest[n:]
	return err
}

// takeNear pins a place that the locality cache knows. Only the canonical copy of a data chunk counts: what GC keeps is
// the copy that the index names, and nodes it takes out of the index one by one.
func (r *Run) takeNear(at found) bool {
	return at.dir != nil && at.canonical && at.dir.Kind() == container.Data && r.takes(at) &&
		!r.s.containers.overtaken(at.dir.ID())
}

// takes pins a place if it is of the run's domain.
func (r *Run) takes(at found) bool {
	return at.dir.Domain() == r.domain.ID && r.pins.pin(at.dir.ID())
}

func (r *Run) pinIndexed(ctx context.Context, ds []digest.Digest, hit func(j int, at found)) error {
	places, err := r.s.indexed(ctx, ds)
	if err != nil {
		return err
	}
	var doubts []int
	for j, at := range places {
		switch {
		case at.dir == nil || !r.takes(at):
		case r.s.containers.overtaken(at.dir.ID()):
			doubts = append(doubts, j)
		default:
			hit(j, at)
		}
	}
	return r.confirm(ctx, ds, places, doubts, hit)
}

// confirm asks the index again for places in containers that were condemned at some time: between the first answer and the
// pin the entry may have gone, or moved. Now that the container is pinned it cannot.
func (r *Run) confirm(ctx context.Context, ds []digest.Digest, places []found, doubts []int, hit func(j int, at found)) error {
	if len(doubts) == 0 {
		return nil
	}
	sub := make([]digest.Digest, len(doubts))
	for i, j := range doubts {
		sub[i] = ds[j]
	}
	now, err := r.s.indexed(ctx, sub)
	if err != nil {
		return err
	}
	for i, j := range doubts {
		if now[i].dir != nil && now[i].dir.ID() == places[j].dir.ID() {
			hit(j, now[i])
		}
	}
	return nil
}
