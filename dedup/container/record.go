package container

import (
	"crypto/cipher"
	"slices"

	"coffer/dedup/frame"
)

// Buffer is reusable memory for ReadFrame: the frame that was read into it is valid until its next use. The zero value
// is ready. Not for concurrent use.
type Buffer struct {
	raw   []byte
	aad   []byte
	refs  []frame.Ref
	nonce [nonceSize]byte
}

func (b *Buffer) sized(n int) []byte {
	b.raw = slices.Grow(b.raw[:0], n)[:n]
	return b.raw
}

// sealer turns frames into records and back, under one container's key. Safe for concurrent use.
type sealer struct {
	aead cipher.AEAD
	aad  []byte // the constant part; never appended to in place
}

// appendRecord appends a frame's record to dst; scratch holds additional data and nonce.
func (s *sealer) appendRecord(dst []byte, number uint32, f *frame.Frame, scratch *Buffer) []byte {
	start := len(dst)
	dst = slices.Grow(dst, recordLen(len(f.Refs), len(f.Stored)))
	dst = append(dst, recordMagic...)
	dst = le.AppendUint32(dst, number)
	dst = append(dst, byte(f.Codec), 0)
	dst = le.AppendUint16(dst, uint16(len(f.Refs)))
	dst = le.AppendUint32(dst, uint32(f.PlainLen()))
	dst = le.AppendUint32(dst, uint32(len(f.Stored)))
	for i := range f.Refs {
		dst = le.AppendUint32(dst, f.Refs[i].Length)
	}
	scratch.aad = append(append(scratch.aad[:0], s.aad...), dst[start:]...)
	putNonce(&scratch.nonce, number)
	dst = s.aead.Seal(dst, scratch.nonce[:], f.Stored, scratch.aad)
	return le.AppendUint32(dst, crc(dst[start:]))
}

// openRecord checks and decrypts a record in place. rows are the container's; info is the record's place in them. The
// frame lies in raw and in buf.
func (s *sealer) openRecord(raw []byte, number uint32, info FrameInfo, rows []byte, buf *Buffer) (frame.Frame, error) {
	n := int(info.Chunks)
	body := len(raw) - crcSize
	if len(raw) != int(info.Size) || body < recordLen(n, 0)-crcSize {
		return frame.Frame{}, damaged("frame %d: %d bytes, want %d", number, len(raw), info.Size)
	}
	if c := le.Uint32(raw[body:]); c != info.crc || c != crc(raw[:body]) {
		return frame.Frame{}, damaged("frame %d: checksum does not match", number)
	}
	head := raw[:recordHead+4*n]
	if !info.matches(head, number) {
		return frame.Frame{}, damaged("frame %d: record and directory differ", number)
	}
	if err := buf.takeRefs(head[recordHead:], info, rows); err != nil {
		return frame.Frame{}, err
	}
	buf.aad = append(append(buf.aad[:0], s.aad...), head...)
	putNonce(&buf.nonce, number)
	sealed := raw[len(head):body]
	stored, err := s.aead.Open(sealed[:0], buf.nonce[:], sealed, buf.aad)
	if err != nil {
		return frame.Frame{}, damaged("frame %d: not authentic", number)
	}
	return frame.Frame{Refs: buf.refs, Codec: info.Codec, Stored: stored}, nil
}

// matches compares a record's own header with what the directory says of it.
func (f FrameInfo) matches(head []byte, number uint32) bool {
	return string(head[:4]) == recordMagic && le.Uint32(head[4:]) == number && head[8] == byte(f.Codec) && head[9] == 0 &&
		uint32(le.Uint16(head[10:])) == f.Chunks && le.Uint32(head[12:]) == f.Plain &&
		int(le.Uint32(head[16:])) == f.stored()
}

// takeRefs fills refs from the rows, and compares the lengths that the record has.
func (b *Buffer) takeRefs(lengths []byte, info FrameInfo, rows []byte) error {
	b.refs = b.refs[:0]
	for i := range info.Chunks {
		r := rowAt(rows, info.FirstSlot+i)
		if r.Length != le.Uint32(lengths[4*i:]) {
			return damaged("chunk %d: record and directory differ", info.FirstSlot+i)
		}
		b.refs = append(b.refs, frame.Ref{Digest: r.Digest, Length: r.Length})
	}
	return nil
}
