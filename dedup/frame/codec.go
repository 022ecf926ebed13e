package frame

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Encoder compresses frames. It holds a few hundred KiB to a few MiB: keep one per goroutine. Not safe for
// concurrent use.
type Encoder struct {
	z *zstd.Encoder
}

// NewEncoder returns an Encoder.
func NewEncoder() *Encoder {
	z, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1),
		zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderCRC(false), // every chunk has its digest
		zstd.WithSingleSegment(true))
	if err != nil {
		panic("frame: zstd refuses constant options: " + err.Error())
	}
	return &Encoder{z: z}
}

// minSaving is the part of the plain bytes that compression must save to be worth decompressing later: 1/32.
const minSaving = 32

// Encode compresses plain, the chunks of refs one after the other, into dst[:0] (grown when it is too small). It
// stores them raw where compression does not pay; then Stored is a copy in dst as well, so that plain stays the
// caller's. Refs are kept, not copied. The refs must obey the format (Packer sees to it) and plain must be as long
// as they say: Encode panics otherwise, for that is a bug of the caller.
func (e *Encoder) Encode(refs []Ref, plain []byte, dst []byte) Frame {
	n, err := checkRefs(refs)
	if err != nil || n != len(plain) {
		panic(fmt.Sprintf("frame: encode %d bytes for refs of %d bytes: %v", len(plain), n, err))
	}
	out := e.z.EncodeAll(plain, dst[:0]) // noise costs little: several GB/s
	if len(out) < len(plain)-len(plain)/minSaving {
		return Frame{Refs: refs, Codec: Zstd, Stored: out}
	}
	return Frame{Refs: refs, Codec: Raw, Stored: append(out[:0], plain...)}
}

// Decoder decompresses frames. Keep one per goroutine. Not safe for concurrent use.
type Decoder struct {
	z *zstd.Decoder
}

// NewDecoder returns a Decoder.
func NewDecoder() *Decoder {
	z, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxChunk),
		zstd.WithDecoderMaxWindow(MaxChunk),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("frame: zstd refuses constant options: " + err.Error())
	}
	return &Decoder{z: z}
}

// Decode appends the plain bytes of f to dst and returns the extended slice. INVARIANT: whatever f holds, no more
// than f.PlainLen() bytes (at most MaxChunk) are appended, and exactly as many or ErrMalformed is returned; a few bytes
// of dst's capacity behind them may be overwritten. Digests are not checked: that is Verify's work.
func (d *Decoder) Decode(f Frame, dst []byte) ([]byte, error) {
	n, err := checkRefs(f.Refs)
	if err != nil {
		return nil, err
	}
	if err := checkStored(f.Codec, len(f.Stored), n); err != nil {
		return nil, err
	}
	if f.Codec == Raw {
		return append(dst, f.Stored...), nil
	}
	return d.inflate(f.Stored, n, dst)
}

// Room is how many bytes Decode wants of its destination, for frames of n plain bytes, so that it need not make another.
func Room(n int) int { return n + slack }

// slack is how many bytes of room behind the result let zstd copy in blocks of 16 up to the very end, which is a third
// faster for the last 128 KiB of every frame.
const slack = 16

func (d *Decoder) inflate(stored []byte, n int, dst []byte) ([]byte, error) {
	if err := checkHeader(stored, n); err != nil {
		return nil, err
	}
	dst = grow(dst, n+slack)
	from := len(dst)
	// The capacity is the limit: zstd stops with an error before it writes a byte past it.
	out, err := d.z.DecodeAll(stored, dst[from:from:from+n+slack])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(out) != n {
		return nil, fmt.Errorf("%w: decompressed to %d bytes, refs say %d", ErrMalformed, len(out), n)
	}
	return dst[:from+n], nil
}

// checkHeader refuses a Zstandard header that breaks the format's rules before any memory is spent on it.
func checkHeader(stored []byte, n int) error {
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("%w: a skippable zstd frame", ErrMalformed)
	case h.DictionaryID != 0:
		return fmt.Errorf("%w: zstd dictionary 0x%x", ErrMalformed, h.DictionaryID)
	case !h.SingleSegment || !h.HasFCS || h.FrameContentSize != uint64(n):
		return fmt.Errorf("%w: zstd header promises %d bytes, refs say %d", ErrMalformed, h.FrameContentSize, n)
	}
	return nil
}

func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	bigger := make([]byte, len(dst), len(dst)+n)
	copy(bigger, dst)
	return bigger
}
