package recipe

import (
	"context"
	"io"

	"coffer/dedup/digest"
)

// StreamIter goes through the extents of a file's content and reads nodes as it needs them. Not safe for concurrent
// use.
type StreamIter struct {
	d       descent
	content Content
	size    uint64
	leaf    extentReader
	leafy   bool // leaf is being read
	opened  bool // the root was read
	done    bool
	offset  uint64     // of the next extent
	image   *imageIter // of an ImageTree, when the root was read
	err     error
}

// NewStreamIter returns an iterator before the first extent of content c with the entry's Size. It reads nothing
// yet. A directory's content gives an error at the first Next.
func NewStreamIter(src Source, c Content, size uint64) *StreamIter {
	return &StreamIter{d: descent{src: src, kind: StreamLeaf}, content: c, size: size}
}

// Next returns the next extent, whole; io.EOF at the end. After any other error the iterator returns it again until
// Seek.
func (it *StreamIter) Next(ctx context.Context) (Extent, error) {
	var x Extent
	if it.err == nil {
		it.err = it.next(ctx, &x)
	}
	if it.err != nil {
		return Extent{}, it.err
	}
	return x, nil
}

func (it *StreamIter) next(ctx context.Context, x *Extent) error {
	switch it.content.Kind {
	case StreamTree:
	case ImageTree:
		return it.nextOfImage(ctx, x)
	default:
		return it.flat(x)
	}
	for {
		if it.leafy {
			more, err := it.leaf.next(x)
			if err != nil {
				return err
			}
			if more {
				it.offset = it.leaf.offset
				return nil
			}
			it.leafy = false
		}
		if err := it.advance(ctx); err != nil {
			return err
		}
	}
}

// nextOfImage is next for a disk image.
func (it *StreamIter) nextOfImage(ctx context.Context, x *Extent) error {
	if it.done {
		return io.EOF
	}
	if err := it.openImage(ctx); err != nil {
		return err
	}
	return it.image.extent(ctx, x)
}

func (it *StreamIter) openImage(ctx context.Context) error {
	if it.image != nil {
		return nil
	}
	m, err := OpenImage(ctx, it.d.src, it.content, it.size)
	if err == nil {
		it.image = &imageIter{m: m}
	}
	return err
}

// flat is next for content without nodes.
func (it *StreamIter) flat(x *Extent) error {
	switch {
	case it.content.Kind == DirTree || (it.content.Kind == NoContent) != (it.size == 0):
		return fail(Mismatch, "%v of %d bytes is no stream", it.content.Kind, it.size)
	case it.done || it.size == 0:
		return io.EOF
	}
	it.done = true
	*x = Extent{Length: it.size, Digest: it.content.Digest}
	return nil
}

// advance opens the next node on the way to the next leaf.
func (it *StreamIter) advance(ctx context.Context) error {
	var b branch
	if !it.opened {
		it.opened = true
		return it.enterRoot(ctx)
	}
	level, more, err := it.d.branch(&b)
	if err != nil {
		return err
	}
	if !more {
		return io.EOF
	}
	return it.enter(ctx, b.digest, level, &b.totals)
}

func (it *StreamIter) enterRoot(ctx context.Context) error {
	p, leaf, err := it.d.open(ctx, it.content.Digest, anyLevel, nil)
	if err != nil {
		return err
	}
	if p.totals.Bytes != it.size {
		return fail(Mismatch, "stream of %d bytes, its entry has %d", p.totals.Bytes, it.size)
	}
	it.leaf, it.leafy = newExtentReader(&p, 0), leaf
	return nil
}

func (it *StreamIter) enter(ctx context.Context, d digest.Digest, level int, totals *Totals) error {
	p, leaf, err := it.d.open(ctx, d, level, totals)
	if err != nil {
		return err
	}
	it.leaf, it.leafy = newExtentReader(&p, it.offset), leaf
	return nil
}

// Seek makes Next return the extent that holds offset off, or io.EOF where off is at the end or past it. It reads
// one path, and it clears an error.
func (it *StreamIter) Seek(ctx context.Context, off uint64) error {
	it.d.reset()
	it.leafy, it.opened, it.offset, it.err = false, false, 0, nil
	it.done = off >= it.size
	switch it.content.Kind {
	case StreamTree:
		it.err = it.seek(ctx, off)
	case ImageTree:
		it.err = it.seekImage(ctx, off)
	}
	if it.err == io.EOF {
		return nil
	}
	return it.err
}

func (it *StreamIter) seekImage(ctx context.Context, off uint64) error {
	if it.done {
		return io.EOF
	}
	if err := it.openImage(ctx); err != nil {
		return err
	}
	return it.image.seek(ctx, off)
}

func (it *StreamIter) seek(ctx context.Context, off uint64) error {
	if off >= it.size {
		return io.EOF
	}
	if err := it.advance(ctx); err != nil {
		return err
	}
	for !it.leafy {
		var b branch
		level, more, err := it.d.branch(&b)
		if err != nil || !more {
			return orMalformed(err)
		}
		if off >= it.offset+b.totals.Bytes {
			it.offset += b.totals.Bytes
			continue
		}
		if err := it.enter(ctx, b.digest, level, &b.totals); err != nil {
			return err
		}
	}
	return it.leafTo(off)
}

// leafTo passes over the extents of the leaf that end at off or before.
func (it *StreamIter) leafTo(off uint64) error {
	for {
		was := it.leaf
		var x Extent
		more, err := it.leaf.next(&x)
		if err != nil || !more {
			return orMalformed(err)
		}
		if off < x.Offset+x.Length {
			it.leaf, it.offset = was, was.offset
			return nil
		}
	}
}
