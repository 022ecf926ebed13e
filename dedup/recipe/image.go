package recipe

import (
	"math/bits"

	"coffer/dedup/digest"
)

// A disk image is a tree of fixed form: chunks of one size at multiples of it, 128 below each leaf, 128 nodes below each
// inner node. What is a hole has neither chunk nor node. So a byte's place follows from its offset alone, equal parts at
// equal places of two images are equal nodes, and a part of an image that did not change is one digest.
//
// A unit of level l is what hangs below a node of level l: a chunk for level 0, a node of level l-1 for others.

// The geometry. Part of the format.
const (
	fanBits = 7
	fanOut  = 1 << fanBits

	// MinImageChunk and MaxImageChunk bound the chunk size of a disk image, which is a power of two.
	MinImageChunk = 4 << 10
	MaxImageChunk = MaxChunkLen

	minImageShift = 12
	maxImageShift = 23
)

// geometry is the form that follows from an image's length and its chunk size.
type geometry struct {
	size  uint64 // bytes
	shift uint8  // the chunk size is 1 << shift
}

// chunks is how many chunks an image without holes has.
func (g geometry) chunks() uint64 { return units(g.size, g.shift) }

// level is the level of the root: the lowest that has room for all.
func (g geometry) level() uint8 {
	level := uint8(0)
	for units(g.size, unitShift(g.shift, level+1)) > 1 {
		level++
	}
	return level
}

// unitBytes is how many bytes a unit covers; the last one may end before its span does.
func (g geometry) unitBytes(level uint8, index uint64) uint64 {
	shift := unitShift(g.shift, level)
	if index >= units(g.size, shift) {
		return 0
	}
	return span(g.size-index<<shift, shift)
}

// span is how many of the n bytes that are left lie in a unit.
func span(n uint64, shift uint8) uint64 {
	if shift > 62 {
		return n
	}
	return min(n, 1<<shift)
}

// unitShift is the binary logarithm of the span of a unit.
func unitShift(shift, level uint8) uint8 { return shift + fanBits*level }

// units is how many spans cover n bytes.
func units(n uint64, shift uint8) uint64 {
	if shift > 63 {
		return 1
	}
	return (n-1)>>shift + 1
}

// imageNode is an image node taken apart; its bytes are the record's.
type imageNode struct {
	level   uint8
	shift   uint8 // of the image's chunks
	totals  Totals
	present [fanOut / 64]uint64
	digests []byte   // of the children, in order
	counts  []uint64 // inner: chunks below each child
}

// fitsImage reports whether an image node may have n children, so many of them nodes.
func (p *clearPart) fitsImage(n, nodes int) bool {
	t := p.totals
	if n > fanOut || t.Bytes == 0 {
		return false
	}
	if p.kind == ImageLeaf {
		return nodes == 0 && t.Entries == uint64(n)
	}
	return nodes == n && t.Entries >= uint64(n) && (n > 0 || t.Entries == 0)
}

// imageNode reads the body of an image node and checks all of it.
func (p *clearPart) imageNode() (imageNode, error) {
	n := imageNode{level: p.level, totals: p.totals, digests: p.children.digests}
	body := cursor{b: p.body}
	n.shift = body.u8()
	if n.shift < minImageShift || n.shift > maxImageShift || unitShift(n.shift, n.level) > 62 {
		return n, fail(Malformed, "%v at level %d has chunks of 2^%d bytes", p.kind, p.level, n.shift)
	}
	slots := units(n.totals.Bytes, n.unitShift())
	if slots > fanOut {
		return n, fail(Malformed, "%v at level %d with chunks of 2^%d bytes has %d bytes", p.kind, p.level, n.shift, n.totals.Bytes)
	}
	for i := range (slots + 7) / 8 {
		n.present[i/8] |= uint64(body.u8()) << (i % 8 * 8)
	}
	if body.bad || n.children() != p.children.left() || n.has(slots, fanOut) {
		return n, fail(Malformed, "%v has a map of children that it does not have", p.kind)
	}
	return n, p.imageChildren(&n, &body)
}

// imageChildren holds the children of an image node against the form of the image.
func (p *clearPart) imageChildren(n *imageNode, body *cursor) error {
	if p.kind == ImageInner {
		n.counts = make([]uint64, 0, p.children.left())
	}
	sum := uint64(0)
	list := p.children
	for slot := range uint64(fanOut) {
		if !n.has(slot, slot+1) {
			continue
		}
		var c Child
		list.next(&c)
		bytes := n.slotBytes(slot)
		if c.Length != bytes {
			return fail(Malformed, "%v has a child of %d bytes where its form has %d", p.kind, c.Length, bytes)
		}
		count := uint64(1)
		if p.kind == ImageInner {
			count = body.uvarint()
			if count == 0 || count > units(bytes, n.shift) {
				return fail(Malformed, "%v has a child of %d bytes with %d chunks", p.kind, bytes, count)
			}
			n.counts = append(n.counts, count)
		}
		sum += count
	}
	if body.bad || body.left() != 0 || sum != n.totals.Entries {
		return fail(Malformed, "%v of %d chunks, its body gives %d", p.kind, n.totals.Entries, sum)
	}
	return nil
}

// checkImage is the check of an image node's body.
func (p *clearPart) checkImage() (Totals, error) {
	n, err := p.imageNode()
	return n.totals, err
}

// checkImageChild holds child i of an image's inner node against what the node says of it.
func (p *clearPart) checkImageChild(i int, child *Node) error {
	n, err := p.imageNode()
	if err != nil {
		return err
	}
	if n.counts[i] != child.Totals.Entries {
		return fail(Mismatch, "child %d of a %v has %d chunks, and not %d", i, p.kind, child.Totals.Entries, n.counts[i])
	}
	if child.SealedBy != [16]byte{} {
		return nil
	}
	c := clearOf(child)
	below, err := c.imageNode()
	if err == nil && below.shift != n.shift {
		err = fail(Mismatch, "child %d of a %v has chunks of 2^%d bytes, and not 2^%d", i, p.kind, below.shift, n.shift)
	}
	return err
}

// unitShift is the binary logarithm of the span of one slot.
func (n *imageNode) unitShift() uint8 { return unitShift(n.shift, n.level) }

// slotBytes is how many bytes a slot covers.
func (n *imageNode) slotBytes(slot uint64) uint64 {
	shift := n.unitShift()
	return min(n.totals.Bytes-slot<<shift, 1<<shift)
}

// slots is how many slots there are.
func (n *imageNode) slots() uint64 { return units(n.totals.Bytes, n.unitShift()) }

// children is how many slots have a child.
func (n *imageNode) children() int {
	return bits.OnesCount64(n.present[0]) + bits.OnesCount64(n.present[1])
}

// has reports whether any slot of a range has a child.
func (n *imageNode) has(from, to uint64) bool {
	for slot := from; slot < to; slot++ {
		if n.present[slot/64]>>(slot%64)&1 != 0 {
			return true
		}
	}
	return false
}

// child returns what is in a slot; false for a hole. count is the chunks below it.
func (n *imageNode) child(slot uint64) (d digest.Digest, count uint64, ok bool) {
	word, bit := n.present[slot/64], slot%64
	if word>>bit&1 == 0 {
		return d, 0, false
	}
	i := bits.OnesCount64(word & (1<<bit - 1))
	if slot >= 64 {
		i += bits.OnesCount64(n.present[0])
	}
	if count = 1; n.level > 0 {
		count = n.counts[i]
	}
	return digest.Digest(n.digests[i*digest.Size:]), count, true
}
