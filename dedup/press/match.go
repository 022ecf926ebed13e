package press

import (
	"encoding/binary"
	"math/bits"
)

const (
	// minMatch is the shortest match that the format can say.
	minMatch = 3
	hashBits = 15
	// lookahead is how many bytes the search reads beyond its position; the last ones of a block are literals.
	lookahead = 10
	// skipLog lets the search hurry where it finds nothing: after each 1<<skipLog bytes its step grows by one.
	skipLog = 5
	// wild is how many bytes short runs of literals are copied by, whatever their length.
	wild = 16
)

// sequence is a run of literals and the match that follows it.
type sequence struct {
	run    uint32
	match  uint32 // length - minMatch
	offset uint32 // plain from the finder, coded by the coder
	codes  codes
}

// finder cuts blocks into literals and matches.
type finder struct {
	table [1 << hashBits]uint32 // where in the input a hash was met last; 0 at first, which is as good as any place
	seqs  []sequence
	lits  []byte
	off   [2]int // the last two offsets: where the search looks first
	space [maxBlock + wild]byte
}

// reset begins a new input.
func (f *finder) reset() {
	clear(f.table[:])
	f.off = [2]int{1, 1}
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }

// hash is of the lowest seven bytes.
func hash(v uint64) uint64 { return v << 8 * 58295818150454627 >> (64 - hashBits) }

// find fills seqs and lits with what src has from start on. The literals behind the last match are in lits alone. It is
// one function, with matchLen spelled out where it is called most: in parts it takes a fourth more time.
//
// INVARIANT: every position in the table, and every place that an offset of off leads to, is in src, before the
// position of the search.
func (f *finder) find(src []byte, start int) {
	seqs := f.seqs[:0]
	table := &f.table
	lits, n := &f.space, 0
	s, done := max(start, 1), start // all before done is in seqs
	off, off2 := f.off[0], f.off[1]
	limit := len(src) - lookahead
search:
	for s < limit {
		var at, from int // four bytes that are equal
		v := load64(src, s)
		for {
			h0, h1 := hash(v), hash(v>>8)
			p0, p1 := int(table[h0]), int(table[h1])
			table[h0], table[h1] = uint32(s), uint32(s+1)
			if load32(src, s+2-off) == uint32(v>>16) {
				at, from = s+2, s+2-off
				break
			}
			if load32(src, p0) == uint32(v) {
				at, from = s, p0
				break
			}
			if load32(src, p1) == uint32(v>>8) {
				at, from = s+1, p1
				break
			}
			s += 2 + (s-done)>>skipLog
			if s >= limit {
				break search
			}
			v = load64(src, s)
		}
		end := at + 4
		for x := from + 4; ; {
			if end+8 > len(src) {
				for end < len(src) && src[end] == src[x] {
					end, x = end+1, x+1
				}
				break
			}
			if d := load64(src, end) ^ load64(src, x); d != 0 {
				end += bits.TrailingZeros64(d) >> 3
				break
			}
			end, x = end+8, x+8
		}
		for at > done && from > 0 && src[at-1] == src[from-1] {
			at, from = at-1, from-1
		}
		run := at - done
		if run <= wild && done+wild <= len(src) {
			binary.LittleEndian.PutUint64(lits[n:], load64(src, done))
			binary.LittleEndian.PutUint64(lits[n+8:], load64(src, done+8))
		} else {
			copy(lits[n:], src[done:at])
		}
		n += run
		if o := at - from; off != o {
			off, off2 = o, off
		}
		seqs = append(seqs, sequence{run: uint32(run), match: uint32(end - at - minMatch), offset: uint32(off)})
		s = end
		done = s
		if s >= limit {
			break
		}
		table[hash(load64(src, s-2))] = uint32(s - 2)
		for { // behind a small change what was alike before it often goes on, at the offset before the last
			v := load64(src, s)
			from := s - off2
			if load32(src, from) != uint32(v) {
				break
			}
			table[hash(v)] = uint32(s)
			length := minMatch + 1 + matchLen(src, s+minMatch+1, from+minMatch+1)
			off, off2 = off2, off
			seqs = append(seqs, sequence{match: uint32(length - minMatch), offset: uint32(off)})
			s += length
			done = s
			if s >= limit {
				break search
			}
		}
	}
	n += copy(lits[n:], src[done:])
	f.lits = lits[:n]
	f.seqs = seqs
	f.off = [2]int{off, off2}
}

// matchLen returns how many bytes from a on are as those from b on, b before a.
func matchLen(src []byte, a, b int) int {
	n := 0
	for a+n+8 <= len(src) {
		if x := load64(src, a+n) ^ load64(src, b+n); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for a+n < len(src) && src[a+n] == src[b+n] {
		n++
	}
	return n
}
