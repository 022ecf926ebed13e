package savesettree

import (
	"context"
	"sync"

	"coffer/dedup"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// file is a regular file.
type file struct {
	node
	parent *dir
	rank   uint64

	mu     sync.Mutex // guards what follows
	view   View       // that opened reads; nil until somebody asked
	opened *dedup.File
}

var (
	_ fusefs.File   = (*file)(nil)
	_ fusefs.Seeker = (*file)(nil)
	_ fusefs.Xattrs = (*file)(nil)
)

// Attr implements fusefs.Node. A file of one chunk is all data; others may have holes, which cp looks for only where
// st_blocks shows them.
func (f *file) Attr(ctx context.Context) (fusefs.Attr, error) {
	sp, err := f.allocated(ctx)
	if err != nil {
		return fusefs.Attr{}, err
	}
	a := f.attr()
	a.Blocks = sp.Data / sector
	return a, nil
}

func (f *file) allocated(ctx context.Context) (sp dedup.Space, err error) {
	if k := f.e.Content.Kind; k == recipe.NoContent || k == recipe.OneChunk {
		return dedup.Space{Data: roundUp(f.e.Size)}, nil // without opening the saveset
	}
	err = f.read(ctx, func(r *dedup.File) error {
		sp, err = r.Space(ctx)
		return err
	})
	return sp, f.wrap("look at extents of", err)
}

func roundUp(n uint64) uint64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// read calls do with the reader of the file's bytes, which lives as long as the saveset's view.
func (f *file) read(ctx context.Context, do func(*dedup.File) error) error {
	return f.set.use(ctx, func(v View) error {
		r, err := f.open(v)
		if err != nil {
			return err
		}
		return do(r)
	})
}

func (f *file) open(v View) (*dedup.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view != v {
		r, err := dedup.OpenFile(v, f.e)
		if err != nil {
			return nil, err
		}
		f.view, f.opened = v, r
	}
	return f.opened, nil
}

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
	err = f.read(ctx, func(r *dedup.File) error {
		if f.e.Content.Kind == recipe.OneChunk && f.set.sweep.read(f) {
			f.set.look()
		}
		data, err = r.Bytes(ctx, p, off)
		return err
	})
	return data, f.wrap("read", err)
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
	case !sp.Holes && hole:
		return int64(f.e.Size), nil
	case !sp.Holes:
		return int64(off), nil
	}
	at = int64(off)
	err = f.read(ctx, func(r *dedup.File) error {
		return r.Extents(ctx, at, r.Size()-at, func(n int64, isHole bool) bool {
			if isHole != hole {
				at += n
			}
			return isHole != hole
		})
	})
	if err == nil && !hole && uint64(at) == f.e.Size {
		return 0, fusefs.ErrNoData
	}
	return at, f.wrap("seek in", err)
}
