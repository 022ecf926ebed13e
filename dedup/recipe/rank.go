package recipe

import (
	"context"
	"io"

	"coffer/dedup/digest"
)

// The rank of an entry is how many entries stand before it in its directory, those below its siblings included: the
// distance between the directory's own row and the entry's in the side stream, less one. It numbers the entries of a
// saveset without reading them, because inner nodes carry totals.

// RankIter is a DirIter that knows ranks and can go to one. Not safe for concurrent use.
type RankIter struct {
	it   DirIter
	rank uint64 // of the entry that Next returns next
}

// NewRankIter returns an iterator before the first entry of the directory whose root node is dir.
func NewRankIter(src Source, dir digest.Digest) *RankIter {
	r := new(RankIter)
	r.it.reset(src, dir, nil)
	return r
}

// Next is DirIter.Next; it also returns the entry's rank.
func (r *RankIter) Next(ctx context.Context) (e Entry, below Totals, rank uint64, err error) {
	e, below, err = r.it.Next(ctx)
	if err != nil {
		return e, below, 0, err
	}
	rank = r.rank
	r.rank += 1 + below.Entries
	return e, below, rank, nil
}

// SeekRank makes Next return the first entry of this rank or a larger one. It reads one path, and it clears an error.
func (r *RankIter) SeekRank(ctx context.Context, rank uint64) error {
	r.it.reset(r.it.d.src, r.it.root, r.it.totals)
	r.rank = 0
	err := r.seek(ctx, rank)
	if err == io.EOF {
		r.it.err = err
		return nil
	}
	r.it.err = err
	return err
}

func (r *RankIter) seek(ctx context.Context, rank uint64) error {
	it := &r.it
	for !it.leafy {
		if err := it.advance(ctx); err != nil {
			return err
		}
		if err := r.passBranches(rank); err != nil {
			return err
		}
	}
	for it.leafy && r.rank < rank {
		if _, _, _, err := r.Next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// passBranches goes over the branches of the lowest open inner node that lie before rank as a whole.
func (r *RankIter) passBranches(rank uint64) error {
	for len(r.it.d.inner) > 0 && !r.it.leafy {
		top := &r.it.d.inner[len(r.it.d.inner)-1]
		was := *top
		var b branch
		more, err := top.next(&b)
		if err != nil || !more {
			return err
		}
		if r.rank+b.totals.Entries > rank {
			*top = was
			return nil
		}
		r.rank += b.totals.Entries
	}
	return nil
}

// LookupRank is Lookup; it also returns the entry's rank.
func LookupRank(ctx context.Context, src Source, dir digest.Digest, name string) (e Entry, below Totals, rank uint64, err error) {
	d := descent{src: src, kind: DirLeaf}
	p, leaf, err := d.open(ctx, dir, anyLevel, nil)
	for err == nil && !leaf {
		var b branch
		var passed uint64
		if b, passed, err = d.seekName(name); err == nil {
			rank += passed
			p, leaf, err = d.open(ctx, b.digest, d.below(), &b.totals)
		}
	}
	if err != nil {
		return Entry{}, Totals{}, 0, err
	}
	return rankLeaf(&p, name, rank)
}

// rankLeaf looks for name in a leaf whose first entry has this rank.
func rankLeaf(p *clearPart, name string, rank uint64) (Entry, Totals, uint64, error) {
	r := newEntryReader(p)
	var e Entry
	var below Totals
	for r.more() {
		was := r
		if err := r.next(&e, &below); err != nil {
			return Entry{}, Totals{}, 0, err
		}
		if string(r.name) < name {
			rank += 1 + below.Entries
			continue
		}
		if string(r.name) > name {
			break
		}
		was.quick = false
		err := was.next(&e, &below)
		return e, below, rank, err
	}
	return Entry{}, Totals{}, 0, ErrNotFound
}
