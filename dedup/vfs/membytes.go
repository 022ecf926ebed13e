package vfs

import (
	"maps"
	"slices"
)

// memBlock is the unit in which files of a Mem are sparse.
const memBlock = 4096

// memKind is a kind of change to a file.
type memKind uint8

const (
	memStore  memKind = iota // p at off
	memResize                // the file gets the length size
	memPunch                 // size bytes at off become a hole
)

// memWrite is one change of a file.
type memWrite struct {
	kind memKind
	off  int64
	p    []byte
	size int64
}

// memBytes are the bytes of a file and which of its blocks are holes: they read as zeros and take no space.
type memBytes struct {
	b     []byte
	holes map[int64]struct{} // numbers of whole blocks inside b
}

func (m *memBytes) clone() memBytes { return memBytes{slices.Clone(m.b), maps.Clone(m.holes)} }

// allocated is the space that the bytes take.
func (m *memBytes) allocated() int64 { return int64(len(m.b)) - int64(len(m.holes))*memBlock }

func (m *memBytes) apply(w memWrite) {
	switch w.kind {
	case memStore:
		end := w.off + int64(len(w.p))
		if end > int64(len(m.b)) {
			m.resize(end)
		}
		for i := w.off / memBlock; i*memBlock < end; i++ {
			delete(m.holes, i)
		}
		copy(m.b[w.off:], w.p)
	case memResize:
		m.resize(w.size)
	case memPunch:
		off, end := min(w.off, int64(len(m.b))), min(w.off+w.size, int64(len(m.b)))
		clear(m.b[off:end])
		m.hole(off, end)
	}
}

// hole makes holes of the blocks that lie in the range as a whole.
func (m *memBytes) hole(off, end int64) {
	for i := (off + memBlock - 1) / memBlock; (i+1)*memBlock <= end; i++ {
		if m.holes == nil {
			m.holes = map[int64]struct{}{}
		}
		m.holes[i] = struct{}{}
	}
}

func (m *memBytes) resize(size int64) {
	old := int64(len(m.b))
	if size <= old {
		m.b = m.b[:size]
		maps.DeleteFunc(m.holes, func(i int64, _ struct{}) bool { return (i+1)*memBlock > size })
		return
	}
	m.b = slices.Grow(m.b, int(size-old))[:size]
	clear(m.b[old:])
	m.hole(old, size)
}

// fits returns how many of n bytes at off can be written with so much room left.
func (m *memBytes) fits(off int64, n int, room int64) int {
	room = max(room, 0)
	size := int64(len(m.b))
	for done := int64(0); done < int64(n); {
		at := off + done
		step := min(int64(n)-done, memBlock-at%memBlock)
		var need int64
		if _, hole := m.holes[at/memBlock]; hole {
			need = memBlock
		} else if end := at + step; end > size {
			need = end - max(size, at-at%memBlock) // the gap in the block takes space, too
		}
		if need > room {
			if at >= size { // bytes behind the end are taken one by one
				done += max(0, room-(need-step))
			}
			return int(done)
		}
		room -= need
		done += step
		size = max(size, at+step)
	}
	return n
}
