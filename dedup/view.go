package dedup

import (
	"context"
	"sync/atomic"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// View reads one saveset, under a lease but for those of look. Methods may be called from many goroutines.
type View struct {
	s        *Store
	manifest Manifest
	leased   bool
	closed   atomic.Bool
	asked    askedPlaces
}

var _ recipe.Source = (*View)(nil)

// View opens a saveset for reading. Kind NotFound, also for a deleted one.
func (s *Store) View(ctx context.Context, id SavesetID) (*View, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &Error{Kind: Closed, Op: "open view", Object: id.String()}
	}
	m, err := s.sets.lease(id)
	if err != nil {
		return nil, err
	}
	s.views++
	return &View{s: s, manifest: m, leased: true}, nil
}

// look is View without a lease, for who can do without: it keeps nobody from deleting the saveset, and what a collection takes
// out then is not found. Not ok when the saveset is not there.
func (s *Store) look(id SavesetID) (v *View, ok bool) {
	e, ok := s.sets.get(id)
	if !ok {
		return nil, false
	}
	m := s.sets.manifest(e)
	return &View{s: s, manifest: m}, !m.State.Deleted
}

// Close gives the lease back. Calls after the first do nothing.
func (v *View) Close() error {
	if v.closed.Swap(true) || !v.leased {
		return nil
	}
	v.s.sets.release(v.manifest.ID)
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.views--
	return nil
}

// alive is asked before every read: a closed view has no lease any more.
func (v *View) alive() error {
	if v.closed.Load() || v.s.shutDown.Load() {
		return &Error{Kind: Closed, Op: "read view", Object: v.manifest.ID.String()}
	}
	return nil
}

// Manifest returns the saveset's manifest as it was when the view was opened.
func (v *View) Manifest() Manifest { return v.manifest }

// Node returns a node's record through the node cache: read only, verified. It implements recipe.Source.
func (v *View) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	return v.get(ctx, d, container.Node)
}

// Chunk returns a chunk's bytes through the frame cache: shared and read only. Its record is authentic;
// that its digest is right was computed when it was stored, and is by check (doc.go, "What reading trusts").
func (v *View) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) {
	return v.get(ctx, d, container.Data)
}

// ReadAt copies the bytes of a chunk from off on into p; fewer than len(p) only at the chunk's end.
func (v *View) ReadAt(ctx context.Context, d digest.Digest, p []byte, off int64) (int, error) {
	b, err := v.Chunk(ctx, d)
	if err != nil || off >= int64(len(b)) {
		return 0, err
	}
	if off < 0 {
		return 0, &Error{Kind: Invalid, Op: "read chunk", Object: d.String()}
	}
	return copy(p, b[off:]), nil
}

// get reads a chunk or node. A container that went away between the look-up and the read (its chunks were moved) is
// looked up once more.
func (v *View) get(ctx context.Context, d digest.Digest, kind container.Kind) ([]byte, error) {
	for again := true; ; again = false {
		if err := v.alive(); err != nil {
			return nil, err
		}
		if again {
			if b, ok := v.recall(ctx, d, kind); ok {
				return b, nil
			}
		}
		places, err := v.s.locate(ctx, []digest.Digest{d})
		if err != nil {
			return nil, err
		}
		at := places[0]
		if !v.mayRead(at, kind) {
			return nil, at.missing("read "+kind.String(), d)
		}
		b, err := v.s.read(ctx, at)
		if KindOf(err) != NotFound || !again {
			return b, err
		}
		v.s.dirs.forget(at.dir.ID())
	}
}

// mayRead reports whether a place is there, and one of this view's.
func (v *View) mayRead(at found, kind container.Kind) bool {
	return at.dir != nil && at.dir.Kind() == kind && at.dir.Domain() == v.manifest.Domain
}

// FrameBuffer is memory for View.Frame that is used again. The zero value is ready.
type FrameBuffer = container.Buffer

// Frame returns a frame as it is stored: decrypted, its checksum verified, still compressed. It lies in buf and is valid
// until buf is used again; with a nil buf the caller owns it.
func (v *View) Frame(ctx context.Context, loc Loc, buf *FrameBuffer) (frame.Frame, error) {
	if err := v.alive(); err != nil {
		return frame.Frame{}, err
	}
	dir, err := v.s.directory(ctx, loc.Container)
	if err != nil {
		return frame.Frame{}, err
	}
	if dir == nil || int64(loc.Frame) >= int64(dir.Frames()) || dir.Domain() != v.manifest.Domain {
		return frame.Frame{}, &Error{Kind: NotFound, Op: "read frame", Object: loc.String()}
	}
	f, err := container.ReadFrame(ctx, v.s.blob, dir, loc.Frame, buf)
	return f, wrap("read frame", loc.String(), err)
}
