package recipe

import (
	"context"
	"fmt"

	"coffer/dedup/digest"
)

// anyLevel and the zero Totals pointer in expected mean: not known, as for a root.
const anyLevel = -1

// expected is what a reader knows of a node before it has it.
type expected struct {
	kind   Kind // of the leaves of its tree
	level  int
	totals *Totals
}

// load gets a node and holds it against what is expected of it.
func load(ctx context.Context, src Source, d digest.Digest, want expected) (clearPart, error) {
	rec, err := src.Node(ctx, d)
	if err != nil {
		return clearPart{}, fmt.Errorf("read node %v: %w", d, err)
	}
	p, err := takeApart(rec)
	if err == nil {
		err = p.open()
	}
	if err == nil {
		err = want.check(&p)
	}
	if err != nil {
		return clearPart{}, fmt.Errorf("node %v: %w", d, err)
	}
	return p, nil
}

func (want *expected) check(p *clearPart) error {
	switch {
	case p.kind.leaf() != want.kind:
		return fail(Mismatch, "a %v in the place of a %v", p.kind, want.kind)
	case want.level != anyLevel && int(p.level) != want.level:
		return fail(Mismatch, "a %v at level %d in the place of level %d", p.kind, p.level, want.level)
	case want.totals != nil && p.totals != *want.totals:
		return fail(Mismatch, "a %v with totals %d, %d, its parent says %d, %d",
			p.kind, p.totals.Entries, p.totals.Bytes, want.totals.Entries, want.totals.Bytes)
	}
	return nil
}

// descent is the path of open inner nodes from a root down to a leaf. All three iterators go by it.
type descent struct {
	src   Source
	kind  Kind // of the leaves
	inner []innerReader
}

// open loads a node; an inner one goes on the path, a leaf is returned.
func (d *descent) open(ctx context.Context, dg digest.Digest, level int, totals *Totals) (p clearPart, leaf bool, err error) {
	p, err = load(ctx, d.src, dg, expected{kind: d.kind, level: level, totals: totals})
	if err != nil {
		return p, false, err
	}
	if p.level == 0 {
		return p, true, nil
	}
	d.inner = append(d.inner, newInnerReader(&p))
	return p, false, nil
}

// branch returns the next branch of the lowest open node, closing those that have no more; false at the end.
func (d *descent) branch(b *branch) (level int, more bool, err error) {
	for len(d.inner) > 0 {
		top := &d.inner[len(d.inner)-1]
		if more, err = top.next(b); err != nil {
			return 0, false, err
		}
		if more {
			return d.below(), true, nil
		}
		d.inner = d.inner[:len(d.inner)-1]
	}
	return 0, false, nil
}

// below returns the level of the children of the lowest open node.
func (d *descent) below() int { return int(d.inner[len(d.inner)-1].level) - 1 }

func (d *descent) reset() { d.inner = d.inner[:0] }
