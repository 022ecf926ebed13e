package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"coffer/dedup/blob"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
)

// scanRead is how much of what is no record Scan reads at once.
const scanRead = 1 << 20

// ScanOptions of Scan. The zero value tests checksums only and needs no key.
type ScanOptions struct {
	// Ring, when set, opens the container: its directory is authenticated, and Frame is called.
	Ring *keys.Ring
	// Wait, when set, is called before n bytes are read: a speed limit.
	Wait func(ctx context.Context, n int) error
	// Frame gets every frame that is whole: decrypted, still compressed, valid during the call. What it returns counts as
	// damage of that frame. It needs Ring.
	Frame func(d *Directory, i uint32, f frame.Frame) error
	// Bad gets every frame that is damaged.
	Bad func(i uint32, err error)
}

// ScanResult is what one Scan read.
type ScanResult struct {
	Directory *Directory // nil when the container is damaged as a whole
	Bytes     int64
	Frames    int // read, the damaged ones included
}

// Scan reads a whole container once, from front to back, and tests everything that protects it: header, the CRC of every
// record, directory, footer and the BLAKE3 of the whole. Damage within records goes to Bad, one call each; so does what
// the disk does not give, up to a limit. ErrDamaged tells of damage beside the records: with a Directory in the result,
// that can be read all the same, as can its frames. blob.ErrNotExist, ErrNewerFormat, keys.ErrUnknownKey, and what Wait
// returns.
func Scan(ctx context.Context, b blob.Store, id ID, o ScanOptions) (ScanResult, error) {
	s := scanner{ctx: ctx, blob: b, id: id, o: o, hash: blake3.New()}
	if err := s.scan(); err != nil {
		return s.res, fmt.Errorf("scan container %v: %w", id, err)
	}
	return s.res, nil
}

type scanner struct {
	ctx    context.Context // of the one call
	blob   blob.Store
	id     ID
	o      ScanOptions
	hash   *blake3.Hasher
	res    ScanResult
	buf    Buffer
	bad    int
	waited error // of Wait
	mute   int   // frames that the disk did not give
}

func (s *scanner) scan() error {
	d, err := openDirectory(s.ctx, s.blob, s.id, s.o.Ring)
	if err != nil {
		return err
	}
	s.res.Directory = d
	header := make([]byte, headerSize)
	if err := s.read(header, 0); err != nil {
		return err
	}
	for i := range uint32(d.Frames()) {
		if err := s.frame(d, i); err != nil {
			return err
		}
	}
	if err := s.tail(d); err != nil {
		return err
	}
	if !bytes.Equal(header, d.header.encode()) {
		return damaged("header and its copy in the directory differ")
	}
	return nil
}

// read reads and hashes the next bytes.
func (s *scanner) read(p []byte, off int64) error {
	if s.o.Wait != nil {
		if s.waited = s.o.Wait(s.ctx, len(p)); s.waited != nil {
			return s.waited
		}
	}
	if err := readRange(s.ctx, s.blob, s.id, p, off); err != nil {
		return err
	}
	_, _ = s.hash.Write(p) // a hash never fails
	s.res.Bytes += int64(len(p))
	return nil
}

func (s *scanner) frame(d *Directory, i uint32) error {
	info := frameAt(d.frames, i)
	raw := s.buf.sized(int(info.Size))
	err := s.read(raw, info.Offset)
	if err != nil && !s.isMute(err) {
		return err
	}
	s.res.Frames++
	if err != nil {
		err = damaged("frame %d cannot be read: %v", i, err)
	} else {
		err = s.check(d, i, info, raw)
	}
	if err != nil {
		s.bad++
		if s.o.Bad != nil {
			s.o.Bad(i, err)
		}
	}
	return nil
}

// maxMute is how many frames of a container a disk may keep to itself: beyond it, it is the disk that is damaged.
const maxMute = 16

// isMute reports whether an error of reading a frame is damage of that frame: a sector that cannot be read.
func (s *scanner) isMute(err error) bool {
	if s.waited != nil || s.ctx.Err() != nil || errors.Is(err, blob.ErrNotExist) {
		return false
	}
	s.mute++
	return s.mute <= maxMute
}

// check tests a record as far as the options want.
func (s *scanner) check(d *Directory, i uint32, info FrameInfo, raw []byte) error {
	if d.sealer == nil || s.o.Frame == nil {
		return checkRecord(raw, i, info, d.rows, &s.buf)
	}
	f, err := d.sealer.openRecord(raw, i, info, d.rows, &s.buf)
	if err != nil {
		return err
	}
	return s.o.Frame(d, i, f)
}

// checkRecord is openRecord without the key.
func checkRecord(raw []byte, number uint32, info FrameInfo, rows []byte, buf *Buffer) error {
	body := len(raw) - crcSize
	head := recordHead + 4*int(info.Chunks)
	if body < head {
		return damaged("frame %d: %d bytes", number, len(raw))
	}
	if c := le.Uint32(raw[body:]); c != info.crc || c != crc(raw[:body]) {
		return damaged("frame %d: checksum does not match", number)
	}
	if !info.matches(raw[:head], number) {
		return damaged("frame %d: record and directory differ", number)
	}
	return buf.takeRefs(raw[recordHead:head], info, rows)
}

// tail reads directory and footer once more, as part of the whole. Where records are damaged the whole cannot match.
func (s *scanner) tail(d *Directory) error {
	end := d.size - footerSize + footerHashed
	off := int64(headerSize)
	if n := d.Frames(); n > 0 {
		last := frameAt(d.frames, uint32(n-1))
		off = last.Offset + int64(last.Size)
	}
	for off < end {
		p := s.buf.sized(int(min(end-off, scanRead)))
		if err := s.read(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	ft, _, err := readFooter(s.ctx, s.blob, s.id, 0)
	if err != nil {
		return err
	}
	if s.bad == 0 && string(s.hash.Sum(nil)) != string(ft.hash[:]) {
		return damaged("hash of the whole does not match")
	}
	return nil
}

// Peek returns what a container holds: from its header or, where that is damaged, from the directory's copy. No key is
// needed. blob.ErrNotExist, ErrDamaged, ErrNewerFormat.
func Peek(ctx context.Context, b blob.Store, id ID) (Kind, error) {
	var raw [headerSize]byte
	err := readRange(ctx, b, id, raw[:], 0)
	if err == nil {
		var h header
		if h, err = parseHeader(raw[:]); err == nil && h.id == id {
			return h.kind, nil
		}
	}
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
		return 0, fmt.Errorf("read header of container %v: %w", id, err)
	}
	d, err := OpenDirectory(ctx, b, id, nil)
	if err != nil {
		return 0, err
	}
	return d.Kind(), nil
}
