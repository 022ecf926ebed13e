package frame

import (
	"encoding/binary"
	"fmt"

	"coffer/dedup/digest"
)

// Byte layout of a frame outside a container; see FORMAT.md. Part of the format.
const (
	headerLen = 4               // codec, zero, number of refs
	refLen    = digest.Size + 4 // digest, length

	// MaxEncoded is the longest encoding of a frame in bytes.
	MaxEncoded = headerLen + refLen*MaxRefs + MaxChunk
)

// HeaderLen returns the bytes that AppendHeader appends for n refs.
func HeaderLen(n int) int { return headerLen + refLen*n }

// AppendHeader appends the encoding of all of f but the stored bytes, which follow it directly. A writer that can
// gather saves the copy of Append with it.
func (f Frame) AppendHeader(dst []byte) []byte {
	dst = append(dst, byte(f.Codec), 0)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(f.Refs)))
	for i := range f.Refs {
		dst = append(dst, f.Refs[i].Digest[:]...)
		dst = binary.LittleEndian.AppendUint32(dst, f.Refs[i].Length)
	}
	return dst
}

// Append appends the whole encoding of f.
func (f Frame) Append(dst []byte) []byte { return append(f.AppendHeader(dst), f.Stored...) }

// Parse reads what Append wrote and validates it. Stored is a part of p, not a copy. The error is ErrMalformed.
func Parse(p []byte) (Frame, error) {
	if len(p) < headerLen || len(p) > MaxEncoded {
		return Frame{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(p))
	}
	n := int(binary.LittleEndian.Uint16(p[2:]))
	if p[1] != 0 || n > MaxRefs || len(p) < HeaderLen(n) {
		return Frame{}, fmt.Errorf("%w: %d chunks in %d bytes", ErrMalformed, n, len(p))
	}
	f := Frame{Refs: make([]Ref, n), Codec: Codec(p[0]), Stored: p[HeaderLen(n):]}
	for i := range f.Refs {
		r := p[headerLen+refLen*i:]
		copy(f.Refs[i].Digest[:], r)
		f.Refs[i].Length = binary.LittleEndian.Uint32(r[digest.Size:])
	}
	if err := f.Validate(); err != nil {
		return Frame{}, err
	}
	return f, nil
}
