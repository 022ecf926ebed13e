package recipe

import (
	"bytes"

	"coffer/dedup/digest"
)

// branch is what an inner node says of one child.
type branch struct {
	digest digest.Digest
	totals Totals
	first  []byte // name of the first entry below; directories only
}

// innerReader reads the branches of an inner node in order and checks each. All three trees share it: the body has
// the first name (directories only) and the entries below, child by child.
type innerReader struct {
	kind     Kind
	level    uint8
	children childList
	body     cursor
	prev     []byte
}

func newInnerReader(p *clearPart) innerReader {
	return innerReader{kind: p.kind, level: p.level, children: p.children, body: cursor{b: p.body}}
}

// next reads a branch. It returns false after the last one, having checked that the body ends there.
func (r *innerReader) next(b *branch) (bool, error) {
	var c Child
	if !r.children.next(&c) {
		if r.body.bad || r.body.left() != 0 {
			return false, fail(Malformed, "%v has a body that does not end with its children", r.kind)
		}
		return false, nil
	}
	b.first = nil
	if r.kind == DirInner {
		from, to := r.body.span(MaxName)
		b.first = r.body.b[from:to]
		if !nameOK(b.first) {
			return false, fail(Malformed, "%v has a first name %q", r.kind, b.first)
		}
		if r.prev != nil && bytes.Compare(b.first, r.prev) <= 0 {
			return false, fail(BadOrder, "%q after %q in a %v", b.first, r.prev, r.kind)
		}
		r.prev = b.first
	}
	b.digest = c.Digest
	b.totals = Totals{Entries: r.body.uvarint(), Bytes: c.Length}
	if r.body.bad || b.totals.Entries == 0 || b.totals.Entries > MaxTotal || !bytesOK(r.kind, c.Length) {
		return false, fail(Malformed, "%v has a child of %d entries, %d bytes", r.kind, b.totals.Entries, c.Length)
	}
	return true, nil
}

// bytesOK reports whether a node of a tree of kind k can have n bytes below: streams have some, side streams none.
func bytesOK(k Kind, n uint64) bool {
	switch k {
	case StreamInner:
		return n > 0
	case SideInner:
		return n == 0
	}
	return true
}

// appendBranch adds a finished node to the level above it.
func (p *pending) appendBranch(n *finished, dir bool) {
	if dir {
		p.body = appendUvarint(p.body, uint64(len(n.first)))
		p.body = append(p.body, n.first...)
	}
	p.body = appendUvarint(p.body, n.totals.Entries)
	p.addChild(&Child{Digest: n.digest, Node: true, Length: n.totals.Bytes})
	p.totals = p.totals.plus(n.totals)
	p.items++
}
