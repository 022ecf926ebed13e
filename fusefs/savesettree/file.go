package savesettree

import (
	"context"
	"fmt"
	"io"
	"sync"

	"coffer/dedup/recipe"
	"coffer/fusefs"
)

const (
	// windowExtents is how many extents of a large file are kept decoded around the place that is read.
	windowExtents = 64
	// maxCounted is how many extents are looked at to learn how much of a file is allocated, which is a second of work.
	// What comes after that many TiB-sized chunks counts as data.
	maxCounted = 1 << 20
	// nearby is how far apart two reads of a sequence may lie: the kernel reads ahead in several requests at a time.
	nearby = 4 << 20
	// streamAhead is how far ahead of a sequence chunks are brought in.
	streamAhead = 8 << 20
)

// file is a regular file.
type file struct {
	node
	parent *dir
	rank   uint64

	mu     sync.Mutex      // guards what follows
	space  *space          // nil until somebody asked
	window []recipe.Extent // consecutive; replaced, never changed
	place  place
}

// space is how much of a file is allocated.
type space struct {
	data  uint64 // bytes, in whole blocks
	holes bool
}

// place is where a file is being read in order.
type place struct {
	last  int64  // where the last read began
	run   int    // how many reads in order
	ahead uint64 // up to where chunks were asked for
}

var (
	_ fusefs.File   = (*file)(nil)
	_ fusefs.Seeker = (*file)(nil)
	_ fusefs.Xattrs = (*file)(nil)
)

// Attr implements fusefs.Node. The size of a file of one chunk is all data; a file of several may have holes, which cp
// looks for only where st_blocks shows them.
func (f *file) Attr(ctx context.Context) (fusefs.Attr, error) {
	sp, err := f.allocated(ctx)
	if err != nil {
		return fusefs.Attr{}, err
	}
	a := f.attr()
	a.Blocks = sp.data / sector
	return a, nil
}

func (f *file) allocated(ctx context.Context) (space, error) {
	if f.e.Content.Kind != recipe.StreamTree {
		return space{data: roundUp(f.e.Size)}, nil
	}
	f.mu.Lock()
	known := f.space
	f.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	var sp space
	err := f.set.use(ctx, func(v View) (err error) {
		sp, err = count(ctx, recipe.NewStreamIter(v, f.e.Content, f.e.Size), f.e.Size)
		return err
	})
	if err != nil {
		return space{}, f.wrap("look at extents of", err)
	}
	f.mu.Lock()
	f.space = &sp
	f.mu.Unlock()
	return sp, nil
}

// count sums up the blocks that the data extents of a file touch.
func count(ctx context.Context, it *recipe.StreamIter, size uint64) (sp space, err error) {
	var counted uint64 // up to where blocks are in sp.data
	for range maxCounted {
		x, err := it.Next(ctx)
		if err == io.EOF {
			return sp, nil
		}
		if err != nil {
			return space{}, err
		}
		if x.Hole {
			sp.holes = true
			continue
		}
		from, to := max(x.Offset&^(blockSize-1), counted), roundUp(x.Offset+x.Length)
		if to > from {
			sp.data += to - from
			counted = to
		}
	}
	sp.data += roundUp(size) - counted
	return sp, nil
}

func roundUp(n uint64) uint64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// XattrNames implements fusefs.Xattrs. That they are asked for shows where a reader is whose reads are no requests.
func (f *file) XattrNames() []string {
	if f.set.sweep.passes(f) {
		f.set.look()
	}
	return f.node.XattrNames()
}

// Read implements fusefs.File.
func (f *file) Read(ctx context.Context, p []byte, off int64) (data []byte, err error) {
	if off < 0 || uint64(off) >= f.e.Size {
		return nil, nil
	}
	p = p[:min(uint64(len(p)), f.e.Size-uint64(off))]
	err = f.set.use(ctx, func(v View) error {
		if f.e.Content.Kind == recipe.OneChunk {
			if f.set.sweep.read(f) {
				f.set.look()
			}
			data, err = f.part(ctx, v, recipe.Extent{Length: f.e.Size, Digest: f.e.Content.Digest}, uint64(off), len(p))
			return err
		}
		data, err = f.readStream(ctx, v, p, uint64(off))
		return err
	})
	return data, f.wrap("read", err)
}

// part returns up to n bytes of a chunk, from an offset of the file on.
func (f *file) part(ctx context.Context, v View, x recipe.Extent, off uint64, n int) ([]byte, error) {
	chunk, err := v.Chunk(ctx, x.Digest)
	if err != nil {
		return nil, err
	}
	if uint64(len(chunk)) != x.Length {
		return nil, fmt.Errorf("chunk %v has %d bytes, its file says %d", x.Digest, len(chunk), x.Length)
	}
	from := off - x.Offset
	return chunk[from:min(from+uint64(n), x.Length)], nil
}

// readStream fills p, or returns a part of a chunk where one has it all.
func (f *file) readStream(ctx context.Context, v View, p []byte, off uint64) ([]byte, error) {
	end := off + uint64(len(p))
	extents, err := f.extents(ctx, v, off, end)
	if err != nil {
		return nil, err
	}
	f.readAhead(ctx, v, off, end)
	done := 0
	for _, x := range extents {
		at := off + uint64(done)
		if done == len(p) {
			break
		}
		if x.Hole {
			n := int(min(x.Offset+x.Length, end) - at)
			clear(p[done : done+n])
			done += n
			continue
		}
		data, err := f.part(ctx, v, x, at, len(p)-done)
		if err != nil {
			return nil, err
		}
		if len(data) == len(p) {
			return data, nil
		}
		done += copy(p[done:], data)
	}
	if done < len(p) {
		return nil, fmt.Errorf("extents end at %d: %w", off+uint64(done), io.ErrUnexpectedEOF)
	}
	return p, nil
}

// extents returns consecutive extents that cover the range, which lies inside the file.
func (f *file) extents(ctx context.Context, v View, off, end uint64) ([]recipe.Extent, error) {
	f.mu.Lock()
	w := f.window
	f.mu.Unlock()
	if x := covering(w, off, end); x != nil {
		return x, nil
	}
	w, err := load(ctx, recipe.NewStreamIter(v, f.e.Content, f.e.Size), off, end)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.window = w
	f.mu.Unlock()
	return w, nil
}

// covering returns the part of w that begins with the extent that holds off, if w reaches to end.
func covering(w []recipe.Extent, off, end uint64) []recipe.Extent {
	if len(w) == 0 || off < w[0].Offset || end > w[len(w)-1].Offset+w[len(w)-1].Length {
		return nil
	}
	for i, x := range w {
		if off < x.Offset+x.Length {
			return w[i:]
		}
	}
	return nil
}

// load reads the extents from the one that holds off to the one that holds the last byte before end, and some more.
func load(ctx context.Context, it *recipe.StreamIter, off, end uint64) ([]recipe.Extent, error) {
	if err := it.Seek(ctx, off); err != nil {
		return nil, err
	}
	w := make([]recipe.Extent, 0, windowExtents)
	for {
		x, err := it.Next(ctx)
		if err == io.EOF {
			return w, nil
		}
		if err != nil {
			return nil, err
		}
		w = append(w, x)
		if len(w) >= windowExtents && x.Offset+x.Length >= end {
			return w, nil
		}
	}
}

// SeekData implements fusefs.Seeker.
func (f *file) SeekData(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, uint64(off), false)
}

// SeekHole implements fusefs.Seeker.
func (f *file) SeekHole(ctx context.Context, off int64) (int64, error) {
	return f.seek(ctx, uint64(off), true)
}

// seek finds the first hole, or the first data, at off or after it.
func (f *file) seek(ctx context.Context, off uint64, hole bool) (at int64, err error) {
	sp, err := f.allocated(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case !sp.holes && hole:
		return int64(f.e.Size), nil
	case !sp.holes:
		return int64(off), nil
	}
	err = f.set.use(ctx, func(v View) error {
		it := recipe.NewStreamIter(v, f.e.Content, f.e.Size)
		if err := it.Seek(ctx, off); err != nil {
			return err
		}
		for {
			x, err := it.Next(ctx)
			if err == io.EOF {
				at = int64(f.e.Size)
				return nil
			}
			if err != nil {
				return err
			}
			if x.Hole == hole {
				at = int64(max(off, x.Offset))
				return nil
			}
		}
	})
	if err == nil && !hole && uint64(at) == f.e.Size {
		return 0, fusefs.ErrNoData
	}
	return at, f.wrap("seek in", err)
}
