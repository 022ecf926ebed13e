package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// View reads one saveset under a lease. Methods may be called from many goroutines.
type View struct{}

var _ recipe.Source = (*View)(nil)

// View opens a saveset for reading. Kind NotFound, also for a deleted one.
func (s *Store) View(ctx context.Context, id SavesetID) (*View, error) { panic("todo") }

// Manifest returns the saveset's manifest as it was when the view was opened.
func (v *View) Manifest() Manifest { panic("todo") }

// Node returns a node's record through the node cache: read only, verified. It implements recipe.Source.
func (v *View) Node(ctx context.Context, d digest.Digest) ([]byte, error) { panic("todo") }

// Chunk returns a chunk's bytes through the frame cache: shared and read only, verified against its digest.
func (v *View) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) { panic("todo") }

// ReadAt copies the bytes of a chunk from off on into p; fewer than len(p) only at the chunk's end.
func (v *View) ReadAt(ctx context.Context, d digest.Digest, p []byte, off int64) (int, error) {
	panic("todo")
}

// ReadAhead starts to bring the frames of chunks into the frame cache and returns at once. It is a hint: under pressure
// it does nothing. Give what comes next, in order, a few MiB at most.
func (v *View) ReadAhead(ds []digest.Digest) { panic("todo") }

// Loc is the place of one frame.
type Loc struct {
	Container container.ID
	Frame     uint32
}

// PlanItem is one frame and which of the wanted chunks it holds.
type PlanItem struct {
	Loc Loc
	// Want are indexes into the list given to Plan, ascending.
	Want []int
	// StoredBytes and PlainBytes of the whole frame.
	StoredBytes, PlainBytes uint32
}

// Plan tells in which frames chunks lie, in storage order (container, then frame); each frame once. Kind NotFound names
// the first chunk that is missing.
func (v *View) Plan(ctx context.Context, ds []digest.Digest) ([]PlanItem, error) { panic("todo") }

// Frame returns a frame as it is stored: decrypted, its checksum verified, still compressed. The caller owns it.
func (v *View) Frame(ctx context.Context, loc Loc) (frame.Frame, error) { panic("todo") }

// Close gives the lease back. Calls after the first do nothing.
func (v *View) Close() error { panic("todo") }
