package uplink

import (
	"context"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// Domain is what an agent needs to know to cut and hash.
type Domain struct {
	ID       digest.DomainID
	Keys     digest.Keys
	Chunking chunk.Params
}

// Parent is the saveset that a backup run compares with.
type Parent struct {
	Root, Side recipe.Ref
	// Started is when the parent's run started, by this client's clock.
	Started time.Time
}

// Run is one backup or restore over the wire; *Session implements it. All methods may be called from many goroutines.
// An error of any method means that the run is lost (unless it is the ctx's own): Err tells why.
type Run interface {
	// ID is the appliance's name of the run.
	ID() string
	// Domain tells how to cut and hash.
	Domain() Domain
	// Parent is the reference of a backup; nil means that everything is read.
	Parent() *Parent
	// Root is the saveset that a restore run restores; the zero Ref in a backup run.
	Root() recipe.Ref

	// Lane returns lane i of the run (0 ≤ i < MaxLanes), opening it at the first use: an own stream with its own window
	// and its own container on the appliance. One reader, one lane is a good way to use them.
	Lane(i int) Lane
	// MaxLanes is how many lanes the appliance allows, at least 1.
	MaxLanes() int

	// PutNode takes a node that a builder made (recipe.Sink), children first. Nodes that the appliance has are skipped.
	// The record is copied. The node is sent later, in a batch, and after its chunks have arrived: a chunk for which
	// Have said false must have been Put, or will be soon; else Commit hangs until the run ends.
	PutNode(ctx context.Context, d digest.Digest, rec []byte) error
	// Node returns a node of the parent's or the restored tree (recipe.Source), reading ahead where access is in tree
	// order. Only the roots and the children of nodes returned before may be asked for. The record is shared: read only.
	Node(ctx context.Context, d digest.Digest) ([]byte, error)

	// Progress reports how far the run is. It never blocks; the newest one counts.
	Progress(p sms.Progress)
	// Notice reports something for the run's log. It is delivered once and in order, before the commit.
	Notice(n sms.Notice)

	// Fetch brings chunks of a restore, or of the parent's disk images to a backup: emit gets each frame once, compressed, holding at least the wanted chunks that
	// lie in it, in container order. The chunks must be children of nodes that Node returned not long ago (within the
	// last 500,000 children). A chunk wanted twice comes once. emit is called from this goroutine; the frame's bytes are
	// valid until it returns, and its error ends the Fetch and is returned. Verify the digests. Several Fetches run in
	// parallel, up to MaxLanes of them at once. Ask for up to MaxFetch plain bytes at a time.
	Fetch(ctx context.Context, items []FetchItem, emit func(f frame.Frame) error) error

	// Commit sends everything that is left and asks for the saveset. The run is over when it returns without an error.
	Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error)
	// Finish tells the appliance how the run ended where there is no commit: a restore (with an empty Code), or a failure.
	// What notices are left is delivered first. The run is over afterwards.
	Finish(ctx context.Context, o sms.Outcome) error

	// Done is closed when the run is over: finished, cancelled by the appliance, or lost.
	Done() <-chan struct{}
	// Err tells why the run is over: nil after Commit or Finish; sms.CodeOf(err) is sms.CodeCancelled after a cancel.
	// While the run goes on it is nil, too.
	Err() error
	// Close gives everything back. A run that is not over is given up.
	Close() error
}

// Limits of a Fetch.
const (
	MaxFetch      = 32 << 20 // plain bytes
	MaxFetchItems = 64 << 10
)

// FetchItem is one wanted chunk.
type FetchItem struct {
	Digest digest.Digest
	Length uint32 // plain bytes
}

// Lane sends the chunks that the appliance lacks. Methods may be called from many goroutines.
type Lane interface {
	// Have asks which chunks the store has, or another reader of this run is about to send. Who is told false must Put
	// the chunk (on any lane of the run) or end the run. Several calls may be in flight. At most MaxHave digests.
	Have(ctx context.Context, ds []digest.Digest) ([]bool, error)
	// HaveAsync sends the question and returns at once; the func waits for the answer.
	HaveAsync(ctx context.Context, ds []digest.Digest) func(ctx context.Context) ([]bool, error)
	// Put sends a frame. It copies f.Stored and f.Refs before it returns; it blocks while the window is full.
	Put(ctx context.Context, f frame.Frame) error
	// Flush waits until everything put on this lane is durable on the appliance.
	Flush(ctx context.Context) error
}

// MaxHave is the most digests in one Have.
const MaxHave = 4096

var (
	_ recipe.Sink   = Run(nil)
	_ recipe.Source = Run(nil)
)
