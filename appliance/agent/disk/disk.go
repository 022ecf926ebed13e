// Package disk stores disks: what a machine sees of its storage, as a disk image of a saveset, in chunks of one size at
// multiples of it. It reads only what its caller says has changed; all else is taken over from the parent saveset's image,
// whole branches of its tree by their digest, so that an INCR of a large disk costs what changed in it.
//
// It knows no formats and no hypervisors: a Source is the bytes of a disk, wherever they come from.
//
// # The way of a disk
//
//	planner ──▶ workers ──▶ builder (in order) ──▶ nodes
//
// The planner makes pieces of work of the changes: runs of chunks to read, to leave out as zeros, to take over, and chunks
// that changed in part. Workers read, hash, ask which chunks the appliance lacks, and send those. What did not change of a
// chunk that changed in part comes from the parent saveset, for the source may have moved on. The builder makes the tree.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// Source is a disk that stands still while it is read, as a snapshot or the export of a backup job does.
type Source interface {
	Size() int64 // bytes; does not change
	// ReadAt fills p or fails; the range lies inside Size. It is called from several goroutines.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Range is a part of a disk that changed since the parent's generation.
type Range struct {
	Off, N int64
	Zero   bool // it reads as zeros now, and need not be read
}

// Changes calls yield with the ranges that changed, in ascending order and apart, until there are no more or yield returns
// false. Their ends need no alignment. The error is its own.
type Changes func(yield func(Range) bool) error

// All are the changes of a disk of which nothing is known, and that has no holes worth the name.
func All(size int64) Changes {
	return func(yield func(Range) bool) error {
		if size > 0 {
			yield(Range{N: size})
		}
		return nil
	}
}

// Options of Store. The zero value works.
type Options struct {
	// Parent is the disk's entry in the parent saveset; what is not among the changes is taken over from it. nil, or an entry
	// that is no disk image: what is not among the changes is zeros.
	Parent *recipe.Entry
	// ChunkSize of an image without a parent; 0 means chunk.Image. With one it is the parent's.
	ChunkSize int
	// Key of an encrypted task; nil: nothing is sealed.
	Key *seal.Key
	// Report gets the counters of the run; nil: nobody does.
	Report *report.Reporter
	// Workers is how many goroutines read and compress; 0 means as the processors allow.
	Workers int
}

// Stats are what one Store did, in bytes of the disk.
type Stats struct {
	Read    uint64 // from the source
	Zero    uint64 // of what was read or told: zeros, that cost nothing
	Taken   uint64 // from the parent, by digest
	Fetched uint64 // of what was taken: chunks that changed in part, which came over the wire
	New     uint64 // that the appliance lacked
	Sent    uint64 // the same, compressed
}

// Store stores a disk and returns the content and size of its entry; all else of the entry is the caller's. Beyond the end
// of the parent's image everything counts as changed. The chunks are with the appliance, or on their way there, when it
// returns: the caller commits the run. run is not unsealed (uplink.Unseal); Store does that where there is a key.
func Store(ctx context.Context, run uplink.Run, src Source, changes Changes, o Options) (recipe.Entry, Stats, error) {
	size := src.Size()
	if size <= 0 {
		return recipe.Entry{}, Stats{}, nil
	}
	s, err := newStore(ctx, run, src, o)
	if err != nil {
		return recipe.Entry{}, Stats{}, err
	}
	content, err := s.run(ctx, changes)
	if err != nil {
		return recipe.Entry{}, Stats{}, fmt.Errorf("store disk: %w", err)
	}
	return recipe.Entry{Size: uint64(size), Content: content}, s.stats.sum(), nil
}

// store is one Store in work.
type store struct {
	to      uplink.Run // as the appliance has it
	open    uplink.Run // with its nodes opened
	src     Source
	size    uint64
	chunk   uint64
	parent  *recipe.Image // nil without one
	o       Options
	builder *recipe.ImageBuilder
	stats   stats

	work  chan *piece // planner to workers
	order chan *piece // planner to builder, in the order of the disk
}

func newStore(ctx context.Context, run uplink.Run, src Source, o Options) (*store, error) {
	s := &store{to: run, open: run, src: src, size: uint64(src.Size()), chunk: uint64(o.ChunkSize), o: o}
	if s.chunk == 0 {
		s.chunk = chunk.Image
	}
	if s.o.Workers == 0 {
		s.o.Workers = max(2, min(runtime.GOMAXPROCS(0), 8)+2) // some wait for the source, or for answers
	}
	var sink recipe.Sink = run
	if o.Key != nil {
		s.open = uplink.Unseal(run, seal.NewOpener(*o.Key))
		sink = seal.NewSink(run, *o.Key)
	}
	if p := o.Parent; p != nil && p.Content.Kind == recipe.ImageTree {
		var err error
		if s.parent, err = recipe.OpenImage(ctx, s.open, p.Content, p.Size); err != nil {
			return nil, fmt.Errorf("open the parent's disk: %w", err)
		}
		s.chunk = uint64(s.parent.ChunkSize())
	}
	s.builder = recipe.NewImageBuilder(sink, digest.NewHasher(run.Domain().Keys.Node))
	if err := s.builder.Start(s.size, int(s.chunk)); err != nil {
		return nil, err
	}
	s.work, s.order = make(chan *piece, s.o.Workers), make(chan *piece, 4*s.o.Workers)
	return s, nil
}

func (s *store) run(ctx context.Context, changes Changes) (c recipe.Content, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(s.order)
		defer close(s.work)
		return newPlanner(ctx, s).run(changes)
	})
	for i := range s.o.Workers {
		g.Go(func() error { return newWorker(s, i).run(ctx) })
	}
	g.Go(func() error { return s.build(ctx) })
	if err := g.Wait(); err != nil {
		return c, err
	}
	c, _, err = s.builder.Finish()
	return c, err
}

// build makes the tree of the pieces, in their order.
func (s *store) build(ctx context.Context) error {
	for {
		var p *piece
		select {
		case p = <-s.order:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if p == nil {
			return nil
		}
		if p.done != nil {
			select {
			case <-p.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		for i := range p.spans {
			if err := s.add(ctx, &p.spans[i]); err != nil {
				return fmt.Errorf("build the recipe: %w", err)
			}
		}
	}
}

func (s *store) add(ctx context.Context, sp *span) error {
	switch sp.kind {
	case take:
		s.stats.taken.Add(min(sp.n*s.chunk, s.size-sp.first*s.chunk))
		return s.builder.Take(ctx, s.parent, sp.n)
	case zero:
		s.stats.zero.Add(min(sp.n*s.chunk, s.size-sp.first*s.chunk))
		return s.builder.Hole(ctx, sp.n)
	}
	for _, d := range sp.digests {
		var err error
		if d.IsZero() {
			err = s.builder.Hole(ctx, 1)
		} else {
			err = s.builder.Add(ctx, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Lookup finds a disk in the root directory of the run's parent saveset; nil when there is no parent, or no such disk.
func Lookup(ctx context.Context, run uplink.Run, key *seal.Key, name string) (*recipe.Entry, error) {
	parent := run.Parent()
	if parent == nil || parent.Root.Digest.IsZero() {
		return nil, nil
	}
	if key != nil {
		run = uplink.Unseal(run, seal.NewOpener(*key))
	}
	e, _, err := recipe.Lookup(ctx, run, parent.Root.Digest, name)
	switch {
	case errors.Is(err, recipe.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for %s in the parent: %w", name, err)
	case e.Content.Kind != recipe.ImageTree:
		return nil, nil
	}
	return &e, nil
}

// FromReaderAt makes a Source of what an io.ReaderAt has.
func FromReaderAt(r io.ReaderAt, size int64) Source { return readerAt{r, size} }

type readerAt struct {
	r    io.ReaderAt
	size int64
}

func (r readerAt) Size() int64 { return r.size }

func (r readerAt) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF || err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}
