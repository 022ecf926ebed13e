package dedup

import (
	"context"
	"fmt"
	"io"
	"sync"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// FileSource is what a File reads from. *View is one; whoever opens sealed savesets has another.
type FileSource interface {
	recipe.Source
	// Chunk returns a chunk's bytes, shared and read only, also after the source is closed.
	Chunk(ctx context.Context, d digest.Digest) ([]byte, error)
	// ReadAhead brings what will be read next into a cache, if it can. It does not wait for it.
	ReadAhead(ds []digest.Digest)
}

var _ FileSource = (*View)(nil)

// File reads a regular file of a saveset anywhere: one chunk, a stream, or a disk image. It keeps a few KiB of the recipe
// around the places that are read; bytes are in the source's cache alone. Methods may be called from many goroutines.
type File struct {
	src     FileSource
	content recipe.Content
	size    uint64
	layout  fileLayout // nil for an empty file
	ahead   sequences

	mu    sync.Mutex // guards space
	space *Space     // nil until somebody asked
}

// Space is how much of a file is data.
type Space struct {
	Data  uint64 // bytes in blocks of 4 KiB that have data
	Holes bool
}

// blockSize is the size of the blocks that Space counts.
const blockSize = 4096

// OpenFile returns a reader of the file that an entry of a saveset describes. It reads nothing yet. Kind Invalid for what is
// no regular file.
func OpenFile(src FileSource, e recipe.Entry) (*File, error) {
	if !e.IsRegular() {
		return nil, &Error{Kind: Invalid, Op: "open file", Object: e.Name, Err: fmt.Errorf("its mode is 0%o", e.Mode)}
	}
	f := &File{src: src, content: e.Content, size: e.Size}
	switch e.Content.Kind {
	case recipe.StreamTree:
		f.layout = &streamLayout{src: src, content: e.Content, size: e.Size}
	case recipe.ImageTree:
		f.layout = &imageLayout{src: src, content: e.Content, size: e.Size}
	case recipe.OneChunk:
		f.layout = flatLayout(e.Content.Digest, e.Size)
	}
	return f, nil
}

// Size returns the length of the file in bytes, holes included.
func (f *File) Size() int64 { return int64(f.size) }

// ReadAt fills p with the bytes from off on, or fails; the range must lie inside the file. Reads in sequence, several
// sequences side by side too, have what comes next brought in ahead.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := f.inside(off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	f.readAhead(ctx, uint64(off), uint64(len(p)))
	return f.fill(ctx, p, uint64(off))
}

// Bytes is ReadAt that need not copy: where one chunk has all of the range the result is a part of it, shared and read
// only, and else p.
func (f *File) Bytes(ctx context.Context, p []byte, off int64) ([]byte, error) {
	if err := f.inside(off, int64(len(p))); err != nil || len(p) == 0 {
		return p, err
	}
	f.readAhead(ctx, uint64(off), uint64(len(p)))
	x, err := f.layout.extent(ctx, uint64(off))
	if err != nil {
		return nil, err
	}
	if from := uint64(off) - x.Offset; !x.Hole && x.Length-from >= uint64(len(p)) {
		chunk, err := f.chunk(ctx, x)
		if err != nil {
			return nil, err
		}
		return chunk[from : from+uint64(len(p))], nil
	}
	return p, f.fill(ctx, p, uint64(off))
}

// Lend returns bytes from off on out of the source's cache, at least one and at most n, shared and read only: as far as one
// chunk has them. None where there is a hole. The range must lie inside the file.
func (f *File) Lend(ctx context.Context, off, n int64) ([]byte, error) {
	if err := f.inside(off, n); err != nil || n == 0 {
		return nil, err
	}
	from, end := uint64(off), uint64(off+n)
	f.readAhead(ctx, from, end-from)
	x, err := f.layout.extent(ctx, from)
	if err != nil || x.Hole {
		return nil, err
	}
	next := min(x.Offset+x.Length, end)
	f.bring(ctx, next, end)
	chunk, err := f.chunk(ctx, x)
	if err != nil {
		return nil, err
	}
	return chunk[from-x.Offset : next-x.Offset], nil
}

func (f *File) inside(off, n int64) error {
	if off < 0 || n < 0 || uint64(off) > f.size || uint64(n) > f.size-uint64(off) {
		return &Error{Kind: Invalid, Op: "read file", Err: fmt.Errorf("%d bytes at %d of %d: %w", n, off, f.size, io.ErrUnexpectedEOF)}
	}
	return nil
}

// fill is ReadAt without what comes ahead.
func (f *File) fill(ctx context.Context, p []byte, off uint64) error {
	for first := true; len(p) > 0; first = false {
		x, err := f.layout.extent(ctx, off)
		if err != nil {
			return err
		}
		from := off - x.Offset
		n := min(uint64(len(p)), x.Length-from)
		if first && n < uint64(len(p)) {
			f.bring(ctx, off+n, off+uint64(len(p))) // side by side
		}
		if x.Hole {
			clear(p[:n])
		} else {
			chunk, err := f.chunk(ctx, x)
			if err != nil {
				return err
			}
			copy(p[:n], chunk[from:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// chunk returns the bytes of a data extent.
func (f *File) chunk(ctx context.Context, x recipe.Extent) ([]byte, error) {
	b, err := f.src.Chunk(ctx, x.Digest)
	if err != nil {
		return nil, err
	}
	if uint64(len(b)) != x.Length {
		return nil, &Error{Kind: Damaged, Op: "read file", Object: x.Digest.String(),
			Err: fmt.Errorf("the chunk has %d bytes, its file says %d", len(b), x.Length)}
	}
	return b, nil
}

// bring has the chunks of a range brought into the cache.
func (f *File) bring(ctx context.Context, off, end uint64) {
	for off < end {
		var ds [64]digest.Digest
		var n int
		if n, off = f.digests(ctx, off, end, ds[:]); n > 0 {
			f.src.ReadAhead(ds[:n])
		}
	}
}

// digests puts the chunks of a range, at most as many as fit, into ds; next is where the range goes on. An error goes to
// nobody: the reader who needs the chunks meets it himself.
func (f *File) digests(ctx context.Context, off, end uint64, ds []digest.Digest) (n int, next uint64) {
	for off < end && n < len(ds) {
		x, err := f.layout.extent(ctx, off)
		if err != nil {
			return n, end
		}
		if !x.Hole {
			ds[n] = x.Digest
			n++
		}
		off = x.Offset + x.Length
	}
	return n, off
}

// Extents tells what of a range, which must lie inside the file, is data and what is a hole: it calls yield in order until
// that returns false. Neighbours differ. A chunk of zeros is data.
func (f *File) Extents(ctx context.Context, off, n int64, yield func(n int64, hole bool) bool) error {
	if err := f.inside(off, n); err != nil || n == 0 {
		return err
	}
	runs := merger{yield: yield, off: uint64(off), end: uint64(off + n)}
	if err := f.layout.runs(ctx, uint64(off), uint64(off+n), runs.add); err != nil {
		return err
	}
	runs.done()
	return nil
}

// merger makes one run of those that touch and are alike, and cuts them to a range.
type merger struct {
	yield    func(n int64, hole bool) bool
	off, end uint64
	n        uint64 // of the run that is open
	hole     bool
	stopped  bool
}

// add takes the run that goes from where the last one ended up to end.
func (m *merger) add(end uint64, hole bool) bool {
	end = min(end, m.end)
	if m.stopped || end <= m.off {
		return !m.stopped
	}
	if m.n > 0 && hole != m.hole {
		m.done()
	}
	m.n += end - m.off
	m.off, m.hole = end, hole
	return !m.stopped
}

func (m *merger) done() {
	if m.n > 0 && !m.stopped {
		m.stopped = !m.yield(int64(m.n), m.hole)
		m.n = 0
	}
}

// Space returns how much of the file is data. The first call reads the recipe of a stream, of long ones a part: what
// comes after a million extents counts as data. That of an image is in its root.
func (f *File) Space(ctx context.Context) (Space, error) {
	f.mu.Lock()
	known := f.space
	f.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	var sp Space
	if f.layout != nil {
		var err error
		if sp, err = f.layout.space(ctx); err != nil {
			return Space{}, err
		}
	}
	f.mu.Lock()
	f.space = &sp
	f.mu.Unlock()
	return sp, nil
}
