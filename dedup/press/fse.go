package press

import (
	"encoding/binary"
	"math/bits"
)

const (
	minTableLog = 5
	maxTableLog = 9
	maxSymbols  = 53
)

// transform is how a symbol changes an encoder's state.
type transform struct {
	bits uint32 // bits to write, as (state + bits) >> 16
	next int32  // added to the rest of the state: index of the next one
}

// table is an FSE table as an encoder needs it (RFC 8878, 4.1).
type table struct {
	log     uint8
	symbols int
	norm    [maxSymbols]int16 // -1: less than one state's worth
	states  [1 << maxTableLog]uint16
	of      [64]transform // by symbol
}

// predefined returns the table of a distribution from the RFC.
func predefined(log uint8, norm []int16) *table {
	t := &table{log: log, symbols: len(norm)}
	copy(t.norm[:], norm)
	t.build()
	return t
}

// only makes the table of a single symbol, which takes no bits.
func (t *table) only(symbol uint8) {
	t.log, t.symbols = 0, int(symbol)+1
	clear(t.norm[:])
	t.norm[symbol] = 1
	t.build()
}

// fit makes the table for counts, which sum up to total, at least two of them not 0.
func (t *table) fit(counts []uint32, total uint32, maxLog uint8) {
	t.symbols = len(counts)
	// A larger table than the samples allow says nothing more; a smaller one has no room for each symbol.
	t.log = uint8(max(bits.Len32(total-1)-3, minTableLog))
	t.log = max(t.log, uint8(min(bits.Len32(total), bits.Len(uint(len(counts)-1))+1)))
	t.log = min(t.log, maxLog)
	t.normalise(counts, total)
	t.build()
}

// normalise scales counts so that they sum up to the number of states.
func (t *table) normalise(counts []uint32, total uint32) {
	left, largest := int32(1)<<t.log, 0
	for i, c := range counts {
		switch scaled := int32(uint64(c) << t.log / uint64(total)); {
		case c == 0:
			t.norm[i] = 0
		case c <= total>>t.log:
			t.norm[i] = -1
			left--
		default:
			// Small shares lose most by being cut: round them to the nearest.
			if rest := uint64(c)<<t.log - uint64(scaled)*uint64(total); scaled < 8 && rest*2 > uint64(total) {
				scaled++
			}
			t.norm[i] = int16(scaled)
			left -= scaled
		}
		if t.norm[i] > t.norm[largest] {
			largest = i
		}
	}
	// What rounding has left over or taken too much is least felt by the largest.
	if left >= 0 || -left < int32(t.norm[largest])/2 {
		t.norm[largest] = int16(int32(max(t.norm[largest], -t.norm[largest])) + left)
		return
	}
	for ; left < 0; left++ { // many small symbols were rounded up: take from the largest, whichever it is by then
		for i := range counts {
			if t.norm[i] > t.norm[largest] {
				largest = i
			}
		}
		t.norm[largest]--
	}
}

// build spreads the symbols over the states.
func (t *table) build() {
	size := 1 << t.log
	var symbol [1 << maxTableLog]uint8
	var first [maxSymbols + 1]int
	high := size - 1
	for i, n := range t.norm[:t.symbols] {
		if n == -1 {
			symbol[high] = uint8(i)
			high--
			n = 1
		}
		first[i+1] = first[i] + int(n)
	}
	at, step, mask := 0, size>>1+size>>3+3, size-1
	for i, n := range t.norm[:t.symbols] {
		for range n { // none for -1
			symbol[at] = uint8(i)
			for at = (at + step) & mask; at > high; at = (at + step) & mask {
			}
		}
	}
	for i, n := range t.norm[:t.symbols] {
		t.transform(i, int(n), first[i])
	}
	for state := range size {
		s := symbol[state]
		t.states[first[s]] = uint16(size + state)
		first[s]++
	}
}

func (t *table) transform(symbol, n, first int) {
	switch n {
	case 0:
		t.of[symbol] = transform{}
	case 1, -1:
		t.of[symbol] = transform{bits: uint32(t.log)<<16 - 1<<t.log, next: int32(first - 1)}
	default:
		most := uint32(t.log) + 1 - uint32(bits.Len(uint(n-1)))
		t.of[symbol] = transform{bits: most<<16 - uint32(n)<<most, next: int32(first - n)}
	}
}

// appendTo appends the table's description (RFC 8878, 4.1.1).
func (t *table) appendTo(dst []byte) []byte {
	var acc uint64
	var n uint
	put := func(v uint32, width uint) {
		acc |= uint64(v) << n
		for n += width; n >= 8; n -= 8 {
			dst = append(dst, byte(acc))
			acc >>= 8
		}
	}
	put(uint32(t.log-minTableLog), 4)
	left := 1<<t.log + 1 // one more than the states to be told
	width := uint(t.log) + 1
	for i := 0; left > 1; i++ {
		v := int(t.norm[i]) + 1
		threshold := 1 << (width - 1)
		most := 2*threshold - 1 - left // small values take a bit less
		left -= max(v-1, 1-v)
		code := v
		if v >= threshold {
			code += most
		}
		if v < most {
			put(uint32(code), width-1)
		} else {
			put(uint32(code), width)
		}
		for left < 1<<(width-1) {
			width--
		}
		if v == 1 { // no state: say how many more have none
			zeros := 0
			for t.norm[i+1+zeros] == 0 {
				zeros++
			}
			i += zeros
			for ; zeros >= 3; zeros -= 3 {
				put(3, 2)
			}
			put(uint32(zeros), 2)
		}
	}
	if n > 0 {
		dst = append(dst, byte(acc))
	}
	return dst
}

// bitWriter writes bits from the lowest on. Passed by value it stays in registers.
type bitWriter struct {
	acc uint64
	n   uint
	at  int // where in the buffer the next byte goes
}

// add adds n bits of v, which has no others. Up to 56 bits fit after a flush.
func (w bitWriter) add(v uint64, n uint) bitWriter {
	w.acc |= v << (w.n & 63)
	w.n += n
	return w
}

// flush writes whole bytes; buf has room for eight.
func (w bitWriter) flush(buf []byte) bitWriter {
	binary.LittleEndian.PutUint64(buf[w.at:], w.acc)
	w.at += int(w.n >> 3)
	w.acc >>= w.n &^ 7 & 63
	w.n &= 7
	return w
}

// encode adds the bits that lead from the state by which a symbol is decoded to the one before.
func (w bitWriter) encode(state uint32, t *table, symbol uint8) (bitWriter, uint32) {
	tt := t.of[symbol&63]
	n := (state + tt.bits) >> 16 & 31
	w = w.add(uint64(state&(1<<n-1)), uint(n))
	return w, uint32(t.states[int32(state>>n)+tt.next])
}

// start is the state of the last symbol, which is encoded first.
func (t *table) start(symbol uint8) uint32 {
	tt := t.of[symbol&63]
	n := (tt.bits + 1<<15) >> 16
	return uint32(t.states[int32((n<<16-tt.bits)>>n)+tt.next])
}
