package dedup

import (
	"context"
	"io"
	"sort"
	"sync"
	"sync/atomic"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// fileLayout finds the extents of a file. Its methods may be called from many goroutines.
type fileLayout interface {
	// extent returns an extent that holds off, which lies inside the file: a whole chunk, or a part of a hole.
	extent(ctx context.Context, off uint64) (recipe.Extent, error)
	// runs calls yield with the ends of the runs of data and of holes from off on, in order, until one is at end or after
	// it, or yield returns false. Runs that touch may be of one kind.
	runs(ctx context.Context, off, end uint64, yield func(end uint64, hole bool) bool) error
	space(ctx context.Context) (Space, error)
}

// flat is the layout of a file of one chunk.
type flat recipe.Extent

func flatLayout(d digest.Digest, size uint64) fileLayout {
	return (*flat)(&recipe.Extent{Length: size, Digest: d})
}

func (l *flat) extent(context.Context, uint64) (recipe.Extent, error) { return recipe.Extent(*l), nil }

func (l *flat) runs(_ context.Context, _, _ uint64, yield func(uint64, bool) bool) error {
	yield(l.Length, false)
	return nil
}

func (l *flat) space(context.Context) (Space, error) { return Space{Data: roundUp(l.Length)}, nil }

func roundUp(n uint64) uint64 { return (n + blockSize - 1) &^ (blockSize - 1) }

const (
	// streamStretch is how many extents of a stream are decoded together, streamStretches how many of those are kept.
	streamStretch   = 64
	streamStretches = 16
	// maxCounted is how many extents of a stream are looked at to learn how much of it is data, which is a second of work.
	maxCounted = 1 << 20
)

// streamLayout is the layout of a stream: stretches of consecutive extents around the places that are read.
type streamLayout struct {
	src     recipe.Source
	content recipe.Content
	size    uint64

	mu        sync.RWMutex
	stretches []*stretch // guarded by mu
	next      int        // guarded by mu: the stretch that a new one replaces
}

// stretch is some consecutive extents; never changed.
type stretch []recipe.Extent

func (p stretch) end() uint64 { return p[len(p)-1].Offset + p[len(p)-1].Length }

func (l *streamLayout) iter() *recipe.StreamIter {
	return recipe.NewStreamIter(l.src, l.content, l.size)
}

func (l *streamLayout) extent(ctx context.Context, off uint64) (recipe.Extent, error) {
	p := l.known(off)
	if p == nil {
		var err error
		if p, err = l.load(ctx, off); err != nil {
			return recipe.Extent{}, err
		}
	}
	i := sort.Search(len(p)-1, func(i int) bool { return off < p[i].Offset+p[i].Length })
	return p[i], nil
}

func (l *streamLayout) known(off uint64) stretch {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, p := range l.stretches {
		if off >= (*p)[0].Offset && off < p.end() {
			return *p
		}
	}
	return nil
}

// load reads the extents from the one that holds off on.
func (l *streamLayout) load(ctx context.Context, off uint64) (stretch, error) {
	it := l.iter()
	if err := it.Seek(ctx, off); err != nil {
		return nil, err
	}
	p := make(stretch, 0, streamStretch)
	for len(p) < streamStretch {
		x, err := it.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		p = append(p, x)
	}
	if len(p) == 0 || off < p[0].Offset || off >= p.end() {
		return nil, io.ErrUnexpectedEOF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.stretches) < streamStretches {
		l.stretches = append(l.stretches, &p)
	} else {
		l.stretches[l.next] = &p
		l.next = (l.next + 1) % streamStretches
	}
	return p, nil
}

func (l *streamLayout) runs(ctx context.Context, off, end uint64, yield func(uint64, bool) bool) error {
	it := l.iter()
	if err := it.Seek(ctx, off); err != nil {
		return err
	}
	for off < end {
		x, err := it.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if off = x.Offset + x.Length; !yield(off, x.Hole) {
			return nil
		}
	}
	return nil
}

// space sums up the blocks that data touches.
func (l *streamLayout) space(ctx context.Context) (Space, error) {
	var sp Space
	var counted uint64 // up to where blocks are in sp.Data
	it := l.iter()
	for range maxCounted {
		x, err := it.Next(ctx)
		if err == io.EOF {
			return sp, nil
		}
		if err != nil {
			return Space{}, err
		}
		if x.Hole {
			sp.Holes = true
			continue
		}
		from, to := max(x.Offset&^(blockSize-1), counted), roundUp(x.Offset+x.Length)
		if to > from {
			sp.Data += to - from
			counted = to
		}
	}
	sp.Data += roundUp(l.size) - counted
	return sp, nil
}

// imageLeaves is how many leaves of an image are kept decoded: 128 chunks each, 4 KiB.
const imageLeaves = 512

// imageLayout is the layout of a disk image.
type imageLayout struct {
	src     recipe.Source
	content recipe.Content
	size    uint64
	image   atomic.Pointer[recipe.Image] // nil until the root was read

	mu     sync.RWMutex
	leaves map[uint64]*imageLeaf // guarded by mu; by number
	queue  []uint64              // guarded by mu: numbers in the order in which they came
	next   int                   // guarded by mu: in queue, the leaf that a new one replaces
}

// imageLeaf is the chunks below one leaf; a zero digest is a hole. The nil leaf is all hole.
type imageLeaf []digest.Digest

// leafChunks is how many chunks a leaf has room for.
const leafChunks = 128

func (l *imageLayout) open(ctx context.Context) (*recipe.Image, error) {
	if m := l.image.Load(); m != nil {
		return m, nil
	}
	m, err := recipe.OpenImage(ctx, l.src, l.content, l.size)
	if err == nil {
		l.image.Store(m)
	}
	return m, err
}

func (l *imageLayout) extent(ctx context.Context, off uint64) (recipe.Extent, error) {
	m, err := l.open(ctx)
	if err != nil {
		return recipe.Extent{}, err
	}
	size := uint64(m.ChunkSize())
	index := off / size
	leaf, err := l.leaf(ctx, m, index/leafChunks)
	if err != nil {
		return recipe.Extent{}, err
	}
	if leaf == nil {
		at := index &^ (leafChunks - 1) * size
		return recipe.Extent{Offset: at, Length: min(leafChunks*size, l.size-at), Hole: true}, nil
	}
	d := leaf[index%leafChunks]
	return recipe.Extent{Offset: index * size, Length: min(size, l.size-index*size), Hole: d.IsZero(), Digest: d}, nil
}

// leaf returns a leaf by its number.
func (l *imageLayout) leaf(ctx context.Context, m *recipe.Image, n uint64) (imageLeaf, error) {
	l.mu.RLock()
	leaf := l.leaves[n]
	l.mu.RUnlock()
	if leaf != nil {
		return *leaf, nil
	}
	c, err := m.Chunks(ctx, n*leafChunks)
	if err != nil {
		return nil, err
	}
	leaf = new(imageLeaf)
	if !c.Hole() { // then these are the leaf's, and copied: they lie in a frame of nodes that nobody shall keep for them
		*leaf = make(imageLeaf, c.Count)
		for i := range c.Count {
			(*leaf)[i], _ = c.At(c.First + i)
		}
	}
	l.keep(n, leaf)
	return *leaf, nil
}

func (l *imageLayout) keep(n uint64, leaf *imageLeaf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaves == nil {
		l.leaves = map[uint64]*imageLeaf{}
	}
	if _, twice := l.leaves[n]; twice {
		return
	}
	l.leaves[n] = leaf
	if len(l.queue) < imageLeaves {
		l.queue = append(l.queue, n)
		return
	}
	delete(l.leaves, l.queue[l.next])
	l.queue[l.next] = n
	l.next = (l.next + 1) % imageLeaves
}

func (l *imageLayout) runs(ctx context.Context, off, end uint64, yield func(uint64, bool) bool) error {
	m, err := l.open(ctx)
	if err != nil {
		return err
	}
	size := uint64(m.ChunkSize())
	at := off / size
	return m.Runs(ctx, at, (end-1)/size+1, func(n uint64, hole bool) bool {
		at += n
		return yield(at*size, hole)
	})
}

func (l *imageLayout) space(ctx context.Context) (Space, error) {
	m, err := l.open(ctx)
	if err != nil {
		return Space{}, err
	}
	data, err := m.Data(ctx)
	return Space{Data: roundUp(data), Holes: data < l.size}, err
}
