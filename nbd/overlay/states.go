package overlay

import "math/bits"

// state is where a block's bytes are. Part of the format.
type state uint8

const (
	inBase state = 0
	inData state = 1
	isZero state = 2
)

const (
	blockSize = 4096 // part of the format
	// MaxSize is the largest disk, in bytes: its states take up to 4 GiB of memory where every block was written.
	MaxSize = 64 << 40

	wordBlocks = 32                     // states in a word, two bits each
	pageWords  = 512                    //
	pageBlocks = wordBlocks * pageWords // 64 MiB of disk
	low        = 0x5555555555555555     // the low bit of each state
)

// states has the state of every block; memory is taken where blocks are not the base's. Pages of one state are shared.
type states struct {
	blocks     int64
	pages      []*page // nil: all the base's
	same       [3]*page
	data, zero int64 // how many blocks are so
}

type page [pageWords]uint64

func newStates(blocks int64) *states {
	return &states{blocks: blocks, pages: make([]*page, (blocks+pageBlocks-1)/pageBlocks)}
}

// word returns the 32 states around block i; bits of blocks behind the end are 0.
func (s *states) word(i int64) uint64 {
	p := s.pages[i/pageBlocks]
	if p == nil {
		return 0
	}
	return p[i%pageBlocks/wordBlocks]
}

func (s *states) get(i int64) state { return state(s.word(i) >> (i % wordBlocks * 2) & 3) }

// run returns the state of block i and how many blocks from there on, at most limit, have it.
func (s *states) run(i, limit int64) (st state, n int64) {
	st = s.get(i)
	want := uint64(st) * low
	for n < limit {
		at := i + n
		if s.pages[at/pageBlocks] == nil {
			if st != inBase {
				return st, n
			}
			n = min(limit, n+pageBlocks-at%pageBlocks)
			continue
		}
		differ := (s.word(at) ^ want) >> (at % wordBlocks * 2)
		left := wordBlocks - at%wordBlocks
		if differ == 0 {
			n = min(limit, n+left)
			continue
		}
		return st, min(limit, n+int64(bits.TrailingZeros64(differ)/2))
	}
	return st, n
}

// set gives n blocks from i on a state.
func (s *states) set(i, n int64, st state) {
	for end := i + n; i < end; {
		next := min(end, (i/pageBlocks+1)*pageBlocks)
		if next-i == pageBlocks {
			s.setPage(i/pageBlocks, st)
		} else if s.pages[i/pageBlocks] != nil || st != inBase {
			s.setPart(s.own(i/pageBlocks), i%pageBlocks, i%pageBlocks+next-i, st)
		}
		i = next
	}
}

// setPage gives all blocks of a page a state.
func (s *states) setPage(i int64, st state) {
	if p := s.pages[i]; p != nil {
		data, zero := p.count()
		s.data, s.zero = s.data-data, s.zero-zero
	}
	switch st {
	case inBase:
		s.pages[i] = nil
		return
	case inData:
		s.data += pageBlocks
	case isZero:
		s.zero += pageBlocks
	}
	if s.same[st] == nil {
		s.same[st] = new(page)
		for w := range s.same[st] {
			s.same[st][w] = uint64(st) * low
		}
	}
	s.pages[i] = s.same[st]
}

// own returns a page that may be changed.
func (s *states) own(i int64) *page {
	switch p := s.pages[i]; p {
	case nil:
		s.pages[i] = new(page)
	case s.same[inData], s.same[isZero]:
		mine := *p
		s.pages[i] = &mine
	}
	return s.pages[i]
}

// setPart gives the blocks from i to below end of a page a state.
func (s *states) setPart(p *page, i, end int64, st state) {
	for i < end {
		w := &p[i/wordBlocks]
		from := i % wordBlocks
		to := min(wordBlocks, from+end-i)
		mask := ^uint64(0) << (from * 2) & (^uint64(0) >> ((wordBlocks - to) * 2))
		before, beforeZero := count(*w)
		*w = *w&^mask | uint64(st)*low&mask
		data, zero := count(*w)
		s.data, s.zero = s.data+data-before, s.zero+zero-beforeZero
		i += to - from
	}
}

// count tells how many of the states in a word are inData and isZero.
func count(w uint64) (data, zero int64) {
	return int64(bits.OnesCount64(w & low)), int64(bits.OnesCount64(w >> 1 & low))
}

func (p *page) count() (data, zero int64) {
	for _, w := range p {
		d, z := count(w)
		data, zero = data+d, zero+z
	}
	return data, zero
}

// runs yields what is not the base's, in order.
func (s *states) runs(yield func(i, n int64, st state) bool) {
	for i := int64(0); i < s.blocks; {
		st, n := s.run(i, s.blocks-i)
		if st != inBase && !yield(i, n, st) {
			return
		}
		i += n
	}
}
