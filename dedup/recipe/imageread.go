package recipe

import (
	"context"
	"io"

	"coffer/dedup/digest"
)

// Image reads a disk image. Its methods may be called from many goroutines; each call reads the path that it needs.
type Image struct {
	src    Source
	form   geometry
	level  uint8 // of the root
	root   digest.Digest
	top    imageNode
	totals Totals
}

// OpenImage reads the root of a disk image: the content of an entry and the entry's size.
func OpenImage(ctx context.Context, src Source, c Content, size uint64) (*Image, error) {
	if c.Kind != ImageTree || size == 0 {
		return nil, fail(Mismatch, "%v of %d bytes is no disk image", c.Kind, size)
	}
	p, err := load(ctx, src, c.Digest, expected{kind: ImageLeaf, level: anyLevel})
	if err != nil {
		return nil, err
	}
	top, err := p.imageNode()
	if err != nil {
		return nil, err
	}
	m := &Image{src: src, form: geometry{size: size, shift: top.shift}, root: c.Digest, level: top.level, top: top, totals: top.totals}
	if top.totals.Bytes != size {
		return nil, fail(Mismatch, "image of %d bytes, its entry has %d", top.totals.Bytes, size)
	}
	if level := m.form.level(); level != m.level {
		return nil, fail(Mismatch, "image of %d bytes with its root at level %d, not %d", size, m.level, level)
	}
	return m, nil
}

// Size returns the length of the image in bytes, holes included.
func (m *Image) Size() uint64 { return m.form.size }

// ChunkSize returns the length of every chunk but the last one, which may be shorter.
func (m *Image) ChunkSize() int { return 1 << m.form.shift }

// Totals returns how many chunks the image has, holes left out, and its length.
func (m *Image) Totals() Totals { return m.totals }

// Data returns how many bytes the chunks of the image have. It reads one path where the image ends amid a chunk.
func (m *Image) Data(ctx context.Context) (uint64, error) {
	n := m.totals.Entries << m.form.shift
	last := m.form.chunks() - 1
	short := uint64(1)<<m.form.shift - m.form.unitBytes(0, last)
	if n == 0 || short == 0 {
		return n, nil
	}
	_, count, err := m.unit(ctx, 0, last)
	return n - count*short, err
}

// unit returns what hangs at a place; count, the chunks below it, is 0 for a hole.
func (m *Image) unit(ctx context.Context, level uint8, index uint64) (d digest.Digest, count uint64, err error) {
	if level == m.level+1 {
		return m.root, m.totals.Entries, nil
	}
	n, _, err := m.node(ctx, level, index<<(fanBits*level))
	if err != nil || n == nil {
		return d, 0, err
	}
	d, count, _ = n.child(index % fanOut)
	return d, count, nil
}

// node returns the node of a level above a chunk; nil where there is a hole, which begins at chunk above and ends where a
// unit of the level hole does.
func (m *Image) node(ctx context.Context, level uint8, chunk uint64) (n *imageNode, hole uint8, err error) {
	n = &m.top
	for n.level > level {
		index := chunk >> (fanBits * n.level)
		d, count, ok := n.child(index % fanOut)
		if !ok {
			return nil, n.level, nil
		}
		if n, err = m.load(ctx, d, n.level-1, Totals{Entries: count, Bytes: m.form.unitBytes(n.level, index)}); err != nil {
			return nil, 0, err
		}
	}
	return n, 0, nil
}

func (m *Image) load(ctx context.Context, d digest.Digest, level uint8, totals Totals) (*imageNode, error) {
	p, err := load(ctx, m.src, d, expected{kind: ImageLeaf, level: int(level), totals: &totals})
	if err != nil {
		return nil, err
	}
	n, err := p.imageNode()
	if err == nil && n.shift != m.form.shift {
		err = fail(Mismatch, "a %v with chunks of 2^%d bytes in an image of 2^%d", p.kind, n.shift, m.form.shift)
	}
	return &n, err
}

// ImageChunks are the chunks of an image that one leaf has, or a hole that is at least as long.
type ImageChunks struct {
	First uint64 // index of the first
	Count uint64 // how many places, holes included
	leaf  *imageNode
}

// At returns the chunk with this index in the image, which must be one of them; false for a hole.
func (c *ImageChunks) At(index uint64) (digest.Digest, bool) {
	if c.leaf == nil {
		return digest.Digest{}, false
	}
	d, _, ok := c.leaf.child(index - c.First)
	return d, ok
}

// Hole reports whether there is no chunk at all.
func (c *ImageChunks) Hole() bool { return c.leaf == nil || c.leaf.totals.Entries == 0 }

// Chunks returns the chunks beside the one with this index, itself included. It reads one path.
func (m *Image) Chunks(ctx context.Context, index uint64) (ImageChunks, error) {
	if index >= m.form.chunks() {
		return ImageChunks{}, fail(Mismatch, "chunk %d of an image of %d", index, m.form.chunks())
	}
	leaf, hole, err := m.node(ctx, 0, index)
	if err != nil {
		return ImageChunks{}, err
	}
	if leaf != nil {
		hole = 1
	}
	span := uint64(1) << (fanBits * hole)
	first := index &^ (span - 1)
	return ImageChunks{First: first, Count: min(span, m.form.chunks()-first), leaf: leaf}, nil
}

// Runs calls yield for the runs of chunks and of holes from chunk from up to chunk to (at most all), in order, until it
// returns false. Runs that touch may be of one kind. Parts that are all data or all hole are not read.
func (m *Image) Runs(ctx context.Context, from, to uint64, yield func(n uint64, hole bool) bool) error {
	to = min(to, m.form.chunks())
	if from >= to {
		return nil
	}
	_, err := m.runs(ctx, &m.top, 0, from, to, yield)
	return err
}

// runs is Runs for what is below a node, whose first chunk is base.
func (m *Image) runs(ctx context.Context, n *imageNode, base, from, to uint64, yield func(n uint64, hole bool) bool) (more bool, err error) {
	span := uint64(1) << (fanBits * n.level)
	for slot := range n.slots() {
		start := base + slot*span
		a, z := max(from, start), min(to, start+min(span, m.form.chunks()-start))
		if a >= z {
			continue
		}
		d, count, ok := n.child(slot)
		if full := count == units(n.slotBytes(slot), m.form.shift); !ok || full {
			if !yield(z-a, !ok) {
				return false, nil
			}
			continue
		}
		below, err := m.load(ctx, d, n.level-1, Totals{Entries: count, Bytes: n.slotBytes(slot)})
		if err != nil {
			return false, err
		}
		if more, err := m.runs(ctx, below, start, a, z, yield); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// imageIter goes through the extents of an image for a StreamIter.
type imageIter struct {
	m      *Image
	next   uint64      // chunk
	chunks ImageChunks // around it, or none
}

// seek goes to the extent that holds off.
func (it *imageIter) seek(ctx context.Context, off uint64) error {
	it.next = off >> it.m.form.shift
	if _, hole, err := it.look(ctx); err != nil || !hole {
		return err
	}
	return it.holeStart(ctx)
}

// holeStart goes back to where the hole begins in which the iterator is.
func (it *imageIter) holeStart(ctx context.Context) error {
	for it.next > 0 {
		if it.chunks.leaf == nil {
			it.next = it.chunks.First
		}
		if it.next == 0 {
			return nil
		}
		it.next--
		if _, hole, err := it.look(ctx); err != nil || !hole {
			it.next++
			return err
		}
	}
	return nil
}

// look returns the next chunk.
func (it *imageIter) look(ctx context.Context) (d digest.Digest, hole bool, err error) {
	if c := &it.chunks; it.next < c.First || it.next-c.First >= c.Count {
		if it.chunks, err = it.m.Chunks(ctx, it.next); err != nil {
			return d, false, err
		}
	}
	d, ok := it.chunks.At(it.next)
	return d, !ok, nil
}

// extent returns the next extent, a hole as long as it goes.
func (it *imageIter) extent(ctx context.Context, x *Extent) error {
	form := &it.m.form
	if it.next >= form.chunks() {
		return io.EOF
	}
	d, hole, err := it.look(ctx)
	if err != nil {
		return err
	}
	*x = Extent{Offset: it.next << form.shift, Length: form.unitBytes(0, it.next), Hole: hole, Digest: d}
	it.next++
	for hole && it.next < form.chunks() {
		if _, hole, err = it.look(ctx); err != nil {
			return err
		}
		if hole && it.chunks.leaf == nil {
			it.next = it.chunks.First + it.chunks.Count
		} else if hole {
			it.next++
		}
	}
	if x.Hole {
		x.Length = min(it.next<<form.shift, form.size) - x.Offset
	}
	return nil
}
