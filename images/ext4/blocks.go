package ext4

import (
	"encoding/binary"
	"io"
)

// run is a piece of a file: blocks that lie side by side, or a hole.
type run struct {
	block uint64 // of the device; nothing for a hole
	n     uint64 // blocks; at least 1
	hole  bool   // never written, or allocated and not written yet
}

// maxLogical is the number of blocks that a file can have.
const maxLogical = 1 << 32

// find returns the run that begins at a block of the file.
func (n *inode) find(at uint64) (run, error) {
	if at >= maxLogical {
		return run{n: maxLogical, hole: true}, nil
	}
	var x run
	var err error
	if n.flag&flagExtents != 0 {
		x, err = n.extent(n.block(), at, maxLogical, -1)
	} else {
		x, err = n.mapped(at)
	}
	if err == nil && x.n == 0 {
		err = corrupt("inode %d: no blocks at %d", n.attr.Ino, at)
	}
	x.n = min(x.n, maxLogical)
	return x, err
}

const (
	extentMagic = 0xf30a
	extentLen   = 12 // of the header, and of each entry
	maxDepth    = 5
	maxInitial  = 32768 // a longer extent is not written yet
)

// extent looks up a block of the file in a node of the tree; what lies behind end is not the node's. depth is what the node's
// parent says of it, -1 for the root.
func (n *inode) extent(node []byte, at, end uint64, depth int) (run, error) {
	le := binary.LittleEndian
	count, level := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != extentMagic || (count+1)*extentLen > len(node) || level > maxDepth || depth >= 0 && level != depth {
		return run{}, corrupt("inode %d: extents", n.attr.Ino)
	}
	// The last entry that begins at or before the block, by halving.
	lo, hi := 0, count
	for lo < hi {
		if mid := (lo + hi) / 2; uint64(le.Uint32(node[(mid+1)*extentLen:])) <= at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < count {
		end = min(end, uint64(le.Uint32(node[(lo+1)*extentLen:])))
	}
	if end <= at {
		return run{}, corrupt("inode %d: extents out of order", n.attr.Ino)
	}
	if lo == 0 {
		return run{n: end - at, hole: true}, nil
	}
	e := node[lo*extentLen:]
	if level > 0 {
		child := make([]byte, n.fs.blockSize)
		if err := n.fs.readBlocks(child, uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32, 0); err != nil {
			return run{}, err
		}
		return n.extent(child, at, end, level-1)
	}
	first, length := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
	unwritten := length > maxInitial
	if unwritten {
		length -= maxInitial
	}
	if at >= first+length {
		return run{n: end - at, hole: true}, nil
	}
	start := uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:]))
	return run{block: start + at - first, n: min(first+length, end) - at, hole: unwritten}, nil
}

// mapped looks up a block of the file in the map of direct and indirect blocks.
func (n *inode) mapped(at uint64) (run, error) {
	const direct = 12
	per := uint64(n.fs.blockSize / 4)
	if at < direct {
		return sameRun(n.block()[:direct*4], at), nil
	}
	at -= direct
	span := uint64(1) // how many blocks each entry of the topmost table stands for
	for slot := direct; slot < direct+3; slot++ {
		if at < span*per {
			return n.indirect(uint64(binary.LittleEndian.Uint32(n.block()[slot*4:])), at, span)
		}
		at -= span * per
		span *= per
	}
	return run{n: maxLogical, hole: true}, nil
}

// indirect looks up the block that a table has at a place; each of its entries stands for span blocks.
func (n *inode) indirect(table, at, span uint64) (run, error) {
	per := uint64(n.fs.blockSize / 4)
	if table == 0 {
		return run{n: span*per - at, hole: true}, nil
	}
	b := make([]byte, n.fs.blockSize)
	if err := n.fs.readBlocks(b, table, 0); err != nil {
		return run{}, err
	}
	if span == 1 {
		return sameRun(b, at), nil
	}
	return n.indirect(uint64(binary.LittleEndian.Uint32(b[at/span*4:])), at%span, span/per)
}

// sameRun returns the run that begins at an entry of a table of blocks.
func sameRun(table []byte, at uint64) run {
	entry := func(i uint64) uint64 { return uint64(binary.LittleEndian.Uint32(table[i*4:])) }
	x := run{block: entry(at), n: 1}
	x.hole = x.block == 0
	for i := at + 1; i < uint64(len(table)/4); i++ {
		if x.hole && entry(i) != 0 || !x.hole && entry(i) != x.block+x.n {
			break
		}
		x.n++
	}
	return x
}

// readAt reads from a file's blocks; the range lies inside its size.
func (n *inode) readAt(p []byte, off int64) error {
	size := n.fs.blockSize
	for len(p) > 0 {
		x, err := n.find(uint64(off / size))
		if err != nil {
			return err
		}
		skip := off % size
		part := p[:min(int64(len(p)), int64(x.n)*size-skip)]
		if x.hole {
			clear(part)
		} else if err := n.fs.readBlocks(part, x.block, skip); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// readSized is ReadAt of a file whose bytes read gives.
func readSized(p []byte, off, size int64, read func(p []byte, off int64) error) (int, error) {
	if off < 0 {
		return 0, corrupt("offset %d", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	if err := read(p, off); err != nil {
		return 0, err
	}
	return len(p), eof
}
