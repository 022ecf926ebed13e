package recipe

import (
	"context"
	"encoding/binary"

	"coffer/dedup/digest"
)

// The flags of a side row. Part of the format.
const (
	sideCaptured = 0x01
	sideDev      = 0x02 // the device differs from the row before and follows
	sideKnown    = 0x03
)

// SideBuilder builds a side stream. Rows come in the order of a depth-first walk: for each entry of a directory, in
// name order, its row and then, if it is a directory, the rows of everything below it. Not safe for concurrent use;
// the Hasher may be shared by builders that one goroutine uses.
type SideBuilder struct {
	a    assembler
	prev SideRow
}

// NewSideBuilder returns an empty builder. The Hasher must have the domain's node key.
func NewSideBuilder(sink Sink, h *digest.Hasher) *SideBuilder {
	return &SideBuilder{a: newAssembler(sink, h, SideLeaf)}
}

// Add appends a row; name is its entry's name, which says where nodes end and is not stored. An *Error says that
// the row is refused and nothing was changed; any other error is the sink's, and the stream is lost.
func (b *SideBuilder) Add(ctx context.Context, r SideRow, name string) error {
	if b.a.err != nil {
		return b.a.err
	}
	if r.CTime.Nsec >= 1e9 {
		return fail(BadEntry, "side row of %q has %d nanoseconds", name, r.CTime.Nsec)
	}
	p := b.a.leaf()
	if p.items == 0 {
		b.prev = SideRow{}
		p.key = nameKey(name)
	}
	p.addRow(&r, &b.prev)
	b.prev = r
	p.items++
	p.totals.Entries++
	if p.size() < minNode {
		return nil
	}
	return b.a.added(ctx, 0, nameKey(name))
}

func (p *pending) addRow(r, prev *SideRow) {
	flags := byte(0)
	if r.Captured {
		flags |= sideCaptured
	}
	if r.Dev != prev.Dev {
		flags |= sideDev
	}
	b := append(p.body, flags)
	if r.Dev != prev.Dev {
		b = appendUvarint(b, r.Dev)
	}
	b = appendUvarint(b, zigzag(int64(r.Ino-prev.Ino)))
	b = appendUvarint(b, zigzag(r.CTime.Sec-prev.CTime.Sec))
	p.body = binary.LittleEndian.AppendUint32(b, r.CTime.Nsec)
}

// Finish puts what is left and returns the side stream's root, an empty leaf for no rows. Afterwards the builder is
// empty, also after an error.
func (b *SideBuilder) Finish(ctx context.Context) (Ref, error) {
	n, err := b.a.finish(ctx)
	if err != nil {
		return Ref{}, err
	}
	return Ref{Digest: n.digest, Totals: n.totals}, nil
}

// Reset empties the builder without putting anything.
func (b *SideBuilder) Reset() { b.a.reset() }

// rowReader reads the rows of a side leaf in order and checks each.
type rowReader struct {
	body cursor
	prev SideRow
}

func newRowReader(p *clearPart) rowReader { return rowReader{body: cursor{b: p.body}} }

func (r *rowReader) more() bool { return r.body.off < len(r.body.b) }

// next reads a row into r.prev.
func (r *rowReader) next() error {
	c := &r.body
	flags := c.u8()
	if flags&^sideKnown != 0 {
		return fail(UnknownField, "flags 0x%02x of a side row", flags)
	}
	row := &r.prev
	if flags&sideDev != 0 {
		dev := c.uvarint()
		c.bad = c.bad || dev == row.Dev
		row.Dev = dev
	}
	row.Captured = flags&sideCaptured != 0
	row.Ino += uint64(c.varint())
	row.CTime.Sec += c.varint()
	row.CTime.Nsec = c.u32()
	if c.bad || row.CTime.Nsec >= 1e9 {
		return fail(Malformed, "side row is cut short or has a wrong number")
	}
	return nil
}
