package container

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
)

// tailRead is how much of a container's end is read at once: most directories fit.
const tailRead = 256 << 10

// Directory is a sealed container's table of contents in memory. It is immutable and safe for concurrent use.
type Directory struct {
	header header
	size   int64
	frames []byte   // frame table, as stored
	rows   []byte   // rows, as stored
	table  []uint32 // open addressing by digest: slot+1, 0 is free
	sealer *sealer  // nil without keys
}

// newDirectory takes a checked directory's bytes, which it keeps.
func newDirectory(h header, dir []byte, size int64) (*Directory, error) {
	frames, rows, err := splitDirectory(dir)
	if err != nil {
		return nil, err
	}
	d := &Directory{header: h, size: size, frames: frames, rows: rows}
	d.buildTable()
	return d, nil
}

// buildTable fills the hash table to two thirds. Digests are uniform already: four bytes of them, scaled, are the hash.
// Only the first row of a digest is entered, so that a container full of one chunk costs no more than another.
func (d *Directory) buildTable() {
	n := d.Rows()
	d.table = make([]uint32, n+n/2+1)
	for slot := range uint32(n) {
		if i, found := d.probe(d.rowDigest(slot)); !found {
			d.table[i] = slot + 1
		}
	}
}

// probe returns the place of a digest in the table, or the free place where it belongs.
func (d *Directory) probe(x []byte) (i int, found bool) {
	i = d.bucket(x)
	for d.table[i] != 0 {
		if bytes.Equal(d.rowDigest(d.table[i]-1), x) {
			return i, true
		}
		if i++; i == len(d.table) {
			i = 0
		}
	}
	return i, false
}

func (d *Directory) bucket(x []byte) int {
	return int(uint64(le.Uint32(x[8:])) * uint64(len(d.table)) >> 32)
}

func (d *Directory) rowDigest(slot uint32) []byte { return d.rows[int(slot)*rowSize:][:digest.Size] }

// Lookup finds the slot of a chunk, the first one if the container has it twice.
func (d *Directory) Lookup(x digest.Digest) (slot uint32, ok bool) {
	i, ok := d.probe(x[:])
	if !ok {
		return 0, false
	}
	return d.table[i] - 1, true
}

// ID returns the container's id.
func (d *Directory) ID() ID { return d.header.id }

// Kind returns what the container holds.
func (d *Directory) Kind() Kind { return d.header.kind }

// Domain returns the dedup domain of the container's chunks.
func (d *Directory) Domain() digest.DomainID { return d.header.domain }

// Created returns the container's birth in Unix seconds, as its writer's clock said.
func (d *Directory) Created() int64 { return d.header.created }

// StoreKey returns the number of the store key that wraps the container's key.
func (d *Directory) StoreKey() uint32 { return d.header.key.Number }

// Size returns the length of the whole container in bytes.
func (d *Directory) Size() int64 { return d.size }

// fixedMem is what a Directory takes beside its slices, with the cipher's state.
const fixedMem = 1200

// MemSize returns the bytes of memory that the Directory holds.
func (d *Directory) MemSize() int64 {
	return int64(len(d.frames)+len(d.rows)+dirHead+dirTail+4*len(d.table)) + fixedMem
}

// Rows returns the number of chunks.
func (d *Directory) Rows() int { return len(d.rows) / rowSize }

// Frames returns the number of frames.
func (d *Directory) Frames() int { return len(d.frames) / frameRowSize }

// Row returns the row of a slot. It panics when slot >= Rows: whoever takes a slot from the index checks it first.
func (d *Directory) Row(slot uint32) Row { return rowAt(d.rows, slot) }

// Digest is Row(slot).Digest.
func (d *Directory) Digest(slot uint32) digest.Digest { return digest.Digest(d.rowDigest(slot)) }

// Frame returns frame i. It panics when i >= Frames.
func (d *Directory) Frame(i uint32) FrameInfo { return frameAt(d.frames, i) }

// OpenDirectory reads a container's directory. With a ring it is authenticated and ReadFrame works; without (nil), only
// checksums are tested, digests and lengths can be read, and ReadFrame is ErrNoKeys. Errors: blob.ErrNotExist,
// ErrDamaged, ErrNewerFormat, keys.ErrUnknownKey.
func OpenDirectory(ctx context.Context, b blob.Store, id ID, ring *keys.Ring) (*Directory, error) {
	d, err := openDirectory(ctx, b, id, ring)
	if err != nil {
		return nil, fmt.Errorf("open container %v: %w", id, err)
	}
	return d, nil
}

func openDirectory(ctx context.Context, b blob.Store, id ID, ring *keys.Ring) (*Directory, error) {
	ft, tail, err := readFooter(ctx, b, id, tailRead)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, blob.ErrNotExist) {
		ft, tail, err = readFooter(ctx, b, id, 0) // a sector that cannot be read may lie before the directory
	}
	if err != nil {
		return nil, err
	}
	dir := make([]byte, ft.dirLen)
	have := copy(dir[max(0, len(dir)-len(tail)):], tail[max(0, len(tail)-len(dir)):])
	if missing := dir[:len(dir)-have]; len(missing) > 0 {
		if err := readRange(ctx, b, id, missing, ft.dirOffset); err != nil {
			return nil, err
		}
	}
	h, err := checkDirectory(dir, ft)
	if err != nil {
		return nil, err
	}
	d, err := newDirectory(h, dir, ft.size)
	if err != nil || ring == nil {
		return d, err
	}
	return d, d.unlock(dir, ring)
}

// readFooter reads the end of a container: its footer, and up to n bytes that stand before it.
func readFooter(ctx context.Context, b blob.Store, id ID, n int64) (footer, []byte, error) {
	size, err := b.Size(ctx, id.Name())
	if err != nil {
		return footer{}, nil, err
	}
	if size < headerSize+dirHead+dirTail+footerSize || size > MaxSize {
		return footer{}, nil, damaged("%d bytes", size)
	}
	tail := make([]byte, min(size, n+footerSize))
	if err := readRange(ctx, b, id, tail, size-int64(len(tail))); err != nil {
		return footer{}, nil, err
	}
	cut := len(tail) - footerSize
	ft, err := parseFooter(tail[cut:], size)
	if err == nil && ft.id != id {
		err = damaged("footer: it is container %v", ft.id)
	}
	return ft, tail[:cut], err
}

// readRange reads a part of a container that must be there.
func readRange(ctx context.Context, b blob.Store, id ID, p []byte, off int64) error {
	err := b.ReadRange(ctx, id.Name(), p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("ends before %d", off+int64(len(p)))
	}
	return err
}

// checkDirectory tests a directory's checksum and every number in it, so that nothing that follows can go wrong.
func checkDirectory(dir []byte, ft footer) (header, error) {
	body := len(dir) - crcSize
	if le.Uint32(dir[body:]) != crc(dir[:body]) {
		return header{}, damaged("directory: checksum does not match")
	}
	h, err := parseHeader(dir[16:dirHead])
	if err != nil {
		return header{}, err
	}
	if h.id != ft.id {
		return header{}, damaged("directory: it is of container %v", h.id)
	}
	frames, rows, err := splitDirectory(dir)
	if err != nil {
		return header{}, err
	}
	return h, checkRows(frames, rows, ft.dirOffset)
}

// splitDirectory finds the tables in a directory.
func splitDirectory(dir []byte) (frames, rows []byte, err error) {
	if len(dir) < dirHead+dirTail || string(dir[:4]) != dirMagic || le.Uint32(dir[12:]) != 0 {
		return nil, nil, damaged("directory: no magic")
	}
	nf, nr := int64(le.Uint32(dir[4:])), int64(le.Uint32(dir[8:]))
	if nf*frameRowSize+nr*rowSize+dirHead+dirTail != int64(len(dir)) {
		return nil, nil, damaged("directory: %d frames and %d chunks in %d bytes", nf, nr, len(dir))
	}
	rowsAt := dirHead + nf*frameRowSize
	return dir[dirHead:rowsAt:rowsAt], dir[rowsAt : len(dir)-dirTail : len(dir)-dirTail], nil
}

// checkRows tests that the frames fill the space between header and directory, that the rows fill the frames, and that
// both keep the limits of package frame.
func checkRows(frames, rows []byte, end int64) error {
	offset, slot := int64(headerSize), uint32(0)
	nf, nr := uint32(len(frames)/frameRowSize), uint32(len(rows)/rowSize)
	for i := range nf {
		f := frameAt(frames, i)
		if f.Offset != offset || f.FirstSlot != slot || f.Chunks == 0 || f.Chunks > frame.MaxRefs ||
			f.Chunks > nr-slot || int64(f.Size) > end-offset || f.stored() <= 0 || f.stored() > int(f.Plain) ||
			f.Codec > frame.Zstd || (f.Codec == frame.Raw) != (f.stored() == int(f.Plain)) || frames[i*frameRowSize+25] != 0 {
			return damaged("directory: frame %d", i)
		}
		if err := checkFrameRows(rows, i, f); err != nil {
			return err
		}
		offset += int64(f.Size)
		slot += f.Chunks
	}
	if offset != end || slot != nr {
		return damaged("directory: frames end at %d, not at %d", offset, end)
	}
	return nil
}

func checkFrameRows(rows []byte, i uint32, f FrameInfo) error {
	limit := uint64(frame.MaxPlain)
	if f.Chunks == 1 {
		limit = frame.MaxChunk
	}
	plain := uint64(0)
	for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
		r := rowAt(rows, slot)
		if r.Frame != i || uint64(r.Offset) != plain || r.Length == 0 {
			return damaged("directory: chunk %d", slot)
		}
		plain += uint64(r.Length)
	}
	if plain != uint64(f.Plain) || plain > limit {
		return damaged("directory: frame %d has %d plain bytes, chunks say %d", i, f.Plain, plain)
	}
	return nil
}

// unlock opens the container's key and authenticates the directory with it.
func (d *Directory) unlock(dir []byte, ring *keys.Ring) error {
	key, err := ring.OpenDataKey(d.header.key, d.header.aad())
	if errors.Is(err, keys.ErrDamaged) {
		return damaged("%v", err)
	}
	if err != nil {
		return err
	}
	body := len(dir) - dirTail
	if mac := directoryMAC(&key.MAC, dir[:body]); subtle.ConstantTimeCompare(mac[:], dir[body:body+macSize]) != 1 {
		return damaged("directory: not authentic")
	}
	d.sealer = &sealer{aead: key.AEAD, aad: d.header.recordAAD()}
	return nil
}

// directoryMAC is the keyed BLAKE3 of a directory up to the MAC itself.
func directoryMAC(key *[32]byte, dir []byte) (mac [macSize]byte) {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	_, _ = h.Write(dir) // a hash never fails
	copy(mac[:], h.Sum(nil))
	return mac
}

// ReadFrame reads frame i with one ReadRange: checksum tested, decrypted, still compressed. buf may be nil; else the
// frame is valid until buf's next use. Errors: blob.ErrNotExist (the container is gone), ErrDamaged, ErrNoKeys.
func ReadFrame(ctx context.Context, b blob.Store, d *Directory, i uint32, buf *Buffer) (frame.Frame, error) {
	if buf == nil {
		buf = new(Buffer)
	}
	f, err := d.readFrame(ctx, b, i, buf)
	if err != nil {
		return frame.Frame{}, fmt.Errorf("read container %v: %w", d.header.id, err)
	}
	return f, nil
}

func (d *Directory) readFrame(ctx context.Context, b blob.Store, i uint32, buf *Buffer) (frame.Frame, error) {
	if d.sealer == nil {
		return frame.Frame{}, ErrNoKeys
	}
	if int(i) >= d.Frames() {
		return frame.Frame{}, fmt.Errorf("no frame %d", i)
	}
	info := frameAt(d.frames, i)
	raw := buf.sized(int(info.Size))
	if err := readRange(ctx, b, d.header.id, raw, info.Offset); err != nil {
		return frame.Frame{}, err
	}
	return d.sealer.openRecord(raw, i, info, d.rows, buf)
}
