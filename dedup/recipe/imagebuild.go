package recipe

import (
	"context"
	"fmt"
	"math/bits"

	"coffer/dedup/digest"
)

// ImageBuilder builds one disk image after the other out of chunks, holes and parts of an earlier image, in order. Not
// safe for concurrent use; the Hasher may be shared by builders that one goroutine uses.
type ImageBuilder struct {
	sink   Sink
	sealer NodeSealer // nil: nodes stay open
	hasher *digest.Hasher

	form   geometry
	total  uint64       // chunks of the form
	at     uint64       // the next chunk
	levels []imageLevel // open nodes; one above the root's takes the root
	rec    []byte
	sealed []byte
	err    error // of the sink; the image is lost
}

// imageLevel is the node of a level that is being filled.
type imageLevel struct {
	digests []byte
	lengths []byte
	counts  []byte
	present [fanOut / 64]uint64
	totals  Totals // Bytes: of the children
}

// NewImageBuilder returns a builder that Start makes ready. The Hasher must have the domain's node key.
func NewImageBuilder(sink Sink, h *digest.Hasher) *ImageBuilder {
	sealer, _ := sink.(NodeSealer)
	return &ImageBuilder{sink: sink, sealer: sealer, hasher: h}
}

// Start begins an image of size bytes (1 to MaxTotal) in chunks of chunkSize bytes, a power of two from MinImageChunk to
// MaxImageChunk. The last chunk is as long as what is left.
func (b *ImageBuilder) Start(size uint64, chunkSize int) error {
	shift := uint8(bits.TrailingZeros64(uint64(chunkSize)))
	switch {
	case size == 0 || size > MaxTotal:
		return fail(BadEntry, "image of %d bytes", size)
	case chunkSize < MinImageChunk || chunkSize > MaxImageChunk || chunkSize != 1<<shift:
		return fail(BadEntry, "image with chunks of %d bytes", chunkSize)
	}
	b.form, b.at, b.err = geometry{size: size, shift: shift}, 0, nil
	b.total = b.form.chunks()
	n := int(b.form.level()) + 2
	for len(b.levels) < n {
		b.levels = append(b.levels, imageLevel{})
	}
	b.levels = b.levels[:n]
	for i := range b.levels {
		b.levels[i].clear()
	}
	return nil
}

func (l *imageLevel) clear() {
	*l = imageLevel{digests: l.digests[:0], lengths: l.lengths[:0], counts: l.counts[:0]}
}

// Chunks returns how many chunks the image has, holes counted as if they were data.
func (b *ImageBuilder) Chunks() uint64 { return b.total }

// Next returns the index of the chunk that the next Add is.
func (b *ImageBuilder) Next() uint64 { return b.at }

// Add appends the next chunk. Its length is the image's chunk size, or for the last one what is left of the image.
func (b *ImageBuilder) Add(ctx context.Context, d digest.Digest) error {
	if err := b.room(1); err != nil {
		return err
	}
	if d.IsZero() {
		return fail(BadEntry, "chunk %d of an image has no digest", b.at)
	}
	return b.place(ctx, 0, d, 1)
}

// Hole appends a hole of n chunks.
func (b *ImageBuilder) Hole(ctx context.Context, n uint64) error {
	if err := b.room(n); err != nil {
		return err
	}
	for n > 0 {
		level := b.largest(n)
		step := b.step(level)
		if err := b.pass(ctx, level, step); err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// Take appends n chunks, holes included, that old has at the same place. Nodes that lie in them as a whole are taken over
// by their digest: nothing below them is read. Kind Mismatch when old's chunks are of another size there.
func (b *ImageBuilder) Take(ctx context.Context, old *Image, n uint64) error {
	if err := b.room(n); err != nil {
		return err
	}
	if old.form.shift != b.form.shift || n > 0 && old.form.unitBytes(0, b.at+n-1) != b.form.unitBytes(0, b.at+n-1) {
		return fail(Mismatch, "chunks %d to %d of an image of %d bytes have another size in one of %d bytes",
			b.at, b.at+n-1, b.form.size, old.form.size)
	}
	for n > 0 {
		level := min(b.largest(n), old.level+1)
		for old.form.unitBytes(level, b.at>>(fanBits*level)) != b.form.unitBytes(level, b.at>>(fanBits*level)) {
			level--
		}
		step := b.step(level)
		d, count, err := old.unit(ctx, level, b.at>>(fanBits*level))
		if err != nil {
			return err
		}
		if count == 0 {
			err = b.pass(ctx, level, step)
		} else {
			err = b.place(ctx, level, d, count)
		}
		if err != nil {
			return err
		}
		n -= step
	}
	return nil
}

// room reports whether n more chunks belong to the image.
func (b *ImageBuilder) room(n uint64) error {
	if b.err != nil {
		return b.err
	}
	if n > b.total-b.at {
		return fail(TooLong, "%d chunks at %d of an image of %d", n, b.at, b.total)
	}
	return nil
}

// largest is the level of the largest unit that begins at the next chunk and ends within the n next ones.
func (b *ImageBuilder) largest(n uint64) uint8 {
	level := uint8(0)
	for int(level)+1 < len(b.levels) {
		span := uint64(1) << (fanBits * (level + 1))
		if b.at%span != 0 || n < min(span, b.total-b.at) {
			break
		}
		level++
	}
	return level
}

// step is how many chunks the next unit of a level covers.
func (b *ImageBuilder) step(level uint8) uint64 {
	return min(uint64(1)<<(fanBits*level), b.total-b.at)
}

// place puts a unit into the open node above it and goes on behind it.
func (b *ImageBuilder) place(ctx context.Context, level uint8, d digest.Digest, count uint64) error {
	index := b.at >> (fanBits * level)
	bytes := b.form.unitBytes(level, index)
	b.levels[level].add(index%fanOut, Child{Digest: d, Node: level > 0, Length: bytes}, count)
	return b.pass(ctx, level, b.step(level))
}

func (l *imageLevel) add(slot uint64, c Child, count uint64) {
	l.digests = append(l.digests, c.Digest[:]...)
	l.lengths = appendUvarint(l.lengths, childWord(&c))
	if c.Node {
		l.counts = appendUvarint(l.counts, count)
	}
	l.present[slot/64] |= 1 << (slot % 64)
	l.totals = l.totals.plus(Totals{Entries: count, Bytes: c.Length})
}

// pass goes on behind a unit of a level and ends the nodes that end there.
func (b *ImageBuilder) pass(ctx context.Context, level uint8, step uint64) error {
	b.at += step
	for l := min(level, uint8(len(b.levels)-2)); int(l)+1 < len(b.levels); l++ {
		if b.at != b.total && b.at%(uint64(1)<<(fanBits*(l+1))) != 0 {
			return nil
		}
		if err := b.end(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// end puts the open node of a level and adds it to the one above. An empty one is a hole, unless it is the root.
func (b *ImageBuilder) end(ctx context.Context, level uint8) error {
	l, up := &b.levels[level], &b.levels[level+1]
	index := (b.at - 1) >> (fanBits * (level + 1))
	root := int(level)+2 == len(b.levels)
	if len(l.digests) == 0 && (!root || len(up.digests) > 0) {
		return nil
	}
	bytes := b.form.unitBytes(level+1, index)
	d, err := b.put(ctx, level, l, bytes)
	if err != nil {
		b.err = fmt.Errorf("put an image node at level %d: %w", level, err)
		return b.err
	}
	up.add(index%fanOut, Child{Digest: d, Node: true, Length: bytes}, l.totals.Entries)
	l.clear()
	return nil
}

func (b *ImageBuilder) put(ctx context.Context, level uint8, l *imageLevel, bytes uint64) (digest.Digest, error) {
	kind := ImageLeaf
	if level > 0 {
		kind = ImageInner
	}
	body := make([]byte, 0, 1+fanOut/8+len(l.counts))
	body = append(body, b.form.shift)
	for i := range (units(bytes, unitShift(b.form.shift, level)) + 7) / 8 {
		body = append(body, byte(l.present[i/8]>>(i%8*8)))
	}
	body = append(body, l.counts...)
	var open [16]byte
	totals := Totals{Entries: l.totals.Entries, Bytes: bytes}
	b.rec = appendRecord(b.rec[:0], kind, level, &open, totals, l.digests, l.lengths, body)
	rec := b.rec
	if b.sealer != nil {
		var err error
		if b.sealed, err = b.sealer.SealNode(b.sealed[:0], rec); err != nil {
			return digest.Digest{}, err
		}
		rec = b.sealed
	}
	d := b.hasher.Sum(rec)
	return d, b.sink.PutNode(ctx, d, rec)
}

// Finish returns the content of the image, whose chunks must all have been given, and its totals.
func (b *ImageBuilder) Finish() (Content, Totals, error) {
	if b.err != nil {
		return Content{}, Totals{}, b.err
	}
	if b.total == 0 || b.at != b.total {
		return Content{}, Totals{}, fail(BadEntry, "image of %d chunks ends after %d", b.total, b.at)
	}
	top := &b.levels[len(b.levels)-1]
	c := Content{Kind: ImageTree, Digest: digest.Digest(top.digests)}
	return c, Totals{Entries: top.totals.Entries, Bytes: b.form.size}, nil
}
