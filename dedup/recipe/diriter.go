package recipe

import (
	"context"
	"io"

	"coffer/dedup/digest"
)

// DirIter goes through the entries of a directory in name order and reads nodes as it needs them. Not safe for
// concurrent use.
type DirIter struct {
	d      descent
	root   digest.Digest
	totals *Totals // of the root, where known
	leaf   entryReader
	leafy  bool   // leaf has entries to read
	opened bool   // the root was read
	first  []byte // what the parent says is the next leaf's first name
	last   string // name returned last
	err    error
}

// NewDirIter returns an iterator before the first entry of the directory whose root node is dir. It reads nothing
// yet.
func NewDirIter(src Source, dir digest.Digest) *DirIter {
	it := new(DirIter)
	it.reset(src, dir, nil)
	return it
}

// reset makes it an iterator over another directory and keeps its memory.
func (it *DirIter) reset(src Source, dir digest.Digest, totals *Totals) {
	*it = DirIter{d: descent{src: src, kind: DirLeaf, inner: it.d.inner[:0]}, root: dir, totals: totals}
}

// Next returns the next entry and what is below it, if it is a directory; io.EOF at the end. The values of xattrs
// are parts of the source's record. After any other error the iterator returns it again until SeekAfter.
func (it *DirIter) Next(ctx context.Context) (Entry, Totals, error) {
	var e Entry
	var below Totals
	if it.err == nil {
		it.err = it.next(ctx, &e, &below)
	}
	if it.err != nil {
		return Entry{}, Totals{}, it.err
	}
	return e, below, nil
}

func (it *DirIter) next(ctx context.Context, e *Entry, below *Totals) error {
	for !it.leafy {
		if err := it.advance(ctx); err != nil {
			return err
		}
	}
	if err := it.leaf.next(e, below); err != nil {
		return err
	}
	if it.first != nil && string(it.first) != e.Name {
		return fail(Mismatch, "directory leaf begins with %q, its parent says %q", e.Name, it.first)
	}
	if it.last != "" && e.Name <= it.last {
		return fail(BadOrder, "%q after %q", e.Name, it.last)
	}
	it.first, it.last = nil, e.Name
	it.leafy = it.leaf.more()
	return nil
}

// advance opens the next node on the way to the next leaf.
func (it *DirIter) advance(ctx context.Context) error {
	if !it.opened {
		it.opened = true
		return it.enter(ctx, it.root, anyLevel, it.totals)
	}
	var b branch
	level, more, err := it.d.branch(&b)
	if err != nil {
		return err
	}
	if !more {
		return io.EOF
	}
	it.first = b.first
	return it.enter(ctx, b.digest, level, &b.totals)
}

// enter opens a node. A leaf becomes the one that is read.
func (it *DirIter) enter(ctx context.Context, d digest.Digest, level int, totals *Totals) error {
	p, leaf, err := it.d.open(ctx, d, level, totals)
	if err != nil || !leaf {
		return err
	}
	it.leaf = newEntryReader(&p)
	it.leaf.keep()
	it.leafy = it.leaf.more()
	return nil
}

// SeekAfter makes Next return the first entry whose name comes after name, which need not exist. It reads one path,
// and it clears an error.
func (it *DirIter) SeekAfter(ctx context.Context, name string) error {
	it.reset(it.d.src, it.root, it.totals)
	it.err = it.seek(ctx, name)
	return it.err
}

func (it *DirIter) seek(ctx context.Context, name string) error {
	if err := it.advance(ctx); err != nil {
		return err
	}
	for len(it.d.inner) > 0 && !it.leafy {
		b, _, err := it.d.seekName(name)
		if err != nil {
			return err
		}
		if err := it.enter(ctx, b.digest, it.d.below(), &b.totals); err != nil {
			return err
		}
	}
	it.last = name
	return it.leafAfter(name)
}

// leafAfter passes over the entries of the leaf up to name.
func (it *DirIter) leafAfter(name string) error {
	var e Entry
	var below Totals
	for it.leaf.more() {
		was := it.leaf
		it.leaf.quick = true
		if err := it.leaf.next(&e, &below); err != nil {
			return err
		}
		if string(it.leaf.name) > name {
			it.leaf = was
			break
		}
		it.leaf.quick = was.quick
	}
	it.leafy = it.leaf.more()
	return nil
}

// seekName moves the lowest open inner node behind the branch in which name would be. It returns that branch, and how
// many entries lie in those before it.
func (d *descent) seekName(name string) (found branch, passed uint64, err error) {
	top := &d.inner[len(d.inner)-1]
	if more, err := top.next(&found); err != nil || !more {
		return found, 0, orMalformed(err)
	}
	for {
		was := *top
		var b branch
		more, err := top.next(&b)
		if err != nil {
			return found, 0, err
		}
		if !more || string(b.first) > name {
			*top = was
			return found, passed, nil
		}
		passed += found.totals.Entries
		found = b
	}
}

// orMalformed stands for an inner node without branches, which takeApart lets nobody see.
func orMalformed(err error) error {
	if err == nil {
		err = fail(Malformed, "inner node without branches")
	}
	return err
}

// Lookup returns the entry of a directory that has this name, and what is below it, if it is a directory. It reads
// one path; errors.Is(err, ErrNotFound) where there is no such name. The values of xattrs are parts of the source's
// record.
func Lookup(ctx context.Context, src Source, dir digest.Digest, name string) (Entry, Totals, error) {
	e, below, _, err := LookupRank(ctx, src, dir, name)
	return e, below, err
}
