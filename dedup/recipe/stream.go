package recipe

import (
	"context"

	"coffer/dedup/digest"
)

// StreamBuilder builds the content of one file or stream after the other out of its extents. Not safe for
// concurrent use; the Hasher may be shared by builders that one goroutine uses.
type StreamBuilder struct {
	a      assembler
	hole   uint64 // bytes of a hole that is not added yet, for another may follow
	chunks uint64 // added since Finish
	holes  uint64
	only   digest.Digest // the last chunk added
	runAt  int           // where the body's open run of chunks has its count
	run    uint64        // chunks in the open run
	length uint64
}

// NewStreamBuilder returns an empty builder. The Hasher must have the domain's node key.
func NewStreamBuilder(sink Sink, h *digest.Hasher) *StreamBuilder {
	return &StreamBuilder{a: newAssembler(sink, h, StreamLeaf)}
}

// Add appends an extent; its Offset is ignored, and holes that follow one another become one. An *Error says that
// the extent is refused and nothing was changed; any other error is the sink's, and the stream is lost.
func (b *StreamBuilder) Add(ctx context.Context, x Extent) error {
	if b.a.err != nil {
		return b.a.err
	}
	switch {
	case x.Length == 0 || x.Length > MaxTotal || x.Hole != x.Digest.IsZero() || !x.Hole && x.Length > MaxChunkLen:
		return fail(BadEntry, "extent of %d bytes, hole %t, digest %v", x.Length, x.Hole, x.Digest)
	case b.length+x.Length > MaxTotal:
		return fail(TooLong, "stream of %d bytes and more", b.length)
	}
	b.length += x.Length
	if x.Hole {
		b.hole += x.Length
		return nil
	}
	if err := b.endHole(ctx); err != nil {
		return err
	}
	return b.addChunk(ctx, x)
}

func (b *StreamBuilder) addChunk(ctx context.Context, x Extent) error {
	b.chunks++
	b.only = x.Digest
	p := b.a.leaf()
	key := digestKey(x.Digest)
	b.start(p, key)
	b.run++
	p.body = appendUvarint(p.body[:b.runAt], b.run)
	p.addChild(&Child{Digest: x.Digest, Length: x.Length})
	return b.count(ctx, p, x.Length, key)
}

// holeKey is the cut key of a hole.
func holeKey(length uint64) uint64 { return mix(length) }

// endHole adds the hole that waits, if there is one.
func (b *StreamBuilder) endHole(ctx context.Context) error {
	n := b.hole
	if n == 0 {
		return nil
	}
	b.hole = 0
	b.holes++
	p := b.a.leaf()
	key := holeKey(n)
	b.start(p, key)
	if b.run == 0 {
		p.body = append(p.body[:b.runAt], 0)
	}
	p.body = appendUvarint(p.body, n)
	b.runAt, b.run = len(p.body), 0
	return b.count(ctx, p, n, key)
}

// start notes the first item of a node.
func (b *StreamBuilder) start(p *pending, key uint64) {
	if p.items == 0 {
		p.key = key
		b.runAt, b.run = 0, 0
	}
}

func (b *StreamBuilder) count(ctx context.Context, p *pending, length, key uint64) error {
	p.items++
	p.totals = p.totals.plus(Totals{Entries: 1, Bytes: length})
	if p.size() < minNode {
		return nil
	}
	return b.a.added(ctx, 0, key)
}

// Finish puts what is left and returns the content and its totals: NoContent for a stream with no extent, OneChunk
// for one chunk and no hole, and else a StreamTree. Afterwards the builder is empty and takes another stream, also
// after an error.
func (b *StreamBuilder) Finish(ctx context.Context) (Content, Totals, error) {
	defer b.Reset()
	if b.a.err != nil {
		return Content{}, Totals{}, b.a.err
	}
	if b.hole == 0 && b.holes == 0 {
		switch b.chunks {
		case 0:
			return Content{}, Totals{}, nil
		case 1:
			return Content{Kind: OneChunk, Digest: b.only}, Totals{Entries: 1, Bytes: b.length}, nil
		}
	}
	if err := b.endHole(ctx); err != nil {
		return Content{}, Totals{}, err
	}
	n, err := b.a.finish(ctx)
	if err != nil {
		return Content{}, Totals{}, err
	}
	return Content{Kind: StreamTree, Digest: n.digest}, n.totals, nil
}

// Reset empties the builder without putting anything.
func (b *StreamBuilder) Reset() {
	b.a.reset()
	*b = StreamBuilder{a: b.a}
}

// extentReader reads the extents of a stream leaf in order and checks each. The body is pairs of numbers: so many
// chunks, then a hole of so many bytes; only the first pair may have no chunks, only the last no hole.
type extentReader struct {
	children childList
	body     cursor
	run      uint64 // chunks left in this pair
	hole     uint64 // the hole that ends this pair
	pairs    int
	offset   uint64
}

func newExtentReader(p *clearPart, offset uint64) extentReader {
	return extentReader{children: p.children, body: cursor{b: p.body}, offset: offset}
}

// next reads an extent. It returns false after the last one, having checked that the body ends there.
func (r *extentReader) next(x *Extent) (bool, error) {
	if r.run == 0 && r.hole == 0 {
		if r.body.left() == 0 && r.children.left() == 0 && !r.body.bad {
			return false, nil
		}
		if err := r.pair(); err != nil {
			return false, err
		}
	}
	if r.run > 0 {
		var c Child
		if !r.children.next(&c) {
			return false, fail(Malformed, "stream leaf lacks a chunk")
		}
		r.run--
		*x = Extent{Offset: r.offset, Length: c.Length, Digest: c.Digest}
	} else {
		*x = Extent{Offset: r.offset, Length: r.hole, Hole: true}
		r.hole = 0
	}
	r.offset += x.Length
	if x.Length > MaxTotal || r.offset > MaxTotal {
		return false, fail(Malformed, "stream of more than %d bytes", uint64(MaxTotal))
	}
	return true, nil
}

func (r *extentReader) pair() error {
	r.run = r.body.uvarint()
	if r.body.left() > 0 {
		r.hole = r.body.uvarint()
		if r.hole == 0 {
			return fail(Malformed, "stream leaf has a hole of 0 bytes")
		}
	}
	if r.body.bad || r.run == 0 && (r.pairs > 0 || r.hole == 0) || r.run > uint64(r.children.left()) {
		return fail(Malformed, "stream leaf has a run of %d chunks with %d left", r.run, r.children.left())
	}
	r.pairs++
	return nil
}
