package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The layout of the map is part of the format: FORMAT.md.
const (
	magic       = "COFFOVLY"
	version     = 1
	headerSize  = 64
	recordHead  = 32
	recordAlign = 8
	entrySize   = 16
	maxCRCs     = 8192 // blocks of a data record: 32 MiB
	maxEntries  = 4096 // runs of a runs record
	maxRecord   = recordHead + maxEntries*entrySize
)

// kind of a record. Part of the format.
type kind uint8

const (
	kindOpen    kind = 1 // the overlay is being written, in the boot that the record names
	kindData    kind = 2 // blocks went to data
	kindZero    kind = 3 // blocks became zeros
	kindCommit  kind = 4 // data was synced
	kindClosed  kind = 5 // all is durable, nobody writes
	kindRuns    kind = 6 // states at a compaction
	kindUnclean kind = 7 // writes that were not flushed may be lost
	kindSettled kind = 8 // somebody took notice of it
	kindFailed  kind = 9 // a sync failed
)

var kindWords = map[kind]string{kindOpen: "open", kindData: "data", kindZero: "zero", kindCommit: "commit", kindClosed: "closed",
	kindRuns: "runs", kindUnclean: "unclean", kindSettled: "settled", kindFailed: "failed"}

func (k kind) String() string {
	if s := kindWords[k]; s != "" {
		return s
	}
	return fmt.Sprintf("kind(%#02x)", uint8(k))
}

// BootID names one run of the machine's kernel.
type BootID [16]byte

// IsZero reports whether id names none.
func (id BootID) IsZero() bool { return id == BootID{} }

// run is some blocks of one state.
type run struct {
	first, n int64
	state    state
}

// record is one record of the map, decoded.
type record struct {
	kind  kind
	seq   uint64
	first int64    // data, zero
	n     int64    // data, zero: blocks
	crcs  []uint32 // data: of each block
	boot  BootID   // open
	// commit: records up to upto describe synced data; records up to durable had been synced when this one was written.
	upto, durable uint64
	runs          []run // runs
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errRecord  = errors.New("no valid record")
	errNewer   = errors.New("its version is newer than this program's")
	errHeader  = errors.New("its header is damaged")
	errForeign = errors.New("it is no map of an overlay")
	errMissing = errors.New("a part that had been synced is missing")
)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// header is the first part of a map.
type header struct {
	size int64 // of the disk
	salt [16]byte
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], blockSize)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.size))
	copy(b[24:], h.salt[:])
	binary.LittleEndian.PutUint32(b[60:], checksum(b[:60]))
	return b
}

func decodeHeader(b []byte) (h header, err error) {
	switch {
	case len(b) < headerSize || string(b[:8]) != magic:
		return h, errForeign
	case binary.LittleEndian.Uint16(b[8:]) > version:
		return h, errNewer
	case checksum(b[:60]) != binary.LittleEndian.Uint32(b[60:]):
		return h, errHeader
	}
	h.size = int64(binary.LittleEndian.Uint64(b[16:]))
	copy(h.salt[:], b[24:])
	if binary.LittleEndian.Uint16(b[8:]) != version || binary.LittleEndian.Uint16(b[10:]) != 0 ||
		binary.LittleEndian.Uint32(b[12:]) != blockSize || h.size <= 0 || h.size > MaxSize || !zeros(b[40:60]) {
		return h, errHeader
	}
	return h, nil
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// append adds the record's bytes to b.
func (r record) append(b []byte, salt [16]byte) []byte {
	at := len(b)
	var head [recordHead]byte
	head[4] = byte(r.kind)
	binary.LittleEndian.PutUint64(head[8:], r.seq)
	b = append(b, head[:]...)
	arg := func(first uint64, n int) {
		binary.LittleEndian.PutUint64(b[at+16:], first)
		binary.LittleEndian.PutUint32(b[at+24:], uint32(n))
	}
	switch r.kind {
	case kindOpen:
		b = append(b, r.boot[:]...)
	case kindData:
		arg(uint64(r.first), len(r.crcs))
		for _, c := range r.crcs {
			b = binary.LittleEndian.AppendUint32(b, c)
		}
		b = append(b, make([]byte, -len(b)&(recordAlign-1))...)
	case kindZero:
		arg(uint64(r.first), int(r.n))
	case kindCommit:
		arg(r.upto, 0)
		b = binary.LittleEndian.AppendUint64(b, r.durable)
	case kindRuns:
		arg(0, len(r.runs))
		for _, e := range r.runs {
			b = binary.LittleEndian.AppendUint64(b, uint64(e.first))
			b = binary.LittleEndian.AppendUint32(b, uint32(e.n))
			b = binary.LittleEndian.AppendUint32(b, uint32(e.state))
		}
	}
	binary.LittleEndian.PutUint32(b[at:], recordSum(b[at:], salt))
	return b
}

// recordSum is the checksum of a whole record: of the map's salt, then of all behind the checksum.
func recordSum(b []byte, salt [16]byte) uint32 {
	return crc32.Update(checksum(salt[:]), castagnoli, b[4:])
}

// recordLength is the length of the record that begins with b; 0 when it is none. b has recordHead bytes.
func recordLength(b []byte) int {
	n := int(binary.LittleEndian.Uint32(b[24:]))
	switch kind(b[4]) {
	case kindOpen:
		return recordHead + len(BootID{})
	case kindData:
		if n >= 1 && n <= maxCRCs {
			return recordHead + (4*n+recordAlign-1)&^(recordAlign-1)
		}
	case kindZero, kindClosed, kindUnclean, kindSettled, kindFailed:
		return recordHead
	case kindCommit:
		return recordHead + 8
	case kindRuns:
		if n >= 1 && n <= maxEntries {
			return recordHead + n*entrySize
		}
	}
	return 0
}

// decodeRecord reads the record at the start of b and returns its length. Every block in it lies below blocks. It returns
// errRecord for anything that append did not write for this map.
func decodeRecord(b []byte, salt [16]byte, blocks int64) (r record, length int, err error) {
	if len(b) < recordHead {
		return r, 0, errRecord
	}
	length = recordLength(b)
	if length == 0 || length > len(b) {
		return r, 0, errRecord
	}
	b = b[:length]
	if recordSum(b, salt) != binary.LittleEndian.Uint32(b) || b[5]|b[6]|b[7] != 0 || !zeros(b[28:32]) {
		return r, 0, errRecord
	}
	r = record{kind: kind(b[4]), seq: binary.LittleEndian.Uint64(b[8:])}
	if !r.arguments(b, blocks) {
		return record{}, 0, errRecord
	}
	return r, length, nil
}

// arguments reads what the kind of a record has; false where it is out of range.
func (r *record) arguments(b []byte, blocks int64) bool {
	arg, n := binary.LittleEndian.Uint64(b[16:]), int64(binary.LittleEndian.Uint32(b[24:]))
	payload := b[recordHead:]
	switch r.kind {
	case kindOpen:
		copy(r.boot[:], payload)
		return arg == 0 && n == 0
	case kindData:
		r.crcs = make([]uint32, n)
		for i := range r.crcs {
			r.crcs[i] = binary.LittleEndian.Uint32(payload[4*i:])
		}
		r.first, r.n = int64(arg), n
		return validRun(arg, n, blocks) && zeros(payload[4*n:])
	case kindZero:
		r.first, r.n = int64(arg), n
		return validRun(arg, n, blocks)
	case kindCommit:
		r.upto, r.durable = arg, binary.LittleEndian.Uint64(payload)
		return n == 0 && r.upto < r.seq && r.durable < r.seq
	case kindRuns:
		r.runs = make([]run, n)
		for i := range r.runs {
			e := payload[i*entrySize:]
			first, n, st := binary.LittleEndian.Uint64(e), int64(binary.LittleEndian.Uint32(e[8:])), binary.LittleEndian.Uint32(e[12:])
			if !validRun(first, n, blocks) || st != uint32(inData) && st != uint32(isZero) {
				return false
			}
			r.runs[i] = run{int64(first), n, state(st)}
		}
		return arg == 0
	}
	return arg == 0 && n == 0
}

func validRun(first uint64, n, blocks int64) bool {
	return n >= 1 && first < uint64(blocks) && n <= blocks-int64(first)
}
