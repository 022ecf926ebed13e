// Package frame owns the unit of compression: a frame is up to 256 KiB of consecutive chunks (or one longer
// chunk), compressed as one. Agents make frames, the wire and the containers carry them as they are, readers
// decompress them. The package does not encrypt, and it does not know where a frame lies.
//
// Identity stays with the chunk: a frame names the digest and the length of each chunk in it, and Verify
// recomputes them. FORMAT.md has the bytes.
package frame

import (
	"errors"
	"fmt"

	"coffer/dedup/digest"
)

const (
	// MaxPlain is the most plain bytes in a frame of several chunks. Part of the format.
	MaxPlain = 256 << 10
	// MaxChunk is the most plain bytes in a frame of one chunk. Part of the format.
	MaxChunk = 8 << 20
	// MaxRefs is the most chunks in a frame. Part of the format.
	MaxRefs = 4096
)

// Codec says how the stored bytes of a frame are compressed. Part of the format.
type Codec uint8

// The codecs.
const (
	Raw  Codec = 0 // stored as they are
	Zstd Codec = 1 // one Zstandard frame, RFC 8878
)

func (c Codec) String() string {
	switch c {
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec(0x%02x)", uint8(c))
}

// Errors of this package are one of these, wrapped with what was wrong.
var (
	// ErrMalformed: the frame breaks a rule of the format, or its stored bytes do not decompress to what the refs
	// promise.
	ErrMalformed = errors.New("malformed frame")
	// ErrWrongDigest: a chunk's bytes are not those its digest names.
	ErrWrongDigest = errors.New("wrong digest")
)

// Ref is one chunk inside a frame.
type Ref struct {
	Digest digest.Digest
	Length uint32 // plain bytes, at least 1
}

// Frame is chunks in order, compressed as one. The refs' order is the order of the plain bytes.
type Frame struct {
	Refs   []Ref
	Codec  Codec
	Stored []byte // compressed (or raw) bytes
}

// PlainLen returns the plain bytes that the refs promise.
func (f Frame) PlainLen() int {
	n := 0
	for i := range f.Refs {
		n += int(f.Refs[i].Length)
	}
	return n
}

// Validate checks all that can be checked without decompressing: the number and lengths of the chunks, the codec,
// and the stored length, which is never more than the plain length.
func (f Frame) Validate() error {
	n, err := checkRefs(f.Refs)
	if err != nil {
		return err
	}
	return checkStored(f.Codec, len(f.Stored), n)
}

func checkRefs(refs []Ref) (plain int, err error) {
	if len(refs) == 0 || len(refs) > MaxRefs {
		return 0, fmt.Errorf("%w: %d chunks, want 1 to %d", ErrMalformed, len(refs), MaxRefs)
	}
	limit := MaxPlain
	if len(refs) == 1 {
		limit = MaxChunk
	}
	for i := range refs {
		if refs[i].Length == 0 || int64(refs[i].Length) > int64(limit-plain) {
			return 0, fmt.Errorf("%w: chunk %d of %d has %d bytes after %d, limit %d",
				ErrMalformed, i, len(refs), refs[i].Length, plain, limit)
		}
		plain += int(refs[i].Length)
	}
	return plain, nil
}

func checkStored(c Codec, stored, plain int) error {
	switch {
	case c == Raw && stored == plain:
	case c == Zstd && stored > 0 && stored < plain:
	case c > Zstd:
		return fmt.Errorf("%w: unknown %v", ErrMalformed, c)
	default:
		return fmt.Errorf("%w: %d stored bytes (%v) for %d plain bytes", ErrMalformed, stored, c, plain)
	}
	return nil
}

// Verify recomputes the digest of every chunk in plain, the result of Decode. It returns ErrWrongDigest or, when
// plain has another length than the refs promise, ErrMalformed.
func (f Frame) Verify(h *digest.Hasher, plain []byte) error {
	if n := f.PlainLen(); n != len(plain) {
		return fmt.Errorf("%w: %d plain bytes, refs say %d", ErrMalformed, len(plain), n)
	}
	for i := range f.Refs {
		n := f.Refs[i].Length
		if h.Sum(plain[:n]) != f.Refs[i].Digest {
			return fmt.Errorf("%w: chunk %d of %d, %v", ErrWrongDigest, i, len(f.Refs), f.Refs[i].Digest)
		}
		plain = plain[n:]
	}
	return nil
}

// Chunk returns the plain bytes of the i-th chunk within plain, the result of Decode.
func (f Frame) Chunk(i int, plain []byte) []byte {
	off := 0
	for j := range f.Refs[:i] {
		off += int(f.Refs[j].Length)
	}
	end := off + int(f.Refs[i].Length)
	return plain[off:end:end]
}
