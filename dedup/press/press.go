package press

import (
	"encoding/binary"
	"slices"

	"github.com/klauspost/compress/huff0"
)

const (
	magic = 0xfd2fb528
	// maxBlock is the most plain bytes in a block.
	maxBlock = 128 << 10
	// MaxInput is the most bytes that Append takes: an offset has at most 23 bits beside its code.
	MaxInput = 1<<24 - 4

	singleSegment = 1 << 5
	blockHead     = 3
)

// blockType is in bits 1 and 2 of a block's header; RLE, 1, is not used.
type blockType uint32

const (
	rawBlock        blockType = 0
	compressedBlock blockType = 2
)

// Encoder compresses. It holds about a MiB. Not safe for concurrent use.
type Encoder struct {
	finder finder
	coder  coder
	huff   huff0.Scratch
}

// NewEncoder returns an Encoder.
func NewEncoder() *Encoder {
	e := &Encoder{huff: huff0.Scratch{WantLogLess: 4}}
	e.coder.init()
	return e
}

// Append appends one Zstandard frame that holds src to dst. It panics when src is longer than MaxInput.
func (e *Encoder) Append(dst, src []byte) []byte {
	if len(src) > MaxInput {
		panic("press: input too long")
	}
	dst = appendHeader(dst, uint32(len(src)))
	e.finder.reset()
	e.coder.rep = firstOffsets
	e.huff.Reuse = huff0.ReusePolicyNone
	for start, end := 0, 0; ; start = end {
		end = min(start+maxBlock, len(src))
		dst = e.block(dst, src[:end], start, end == len(src))
		if end == len(src) {
			return dst
		}
	}
}

func appendHeader(dst []byte, n uint32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, magic)
	switch {
	case n < 256:
		return append(dst, singleSegment, byte(n))
	case n < 256+1<<16:
		return binary.LittleEndian.AppendUint16(append(dst, singleSegment|1<<6), uint16(n-256))
	}
	return binary.LittleEndian.AppendUint32(append(dst, singleSegment|2<<6), n)
}

// block appends what src holds from start on; what is before it is history.
func (e *Encoder) block(dst, src []byte, start int, last bool) []byte {
	head, rep := len(dst), e.coder.rep
	dst = append(dst, make([]byte, blockHead)...)
	e.finder.find(src, start)
	plain := src[start:]
	dst = e.literals(dst)
	dst = e.coder.append(dst, e.finder.seqs)
	kind := compressedBlock
	if len(dst)-head-blockHead >= len(plain) {
		dst = append(dst[:head+blockHead], plain...)
		kind = rawBlock
		e.coder.rep, e.huff.Reuse = rep, huff0.ReusePolicyNone // the reader has not met them
	}
	size := len(dst) - head - blockHead
	h := uint32(kind)<<1 | uint32(size)<<3
	if last {
		h |= 1
	}
	dst[head], dst[head+1], dst[head+2] = byte(h), byte(h>>8), byte(h>>16)
	return dst
}

// literalsType is in the lowest two bits of a literals header.
type literalsType uint64

const (
	rawLiterals      literalsType = 0
	rleLiterals      literalsType = 1
	huffmanLiterals  literalsType = 2
	treelessLiterals literalsType = 3
)

const (
	// minHuffman is how many literals are worth a try.
	minHuffman = 32
	// fourStreams is from how many literals on they are coded as four streams, which a reader decodes side by side.
	fourStreams = 1024
)

// literals appends the literals section.
func (e *Encoder) literals(dst []byte) []byte {
	lits := e.finder.lits
	if len(lits) < minHuffman || even(lits) {
		return append(appendPlainHeader(dst, rawLiterals, len(lits)), lits...)
	}
	compress := huff0.Compress1X
	if len(lits) >= fourStreams {
		compress = huff0.Compress4X
	}
	out, reused, err := compress(lits, &e.huff)
	switch err {
	case nil:
	case huff0.ErrUseRLE:
		return append(appendPlainHeader(dst, rleLiterals, len(lits)), lits[0])
	default: // ErrIncompressible
		return append(appendPlainHeader(dst, rawLiterals, len(lits)), lits...)
	}
	kind := huffmanLiterals
	if reused {
		kind = treelessLiterals
	}
	e.huff.Reuse = huff0.ReusePolicyAllow
	return append(appendHuffmanHeader(dst, kind, len(lits), len(out)), out...)
}

// samples of the literals decide whether they are worth to be counted.
const samples = 4096

// even reports whether no byte is frequent enough for codes of different lengths to pay. Noise is told by a glance.
func even(p []byte) bool {
	if len(p) < samples {
		return false
	}
	var counts [256]uint16
	step := len(p) / samples
	for i := range samples {
		counts[p[i*step]]++
	}
	return slices.Max(counts[:]) < samples/80 // of noise about samples/128, of base64 samples/64
}

// appendPlainHeader appends the header of raw or RLE literals.
func appendPlainHeader(dst []byte, t literalsType, n int) []byte {
	switch h := uint32(t); {
	case n < 1<<5:
		return append(dst, byte(h|uint32(n)<<3))
	case n < 1<<12:
		return binary.LittleEndian.AppendUint16(dst, uint16(h|1<<2|uint32(n)<<4))
	default:
		h |= 3<<2 | uint32(n)<<4
		return append(dst, byte(h), byte(h>>8), byte(h>>16))
	}
}

// appendHuffmanHeader appends the header of n literals that are coded in size bytes, with their table.
func appendHuffmanHeader(dst []byte, t literalsType, n, size int) []byte {
	h, length := uint64(t), 3
	switch most := max(n, size); {
	case n < fourStreams:
		h |= uint64(n)<<4 | uint64(size)<<14
	case most < 1<<10:
		h |= 1<<2 | uint64(n)<<4 | uint64(size)<<14
	case most < 1<<14:
		h |= 2<<2 | uint64(n)<<4 | uint64(size)<<18
		length = 4
	default:
		h |= 3<<2 | uint64(n)<<4 | uint64(size)<<22
		length = 5
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], h)
	return append(dst, b[:length]...)
}
