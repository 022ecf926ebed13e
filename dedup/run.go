package dedup

import (
	"context"

	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// RunOptions describe a run.
type RunOptions struct {
	// ID is the run's name for logs and the manifest.
	ID string
	// Parents are leased until the run ends.
	Parents []SavesetID
}

// Run writes one saveset. It holds a lease on its parents and pins every container that it wrote or was told "have"
// from. Methods may be called from many goroutines. After an error of its own (disk full, I/O) the run has failed: every
// later call returns the same error, and only Abort is of use; refusals of what an agent sent (WrongDigest, BadFrame,
// UnknownChild, BadNode) do not fail the run: the caller decides.
type Run struct{}

// Begin opens a run. Kind NotFound for a parent that does not exist.
func (s *Store) Begin(ctx context.Context, opts RunOptions) (*Run, error) { panic("todo") }

// ID returns the name given at Begin.
func (r *Run) ID() string { panic("todo") }

// Have fills out[i] with whether ds[i] (a data chunk or a node) is present. len(out) must be len(ds).
//
// INVARIANT: true means present AND pinned: it stays so until the run ends. True for a node means that everything
// below it is present, too.
func (r *Run) Have(ctx context.Context, ds []digest.Digest, out []bool) error { panic("todo") }

// Lane opens one stream of data frames with a container of its own.
func (r *Run) Lane(opts LaneOptions) (*Lane, error) { panic("todo") }

// PutNodes takes a frame of node records, children before parents. Each record's digest is recomputed, the record
// parsed, and every child must be present, pinned for this run, of this domain and of the kind that the node says.
// All or nothing: on error no node of the frame is taken. Kinds WrongDigest, BadFrame, BadNode, UnknownChild.
func (r *Run) PutNodes(ctx context.Context, f frame.Frame) error { panic("todo") }

// Commit seals and syncs all that the run wrote, then writes the manifest; when it returns, the saveset is durable. No
// other call may be running or follow. On error the run is over, too, and there is no saveset.
func (r *Run) Commit(ctx context.Context, d Draft) (Manifest, error) { panic("todo") }

// Abort ends the run without a saveset; what arrived is sealed where possible, so that the next run finds it. Calls after
// the first, or after Commit, do nothing. Other calls that are running fail with Closed.
func (r *Run) Abort(ctx context.Context, reason string) error { panic("todo") }

// Stats returns what the run has added so far.
func (r *Run) Stats() RunStats { panic("todo") }

// RunStats counts what a run added.
type RunStats struct {
	// Chunks and NewBytes (plain) that arrived in frames; Nodes likewise.
	Chunks, NewBytes, Nodes, NodeBytes uint64
	// StoredBytes in containers so far.
	StoredBytes uint64
}

// LaneOptions of a lane.
type LaneOptions struct {
	// Durable is called when more frames became durable, with the sequence of the last one; in order, from a goroutine
	// of the run, never after Commit or Abort returned. It must not block nor call the run.
	Durable func(seq uint64)
}

// Lane is one stream of data frames. Calls from several goroutines are serialised.
type Lane struct{}

// Put takes a frame: it is decoded within its limits, the digest of every chunk is recomputed, and the frame is stored
// as it came. It returns the frame's sequence in this lane, from 1. From its return on Have answers true for the
// chunks inside this run. f.Stored is not kept. Kinds WrongDigest, BadFrame.
func (l *Lane) PutFrame(ctx context.Context, f frame.Frame) (seq uint64, err error) { panic("todo") }

// Flush makes everything put so far durable: it seals the open container.
func (l *Lane) Flush(ctx context.Context) error { panic("todo") }

// Durable returns the sequence up to which all frames survive a crash of the machine.
func (l *Lane) Durable() uint64 { panic("todo") }
