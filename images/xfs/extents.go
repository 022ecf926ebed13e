package xfs

import (
	"fmt"

	"coffer/images/volume"
)

const (
	extentLen = 16
	maxBlocks = 1 << 54 // of a file, as extents count them
	maxLevel  = 8       // of a tree of extents; 2^48 extents need fewer
)

// run is a piece of a file: blocks that lie side by side, or a hole.
type run struct {
	block uint64 // nothing for a hole
	n     uint64 // blocks; at least 1
	hole  bool   // never written, or allocated and not written yet
}

// extent is a record: a bit for "not written yet", 54 bits of place in the file, 52 of block, 21 of length.
type extent struct {
	at, block, n uint64
	unwritten    bool
}

func unpack(b []byte) extent {
	hi, lo := be.Uint64(b), be.Uint64(b[8:])
	return extent{at: hi << 1 >> 10, block: hi&0x1ff<<43 | lo>>21, n: lo & 0x1fffff, unwritten: hi>>63 != 0}
}

// find returns the run that begins at a block of the file.
func (n *inode) find(at uint64) (run, error) {
	if n.remote {
		return run{}, fmt.Errorf("inode %d: a file on a real-time device is %w", n.attr.Ino, volume.ErrUnsupported)
	}
	if at >= maxBlocks {
		return run{}, corrupt("inode %d: block %d", n.attr.Ino, at)
	}
	switch n.form {
	case formExtents:
		return n.inRecords(n.fork[:n.extents*extentLen], at, maxBlocks)
	case formTree:
		return n.inRoot(at)
	}
	return run{}, corrupt("inode %d: content of form %d", n.attr.Ino, n.form)
}

// inRecords looks a block up in records; what lies behind end is not theirs.
func (n *inode) inRecords(b []byte, at, end uint64) (run, error) {
	lo, hi := 0, len(b)/extentLen // lo will be how many records begin at or before the block
	for lo < hi {
		if mid := (lo + hi) / 2; unpack(b[mid*extentLen:]).at <= at {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo*extentLen < len(b) {
		end = min(end, unpack(b[lo*extentLen:]).at)
	}
	if end <= at {
		return run{}, corrupt("inode %d: extents out of order", n.attr.Ino)
	}
	if lo > 0 {
		if x := unpack(b[(lo-1)*extentLen:]); at < x.at+x.n {
			return run{block: x.block + at - x.at, n: min(x.at+x.n, end) - at, hole: x.unwritten}, nil
		}
	}
	return run{n: end - at, hole: true}, nil
}

// inRoot looks a block up from the root of a tree, which lies in the inode: level, count, keys, and pointers at the place
// where they would be if it were full.
func (n *inode) inRoot(at uint64) (run, error) {
	level, count := int(be.Uint16(n.fork)), int(be.Uint16(n.fork[2:]))
	full := (len(n.fork) - 4) / 16
	if level < 1 || level > maxLevel || count < 1 || count > full {
		return run{}, corrupt("inode %d: %d entries of level %d", n.attr.Ino, count, level)
	}
	return n.below(n.fork[4:], n.fork[4+full*8:], count, at, maxBlocks, level-1)
}

// below goes on in the child of a node that a block belongs to.
func (n *inode) below(keys, ptrs []byte, count int, at, end uint64, level int) (run, error) {
	i := 0 // the last key at or before the block; one before the first key belongs to the first child
	for lo, hi := 0, count; lo < hi; {
		if mid := (lo + hi) / 2; be.Uint64(keys[mid*8:]) <= at {
			i, lo = mid, mid+1
		} else {
			hi = mid
		}
	}
	if i+1 < count {
		end = min(end, be.Uint64(keys[(i+1)*8:]))
	}
	if end <= at {
		return run{}, corrupt("inode %d: keys out of order", n.attr.Ino)
	}
	b := make([]byte, n.fs.blockSize)
	if err := n.fs.read(b, be.Uint64(ptrs[i*8:]), 0); err != nil {
		return run{}, err
	}
	head, magic := 24, "BMAP"
	if n.fs.v5 {
		head, magic = 72, "BMA3"
	}
	children := int(be.Uint16(b[6:]))
	if string(b[:4]) != magic || int(be.Uint16(b[4:])) != level || n.fs.v5 && be.Uint64(b[56:]) != n.attr.Ino {
		return run{}, corrupt("inode %d: block %#x is not of its extents", n.attr.Ino, be.Uint64(ptrs[i*8:]))
	}
	b = b[head:]
	full := len(b) / 16
	if children < 1 || children > full {
		return run{}, corrupt("inode %d: %d extents in a block", n.attr.Ino, children)
	}
	if level == 0 {
		return n.inRecords(b[:children*extentLen], at, end)
	}
	return n.below(b, b[full*8:], children, at, end, level-1)
}

// readAt fills p; the range lies inside the file's size.
func (n *inode) readAt(p []byte, off int64) error {
	size := n.fs.blockSize
	for len(p) > 0 {
		x, err := n.find(uint64(off / size))
		if err != nil {
			return err
		}
		skip := off % size
		part := p[:min(int64(len(p)), int64(min(x.n, 1<<32))*size-skip)]
		if x.hole {
			clear(part)
		} else if err := n.fs.read(part, x.block, skip); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}
