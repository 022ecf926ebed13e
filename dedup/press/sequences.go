package press

import (
	"math/bits"
	"slices"
)

// codes are the symbols of a sequence's three numbers.
type codes struct{ run, match, offset uint8 }

const (
	maxRunLog, maxMatchLog, maxOffsetLog = 9, 9, 8

	// fewSequences do not pay for tables of their own.
	fewSequences = 48
	// roomPerSequence is enough for one sequence's bits: 26 of the states, 16 + 16 + 30 more.
	roomPerSequence = 11
)

// tableMode says how a table is told. It is two bits of the modes byte.
type tableMode uint8

const (
	predefinedMode tableMode = 0
	rleMode        tableMode = 1
	fseMode        tableMode = 2
)

// The predefined distributions (RFC 8878, 3.1.1.3.2.2).
var (
	runNorm = []int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1,
		-1, -1, -1, -1}
	matchNorm = []int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}
	offsetNorm = []int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}
)

// firstOffsets are what the repeated offsets of a frame begin with.
var firstOffsets = [3]uint32{1, 4, 8}

// Plain bits that follow each code of a run and of a match (RFC 8878, 3.1.1.3.2.1.1).
var (
	runBits = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11,
		12, 13, 14, 15, 16}
	matchBits = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

const (
	smallRun   = 64  // from here on the code is that of the highest bit
	smallMatch = 128 // likewise
)

// coder makes the sequences section.
type coder struct {
	rep                [3]uint32 // the last offsets, which have codes of their own
	run, match, offset alphabet
	runCode            [smallRun]uint8
	matchCode          [smallMatch]uint8
}

// alphabet is the codes of one of the three kinds of numbers.
type alphabet struct {
	counts [64]uint32
	extra  [64]uint8 // plain bits that follow a code
	maxLog uint8
	fixed  *table // the predefined one
	own    table
	table  *table // the one in use
}

func (c *coder) init() {
	c.run.fixed, c.run.maxLog = predefined(6, runNorm), maxRunLog
	c.match.fixed, c.match.maxLog = predefined(6, matchNorm), maxMatchLog
	c.offset.fixed, c.offset.maxLog = predefined(5, offsetNorm), maxOffsetLog
	copy(c.run.extra[:], runBits[:])
	copy(c.match.extra[:], matchBits[:])
	for i := range uint8(32) {
		c.offset.extra[i] = i
	}
	spell(c.runCode[:], runBits[:])
	spell(c.matchCode[:], matchBits[:])
}

// spell fills the codes of small numbers: each code stands for as many as its extra bits can tell apart.
func spell(code, extra []uint8) {
	v := 0
	for i, n := range extra {
		for range min(1<<n, len(code)-v) {
			code[v] = uint8(i)
			v++
		}
	}
}

// append appends the sequences section.
func (c *coder) append(dst []byte, seqs []sequence) []byte {
	dst = appendCount(dst, len(seqs))
	if len(seqs) == 0 {
		return dst
	}
	c.code(seqs)
	modes := len(dst)
	dst = append(dst, 0)
	for i, a := range [...]*alphabet{&c.run, &c.offset, &c.match} {
		var mode tableMode
		dst, mode = a.choose(dst, uint32(len(seqs)))
		dst[modes] |= byte(mode) << (6 - 2*i)
	}
	return c.bits(dst, seqs)
}

func appendCount(dst []byte, n int) []byte {
	switch {
	case n < 128:
		return append(dst, byte(n))
	case n < 0x7f00:
		return append(dst, byte(n>>8)+128, byte(n))
	}
	return append(dst, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
}

// code finds the codes of all numbers and counts them. Offsets that are among the last three become their numbers.
func (c *coder) code(seqs []sequence) {
	clear(c.run.counts[:])
	clear(c.match.counts[:])
	clear(c.offset.counts[:])
	rep0, rep1, rep2 := c.rep[0], c.rep[1], c.rep[2]
	for i := range seqs {
		q := &seqs[i]
		off, first := q.offset, uint32(1)
		if q.run == 0 {
			first = 0
		}
		switch {
		case off == rep0 && q.run > 0:
			q.offset = 1
		case off == rep1:
			q.offset = first + 1
			rep0, rep1 = off, rep0
		case off == rep2:
			q.offset = first + 2
			rep0, rep1, rep2 = off, rep0, rep1
		default:
			q.offset = off + 3
			rep0, rep1, rep2 = off, rep0, rep1
		}
		q.codes.offset = uint8(bits.Len32(q.offset) - 1)
		c.offset.counts[q.codes.offset&63]++
		if q.run < smallRun {
			q.codes.run = c.runCode[q.run]
		} else {
			q.codes.run = uint8(bits.Len32(q.run) + 18)
		}
		c.run.counts[q.codes.run&63]++
		if q.match < smallMatch {
			q.codes.match = c.matchCode[q.match]
		} else {
			q.codes.match = uint8(bits.Len32(q.match) + 35)
		}
		c.match.counts[q.codes.match&63]++
	}
	c.rep = [3]uint32{rep0, rep1, rep2}
}

// choose picks the table for n sequences and appends its description.
func (a *alphabet) choose(dst []byte, n uint32) ([]byte, tableMode) {
	last := len(a.counts) - 1
	for a.counts[last] == 0 {
		last--
	}
	switch {
	case a.counts[last] == n:
		a.own.only(uint8(last))
		a.table = &a.own
		return append(dst, byte(last)), rleMode
	case n < fewSequences:
		a.table = a.fixed
		return dst, predefinedMode
	}
	a.own.fit(a.counts[:last+1], n, a.maxLog)
	a.table = &a.own
	return a.own.appendTo(dst), fseMode
}

// bits appends the sequences, the last one first.
func (c *coder) bits(dst []byte, seqs []sequence) []byte {
	dst = slices.Grow(dst, roomPerSequence*len(seqs)+32)
	buf := dst[:cap(dst)]
	w := bitWriter{at: len(dst)}
	runs, matches, offsets := c.run.table, c.match.table, c.offset.table
	last := &seqs[len(seqs)-1]
	run, match, offset := runs.start(last.codes.run), matches.start(last.codes.match), offsets.start(last.codes.offset)
	w = c.extra(w, buf, last)
	for i := len(seqs) - 2; i >= 0; i-- {
		q := &seqs[i]
		w, offset = w.encode(offset, offsets, q.codes.offset)
		w, match = w.encode(match, matches, q.codes.match)
		w, run = w.encode(run, runs, q.codes.run)
		w = c.extra(w, buf, q)
	}
	w = w.add(uint64(match)&(1<<matches.log-1), uint(matches.log))
	w = w.add(uint64(offset)&(1<<offsets.log-1), uint(offsets.log))
	w = w.add(uint64(run)&(1<<runs.log-1), uint(runs.log))
	w = w.add(1, 1) // the end
	w = w.flush(buf)
	if w.n > 0 {
		w.n = 8
		w = w.flush(buf)
	}
	return buf[:w.at]
}

// extra adds what follows the codes of a sequence: at most 56 bits, beside which 7 are kept and 26 of the states.
func (c *coder) extra(w bitWriter, buf []byte, q *sequence) bitWriter {
	rn, mn, on := c.run.extra[q.codes.run&63], c.match.extra[q.codes.match&63], c.offset.extra[q.codes.offset&63]
	v := uint64(q.offset&(1<<(on&31)-1))<<(rn+mn&63) | uint64(q.match&(1<<(mn&31)-1))<<(rn&63) | uint64(q.run&(1<<(rn&31)-1))
	n := uint(rn + mn + on)
	if w.n+n > 63 {
		w = w.flush(buf)
	}
	return w.add(v, n).flush(buf)
}
