package recipe

import (
	"context"
	"io"

	"coffer/dedup/digest"
)

// SideIter goes through the rows of a side stream and reads nodes as it needs them. Not safe for concurrent use.
type SideIter struct {
	d      descent
	root   digest.Digest
	leaf   rowReader
	rows   uint64 // left in leaf
	opened bool
	err    error
}

// NewSideIter returns an iterator before the first row of the side stream whose root node is root. It reads nothing
// yet.
func NewSideIter(src Source, root digest.Digest) *SideIter {
	return &SideIter{d: descent{src: src, kind: SideLeaf}, root: root}
}

// Next returns the next row; io.EOF at the end. After any other error the iterator returns it again.
func (it *SideIter) Next(ctx context.Context) (SideRow, error) {
	for it.err == nil && it.rows == 0 {
		it.err = it.advance(ctx, new(uint64))
	}
	if it.err == nil {
		it.err = it.row()
	}
	if it.err != nil {
		return SideRow{}, it.err
	}
	return it.leaf.prev, nil
}

func (it *SideIter) row() error {
	if !it.leaf.more() {
		return fail(Malformed, "side leaf lacks %d rows", it.rows)
	}
	if err := it.leaf.next(); err != nil {
		return err
	}
	it.rows--
	if it.rows == 0 && it.leaf.more() {
		return fail(Malformed, "side leaf has more rows than its totals")
	}
	return nil
}

// Skip passes over n rows; nodes that lie wholly within them are not read. It returns io.EOF if there are fewer.
func (it *SideIter) Skip(ctx context.Context, n uint64) error {
	for n > 0 && it.err == nil {
		switch {
		case it.rows == 0:
			it.err = it.advance(ctx, &n)
		case n >= it.rows:
			n -= it.rows
			it.rows = 0
		default:
			it.err = it.row()
			n--
		}
	}
	return it.err
}

// advance opens the next node on the way to the next leaf. A whole subtree of at most *skip rows is passed over
// instead and taken off *skip.
func (it *SideIter) advance(ctx context.Context, skip *uint64) error {
	if !it.opened {
		it.opened = true
		return it.enter(ctx, it.root, anyLevel, nil)
	}
	var b branch
	level, more, err := it.d.branch(&b)
	if err != nil {
		return err
	}
	if !more {
		return io.EOF
	}
	if b.totals.Entries <= *skip {
		*skip -= b.totals.Entries
		return nil
	}
	return it.enter(ctx, b.digest, level, &b.totals)
}

func (it *SideIter) enter(ctx context.Context, d digest.Digest, level int, totals *Totals) error {
	p, leaf, err := it.d.open(ctx, d, level, totals)
	if err != nil || !leaf {
		return err
	}
	it.leaf, it.rows = newRowReader(&p), p.totals.Entries
	return nil
}
