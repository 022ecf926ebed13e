package container

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
)

// The layout: header, records, directory, footer. FORMAT.md has the tables. Part of the format.
const (
	version = 1

	headerMagic = "COFFCONT"
	recordMagic = "CREC"
	dirMagic    = "CDIR"
	footerMagic = "COFFFOOT"

	headerSize     = 128
	recordHead     = 20 // before the lengths of the chunks
	recordTail     = keys.Overhead + crcSize
	dirHead        = 16 + headerSize
	dirTail        = macSize + crcSize
	frameRowSize   = 32
	rowSize        = 44
	footerSize     = 84
	footerHashed   = 48 // bytes of the footer that the BLAKE3 of the whole covers
	crcSize        = 4
	macSize        = 32
	nonceSize      = 12
	headerAADSize  = 52 // bytes of the header that are bound to the wrapped data key
	recordAADStart = 2 + 1 + 1 + 16 + 8
)

// MaxSize bounds a container, and so the memory that a forged one can ask for.
const MaxSize = 1 << 30

var le = binary.LittleEndian

// castagnoli makes the table of CRC32C; hash/crc32 builds it once and returns the same one.
func crc(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

// header is a container's first bytes, repeated in its directory.
type header struct {
	id      ID
	kind    Kind
	domain  digest.DomainID
	created int64
	key     keys.WrappedKey
}

// aad encodes what is bound to the wrapped data key.
func (h *header) aad() []byte {
	b := make([]byte, headerAADSize)
	copy(b, headerMagic)
	le.PutUint16(b[8:], version)
	b[10] = byte(h.kind)
	if h.key.Encrypted {
		b[11] = 1
	}
	le.PutUint64(b[16:], uint64(h.id))
	copy(b[24:], h.domain[:])
	le.PutUint64(b[40:], uint64(h.created))
	le.PutUint32(b[48:], h.key.Number)
	return b
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, h.aad())
	copy(b[headerAADSize:], h.key.Bytes[:])
	le.PutUint32(b[headerSize-crcSize:], crc(b[:headerSize-crcSize]))
	return b
}

// parseHeader decodes headerSize bytes. The version is judged before the checksum, which a newer one may place elsewhere.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:8]) != headerMagic {
		return header{}, damaged("header: no magic")
	}
	if err := checkVersion("header", b[:headerSize]); err != nil {
		return header{}, err
	}
	if le.Uint32(b[headerSize-crcSize:]) != crc(b[:headerSize-crcSize]) {
		return header{}, damaged("header: checksum does not match")
	}
	h := header{
		id:      ID(le.Uint64(b[16:])),
		kind:    Kind(b[10]),
		domain:  digest.DomainID(b[24:]),
		created: int64(le.Uint64(b[40:])),
		key:     keys.WrappedKey{Number: le.Uint32(b[48:]), Encrypted: b[11] == 1},
	}
	copy(h.key.Bytes[:], b[headerAADSize:])
	if h.kind != Data && h.kind != Node {
		return header{}, damaged("header: %v", h.kind)
	}
	if string(h.encode()) != string(b[:headerSize]) { // reserved bytes are zero, flags are 0 or 1
		return header{}, damaged("header: reserved bytes are in use")
	}
	return h, nil
}

// checkVersion judges the version of a header or footer. One whose checksum, as this version places it, is right but for
// the version is of this version, and a bit of it is wrong: that is no reason to call the store newer.
func checkVersion(part string, b []byte) error {
	v := le.Uint16(b[8:])
	if v == version {
		return nil
	}
	ours := bytes.Clone(b)
	le.PutUint16(ours[8:], version)
	if body := len(ours) - crcSize; v < version || le.Uint32(ours[body:]) == crc(ours[:body]) {
		return damaged("%s: version %d", part, v)
	}
	return fmt.Errorf("%w: %s: version %d", ErrNewerFormat, part, v)
}

// recordAAD is the part of a record's additional data that is the same for the whole container.
func (h *header) recordAAD() []byte {
	b := make([]byte, recordAADStart, recordAADStart+recordHead+4*64)
	le.PutUint16(b, version)
	b[2] = byte(h.kind)
	copy(b[4:], h.domain[:])
	le.PutUint64(b[20:], uint64(h.id))
	return b
}

// putNonce writes a record's nonce: its number.
func putNonce(nonce *[nonceSize]byte, number uint32) { le.PutUint64(nonce[:], uint64(number)) }

// recordLen is the length of a record of n chunks and stored bytes.
func recordLen(n, stored int) int { return recordHead + 4*n + stored + recordTail }

// footer is a container's last bytes.
type footer struct {
	id        ID
	dirOffset int64
	dirLen    uint32
	size      int64
	hash      [32]byte
}

// encode returns the footer without hash and checksum filled in.
func (f *footer) encode() []byte {
	b := make([]byte, footerSize)
	copy(b, footerMagic)
	le.PutUint16(b[8:], version)
	le.PutUint64(b[16:], uint64(f.id))
	le.PutUint64(b[24:], uint64(f.dirOffset))
	le.PutUint32(b[32:], f.dirLen)
	le.PutUint64(b[40:], uint64(f.size))
	copy(b[footerHashed:], f.hash[:])
	le.PutUint32(b[footerSize-crcSize:], crc(b[:footerSize-crcSize]))
	return b
}

// parseFooter decodes the last footerSize bytes of a container of the given size.
func parseFooter(b []byte, size int64) (footer, error) {
	if len(b) != footerSize || string(b[:8]) != footerMagic {
		return footer{}, damaged("footer: no magic")
	}
	if err := checkVersion("footer", b); err != nil {
		return footer{}, err
	}
	f := footer{
		id:        ID(le.Uint64(b[16:])),
		dirOffset: int64(le.Uint64(b[24:])),
		dirLen:    le.Uint32(b[32:]),
		size:      int64(le.Uint64(b[40:])),
		hash:      [32]byte(b[footerHashed:]),
	}
	if string(f.encode()) != string(b) {
		return footer{}, damaged("footer: checksum does not match")
	}
	if f.size != size || f.size > MaxSize || f.dirOffset < headerSize || int64(f.dirLen) < dirHead+dirTail ||
		f.dirOffset > size || f.dirOffset+int64(f.dirLen)+footerSize != size {
		return footer{}, damaged("footer: lengths do not add up to %d bytes", size)
	}
	return f, nil
}

// Row is one chunk of a container.
type Row struct {
	Digest digest.Digest
	Frame  uint32 // index of the frame
	Offset uint32 // in the frame's plain bytes
	Length uint32 // plain bytes
}

func appendRow(b []byte, r Row) []byte {
	b = append(b, r.Digest[:]...)
	b = le.AppendUint32(b, r.Frame)
	b = le.AppendUint32(b, r.Offset)
	return le.AppendUint32(b, r.Length)
}

func rowAt(rows []byte, slot uint32) Row {
	b := rows[int(slot)*rowSize:][:rowSize]
	return Row{Digest: digest.Digest(b), Frame: le.Uint32(b[32:]), Offset: le.Uint32(b[36:]), Length: le.Uint32(b[40:])}
}

// FrameInfo is one frame of a container.
type FrameInfo struct {
	Offset    int64  // of the record, in the container
	Size      uint32 // of the record: all that is read for the frame
	Plain     uint32 // bytes after decompression
	FirstSlot uint32
	Chunks    uint32
	Codec     frame.Codec
	crc       uint32 // of the record
}

func appendFrameRow(b []byte, f FrameInfo) []byte {
	b = le.AppendUint64(b, uint64(f.Offset))
	b = le.AppendUint32(b, f.Size)
	b = le.AppendUint32(b, f.Plain)
	b = le.AppendUint32(b, f.FirstSlot)
	b = le.AppendUint32(b, f.Chunks)
	b = append(b, byte(f.Codec), 0, 0, 0)
	return le.AppendUint32(b, f.crc)
}

func frameAt(frames []byte, i uint32) FrameInfo {
	b := frames[int(i)*frameRowSize:][:frameRowSize]
	return FrameInfo{
		Offset: int64(le.Uint64(b)), Size: le.Uint32(b[8:]), Plain: le.Uint32(b[12:]),
		FirstSlot: le.Uint32(b[16:]), Chunks: le.Uint32(b[20:]), Codec: frame.Codec(b[24]), crc: le.Uint32(b[28:]),
	}
}

// stored returns the compressed bytes in the record.
func (f FrameInfo) stored() int { return int(f.Size) - recordLen(int(f.Chunks), 0) }
