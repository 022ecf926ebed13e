package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
)

const (
	// salvageRead is how much is searched at once for the next record.
	salvageRead = 1 << 20
	// salvageTries bounds the bytes of all candidates together, in sizes of the container: what looks like records within
	// the data of a plain store must not cost more.
	salvageTries = 8
)

// Record is one whole record that Salvage found. Its digests are not known: they were in the directory.
type Record struct {
	Kind    Kind            // of the container
	Domain  digest.DomainID // of the container
	Number  uint32
	Codec   frame.Codec
	Lengths []uint32 // plain length of each chunk
	Stored  []byte
}

// SalvageResult is what one Salvage found.
type SalvageResult struct {
	Kind   Kind
	Domain digest.DomainID
	// Records that are whole, and the bytes between them that belong to none.
	Records   int
	LostBytes int64
}

// Salvage finds the records of a container whose directory, footer or tail is damaged or missing, in order, and gives
// each to visit; what it is given is valid during the call. A record counts when its own lengths fit, its CRC matches and
// it is authentic; behind one that does not, the search goes on at the next that does. ErrDamaged: neither the header nor
// its copy in the directory is whole, so that there is no key. Other errors: blob.ErrNotExist, ErrNewerFormat,
// keys.ErrUnknownKey, and what visit returns.
func Salvage(ctx context.Context, b blob.Store, id ID, ring *keys.Ring, visit func(Record) error) (SalvageResult, error) {
	size, err := b.Size(ctx, id.Name())
	if err != nil {
		return SalvageResult{}, fmt.Errorf("salvage container %v: %w", id, err)
	}
	return SalvageFile(ctx, blobReader{ctx, b, id.Name()}, size, id, ring, visit)
}

// SalvageFile is Salvage of a spool file that a writer left behind, of which any part may be missing.
func SalvageFile(ctx context.Context, r io.ReaderAt, size int64, id ID, ring *keys.Ring, visit func(Record) error) (SalvageResult, error) {
	s := salvager{ctx: ctx, r: r, size: size, id: id, budget: salvageTries * size, visit: visit}
	err := s.run(ring)
	if err != nil {
		err = fmt.Errorf("salvage container %v: %w", id, err)
	}
	return s.res, err
}

// blobReader reads a blob as a file.
type blobReader struct {
	ctx  context.Context // of the one call
	blob blob.Store
	name string
}

func (r blobReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.blob.ReadRange(r.ctx, r.name, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

type salvager struct {
	ctx    context.Context // of the one call
	r      io.ReaderAt
	size   int64
	id     ID
	budget int64 // bytes of candidates that may still be read
	visit  func(Record) error

	sealer sealer
	next   uint32 // number that the next record has at least
	buf    Buffer
	window []byte
	res    SalvageResult
}

func (s *salvager) run(ring *keys.Ring) error {
	if s.size < headerSize || s.size > MaxSize {
		return damaged("%d bytes", s.size)
	}
	h, err := s.findHeader()
	if err != nil {
		return err
	}
	key, err := ring.OpenDataKey(h.key, h.aad())
	if errors.Is(err, keys.ErrDamaged) {
		return damaged("%v", err)
	}
	if err != nil {
		return err
	}
	s.sealer = sealer{aead: key.AEAD, aad: h.recordAAD()}
	s.res.Kind, s.res.Domain = h.kind, h.domain
	return s.records()
}

// findHeader reads the header, else its copy in the directory, wherever that begins.
func (s *salvager) findHeader() (header, error) {
	h, first := s.headerAt(0)
	if first == nil || !errors.Is(first, ErrDamaged) && !errors.Is(first, ErrNewerFormat) {
		return h, first
	}
	for off := int64(headerSize); ; off++ {
		at, found, err := s.find(dirMagic, off)
		if err != nil {
			return header{}, err
		}
		if !found {
			return header{}, first
		}
		off = at
		if h, err := s.headerAt(off + 16); err == nil {
			return h, nil
		}
	}
}

func (s *salvager) headerAt(off int64) (header, error) {
	if off+headerSize > s.size {
		return header{}, damaged("no header")
	}
	var b [headerSize]byte
	if _, err := s.r.ReadAt(b[:], off); err != nil {
		return header{}, err
	}
	h, err := parseHeader(b[:])
	if err == nil && h.id != s.id {
		err = damaged("header: it is container %v", h.id)
	}
	return h, err
}

// records visits all records from the header on.
func (s *salvager) records() error {
	off := int64(headerSize)
	for s.budget > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		n, err := s.recordAt(off)
		if err != nil {
			return err
		}
		if n > 0 {
			off += n
			continue
		}
		at, found, err := s.find(recordMagic, off+1)
		if err != nil {
			return err
		}
		s.res.LostBytes += at - off
		if !found {
			return nil
		}
		off = at
	}
	return damaged("too much in it looks like a record and is none")
}

// recordAt visits the record at an offset and returns its length; 0 when there is no whole one.
func (s *salvager) recordAt(off int64) (int64, error) {
	if off+recordHead > s.size {
		return 0, nil
	}
	head := s.buf.sized(recordHead)
	if _, err := s.r.ReadAt(head, off); err != nil {
		return 0, err
	}
	number, codec, n := le.Uint32(head[4:]), frame.Codec(head[8]), int(le.Uint16(head[10:]))
	plain, stored := le.Uint32(head[12:]), le.Uint32(head[16:])
	if string(head[:4]) != recordMagic || number < s.next || codec > frame.Zstd || n == 0 || n > frame.MaxRefs ||
		plain > frame.MaxChunk || stored == 0 || stored > plain {
		return 0, nil
	}
	size := int64(recordLen(n, int(stored)))
	if off+size > s.size {
		return 0, nil
	}
	s.budget -= size
	raw := s.buf.sized(int(size))
	if _, err := s.r.ReadAt(raw, off); err != nil {
		return 0, err
	}
	rec, ok := s.open(raw, n)
	if !ok {
		return 0, nil
	}
	s.next = number + 1
	s.res.Records++
	return size, s.visit(rec)
}

// open checks and decrypts a record of n chunks in place.
func (s *salvager) open(raw []byte, n int) (Record, bool) {
	body := len(raw) - crcSize
	if le.Uint32(raw[body:]) != crc(raw[:body]) {
		return Record{}, false
	}
	rec := Record{Kind: s.res.Kind, Domain: s.res.Domain, Number: le.Uint32(raw[4:]), Codec: frame.Codec(raw[8]), Lengths: make([]uint32, n)}
	sum := uint64(0)
	for i := range rec.Lengths {
		rec.Lengths[i] = le.Uint32(raw[recordHead+4*i:])
		sum += uint64(rec.Lengths[i])
	}
	head := raw[:recordHead+4*n]
	if sum != uint64(le.Uint32(raw[12:])) {
		return Record{}, false
	}
	s.buf.aad = append(append(s.buf.aad[:0], s.sealer.aad...), head...)
	putNonce(&s.buf.nonce, rec.Number)
	sealed := raw[len(head):body]
	stored, err := s.sealer.aead.Open(sealed[:0], s.buf.nonce[:], sealed, s.buf.aad)
	rec.Stored = stored
	return rec, err == nil
}

// find returns where a magic comes next, from an offset on; the end when it does not.
func (s *salvager) find(magic string, from int64) (int64, bool, error) {
	if s.window == nil {
		s.window = make([]byte, min(s.size, salvageRead))
	}
	for off := from; off+int64(len(magic)) <= s.size; {
		p := s.window[:min(s.size-off, int64(len(s.window)))]
		if _, err := s.r.ReadAt(p, off); err != nil {
			return 0, false, err
		}
		if i := bytes.Index(p, []byte(magic)); i >= 0 {
			return off + int64(i), true, nil
		}
		off += int64(max(1, len(p)-len(magic)+1))
	}
	return s.size, false, nil
}
