package recipe

import (
	"encoding/binary"

	"coffer/dedup/digest"
)

// headLen is the fixed start of every record: version, kind, level, zero, sealed by.
const headLen = 4 + 16

// minChild is the fewest bytes that a child takes in a record.
const minChild = digest.Size + 1

// clearPart is a record taken apart, without a copy: its clear part checked, its body not looked at.
type clearPart struct {
	kind     Kind
	level    uint8
	sealedBy [16]byte
	totals   Totals
	children childList
	body     []byte
}

// childList reads the children of a record in order.
type childList struct {
	digests []byte // of those not read yet
	lengths cursor
}

func (l *childList) left() int { return len(l.digests) / digest.Size }

// next reads a child. The list was checked when the record was taken apart; past its end next returns false.
func (l *childList) next(c *Child) bool {
	if len(l.digests) < digest.Size {
		return false
	}
	c.Digest = digest.Digest(l.digests[:digest.Size])
	l.digests = l.digests[digest.Size:]
	v := l.lengths.uvarint()
	c.Node, c.Length = v&1 != 0, v>>1
	return true
}

// appendRecord appends a whole record.
func appendRecord(dst []byte, k Kind, level uint8, sealedBy *[16]byte, t Totals, digests, lengths, body []byte) []byte {
	dst = append(dst, Version, byte(k), level, 0)
	dst = append(dst, sealedBy[:]...)
	dst = appendUvarint(dst, t.Entries)
	dst = appendUvarint(dst, t.Bytes)
	dst = appendUvarint(dst, uint64(len(digests)/digest.Size))
	dst = append(dst, digests...)
	dst = append(dst, lengths...)
	return append(dst, body...)
}

func childWord(c *Child) uint64 {
	v := c.Length << 1
	if c.Node {
		v |= 1
	}
	return v
}

// takeApart checks the clear part of a record.
func takeApart(rec []byte) (clearPart, error) {
	var p clearPart
	if err := p.head(rec); err != nil {
		return clearPart{}, err
	}
	c := cursor{b: rec, off: headLen}
	p.totals.Entries = c.uvarint()
	p.totals.Bytes = c.uvarint()
	n := c.uvarint()
	if c.bad || p.totals.Entries > MaxTotal || p.totals.Bytes > MaxTotal || n > uint64(c.left()/minChild) {
		return clearPart{}, fail(Malformed, "%v of %d bytes with %d children", p.kind, len(rec), n)
	}
	p.children.digests = rec[c.off : c.off+int(n)*digest.Size]
	c.off += len(p.children.digests)
	p.children.lengths = cursor{b: rec, off: c.off}
	if err := p.checkChildren(&c, int(n)); err != nil {
		return clearPart{}, err
	}
	p.children.lengths.b = rec[:c.off]
	p.body = rec[c.off:]
	return p, nil
}

func (p *clearPart) head(rec []byte) error {
	if len(rec) < 1 || len(rec) > MaxRecord {
		return fail(Malformed, "record of %d bytes", len(rec))
	}
	if rec[0] > Version {
		return fail(NewerVersion, "version %d, this program knows %d", rec[0], Version)
	}
	if rec[0] != Version || len(rec) < headLen || rec[3] != 0 {
		return fail(Malformed, "record of %d bytes begins with %x", len(rec), rec[:min(len(rec), 4)])
	}
	p.kind, p.level = Kind(rec[1]), rec[2]
	if !p.kind.known() {
		return fail(UnknownField, "%v", p.kind)
	}
	if p.kind.Inner() != (p.level > 0) || p.level > MaxLevel {
		return fail(Malformed, "%v at level %d", p.kind, p.level)
	}
	copy(p.sealedBy[:], rec[4:])
	return nil
}

// checkChildren reads n children's lengths from c and holds them against kind and totals.
func (p *clearPart) checkChildren(c *cursor, n int) error {
	sum, nodes := uint64(0), 0
	for i := range n {
		v := c.uvarint()
		length := v >> 1
		if digest.Digest(p.children.digests[i*digest.Size:]).IsZero() {
			return fail(Malformed, "child %d of a %v has no digest", i, p.kind)
		}
		if v&1 != 0 {
			nodes++
		} else if !p.chunkOK(length) {
			return fail(Malformed, "child %d of a %v is a chunk of %d bytes", i, p.kind, length)
		}
		if sum += length; sum > MaxTotal {
			return fail(Malformed, "children of a %v have more than %d bytes", p.kind, uint64(MaxTotal))
		}
	}
	if c.bad {
		return fail(Malformed, "%v with %d children has a broken length", p.kind, n)
	}
	if !p.fits(n, nodes, sum) {
		return fail(Malformed, "%v with %d children (%d nodes) of %d bytes and totals %d, %d",
			p.kind, n, nodes, sum, p.totals.Entries, p.totals.Bytes)
	}
	return nil
}

// sealed reports whether the body is sealed.
func (p *clearPart) sealed() bool { return p.sealedBy != [16]byte{} }

// chunkOK reports whether the clear part may say that a chunk is this long. That of a sealed node keeps it to itself.
func (p *clearPart) chunkOK(length uint64) bool {
	if p.sealed() {
		return length == 0
	}
	return length > 0 && length <= MaxChunkLen
}

// fits reports whether a node of p's kind and totals may have n children, so many of them nodes, with sum bytes.
func (p *clearPart) fits(n, nodes int, sum uint64) bool {
	t := p.totals
	if p.sealed() && !p.kind.Inner() {
		return p.fitsSealed(n, nodes, sum)
	}
	switch p.kind {
	case DirLeaf: // the values of xattrs count among the children, but not in the totals
		return t.Bytes <= sum
	case StreamLeaf: // holes count in the totals, but are no children
		return nodes == 0 && t.Entries > 0 && t.Entries >= uint64(n) && t.Bytes >= sum
	case SideLeaf:
		return n == 0 && t.Bytes == 0
	case ImageLeaf, ImageInner:
		return p.fitsImage(n, nodes) && t.Bytes >= sum
	default:
		return n > 0 && nodes == n && t.Bytes == sum && t.Entries >= uint64(n)
	}
}

// fitsSealed is fits for sealed leaves: sum counts nodes only.
func (p *clearPart) fitsSealed(n, nodes int, sum uint64) bool {
	t := p.totals
	switch p.kind {
	case DirLeaf:
		return t.Bytes >= sum
	case StreamLeaf:
		return nodes == 0 && t.Entries > 0 && t.Entries >= uint64(n) && t.Bytes >= uint64(n)
	case ImageLeaf:
		return p.fitsImage(n, nodes) && t.Bytes >= uint64(n)
	}
	return n == 0 && t.Bytes == 0
}

// ParseClear reads a record and checks its clear part only. It is all that a walk over references (mark, check,
// replication) needs, and it reads sealed nodes, too.
func ParseClear(rec []byte) (Node, error) {
	p, err := takeApart(rec)
	if err != nil {
		return Node{}, err
	}
	return p.node(), nil
}

func (p *clearPart) node() Node {
	n := Node{Kind: p.kind, Level: p.level, SealedBy: p.sealedBy, Totals: p.totals, Body: p.body}
	n.Children = make([]Child, p.children.left())
	list := p.children
	for i := range n.Children {
		list.next(&n.Children[i])
	}
	return n
}

// Encode returns the record of n, or Parse's error for it (ParseClear's, if it is sealed).
func (n *Node) Encode() ([]byte, error) {
	digests := make([]byte, 0, len(n.Children)*digest.Size)
	lengths := make([]byte, 0, len(n.Children)*binary.MaxVarintLen64)
	for i := range n.Children {
		digests = append(digests, n.Children[i].Digest[:]...)
		lengths = appendUvarint(lengths, childWord(&n.Children[i]))
	}
	rec := appendRecord(nil, n.Kind, n.Level, &n.SealedBy, n.Totals, digests, lengths, n.Body)
	check := Parse
	if n.SealedBy != [16]byte{} {
		check = ParseClear
	}
	if _, err := check(rec); err != nil {
		return nil, err
	}
	return rec, nil
}
