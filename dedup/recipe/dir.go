package recipe

import (
	"context"

	"coffer/dedup/digest"
)

// DirBuilder builds the nodes of one directory after the other. Not safe for concurrent use; the Hasher may be
// shared by builders that one goroutine uses.
type DirBuilder struct {
	a    assembler
	last string
}

// NewDirBuilder returns an empty builder. The Hasher must have the domain's node key.
func NewDirBuilder(sink Sink, h *digest.Hasher) *DirBuilder {
	return &DirBuilder{a: newAssembler(sink, h, DirLeaf)}
}

// Add appends an entry, whose name must come after the one before by its bytes. below is what Finish returned for
// the directory that the entry is, and is ignored for all other types. The builder keeps e.Name until Finish and
// nothing else of e.
//
// An *Error says that the entry is refused; the builder is then as if Add had not been called. Any other error is
// the sink's: the directory is lost, and Finish returns it again.
func (b *DirBuilder) Add(ctx context.Context, e Entry, below Totals) error {
	if b.a.err != nil {
		return b.a.err
	}
	if err := e.check(below); err != nil {
		return err
	}
	if b.last != "" && e.Name <= b.last {
		return fail(BadOrder, "%q after %q", e.Name, b.last)
	}
	p := b.a.leaf()
	totals := p.totals.plus(e.totals(below))
	if totals.tooBig() {
		return fail(TooLong, "%q makes totals of %d, %d", e.Name, totals.Entries, totals.Bytes)
	}
	p.addEntry(&e, below)
	if p.items == 0 {
		p.first, p.key = e.Name, nameKey(e.Name)
	}
	p.items++
	p.totals, b.last = totals, e.Name
	if p.size() < minNode {
		return nil
	}
	return b.a.added(ctx, 0, nameKey(e.Name))
}

// totals returns what the entry and all below it add to the totals of its directory.
func (e *Entry) totals(below Totals) Totals {
	if e.Content.Kind != DirTree {
		below = Totals{Bytes: e.Size}
	}
	below.Entries++
	return below
}

// Finish puts what is left and returns the directory's root node, an empty leaf for an empty directory. Afterwards
// the builder is empty and takes the entries of another directory, also after an error.
func (b *DirBuilder) Finish(ctx context.Context) (Ref, error) {
	b.last = ""
	n, err := b.a.finish(ctx)
	if err != nil {
		return Ref{}, err
	}
	return Ref{Digest: n.digest, Totals: n.totals}, nil
}

// Reset empties the builder without putting anything.
func (b *DirBuilder) Reset() {
	b.last = ""
	b.a.reset()
}
