package overlay

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

const goldenSize = 5*pageBlocks*blockSize + 100

func goldenHeader() header {
	h := header{size: goldenSize}
	copy(h.salt[:], "0123456789abcdef")
	return h
}

// goldenRecords has every kind.
func goldenRecords() []record {
	rs := []record{
		{kind: kindRuns, runs: []run{{3, 5, inData}, {pageBlocks, pageBlocks, isZero}}},
		{kind: kindOpen, boot: BootID{0xb0, 0x07}},
		{kind: kindData, first: 1, n: 3, crcs: []uint32{0x11111111, 0x22222222, 0x33333333}},
		{kind: kindZero, first: 4, n: 2},
		{kind: kindCommit, upto: 4, durable: 2},
		{kind: kindData, first: 4, n: 1, crcs: []uint32{0x44444444}},
		{kind: kindUnclean}, {kind: kindSettled}, {kind: kindFailed}, {kind: kindClosed},
	}
	for i := range rs {
		rs[i].seq = uint64(i + 1)
	}
	return rs
}

func encode(h header, rs []record) []byte {
	b := h.encode()
	for _, r := range rs {
		b = append(b, r.append(nil, h.salt)...)
	}
	return b
}

func TestGolden(t *testing.T) {
	const name = "testdata/map.hex"
	got := encode(goldenHeader(), goldenRecords())
	if *update {
		must(t, os.WriteFile(name, []byte(hex.Dump(got)), 0o644))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if hex.Dump(got) != string(want) {
		t.Fatalf("the format changed:\n%s", hex.Dump(got))
	}
	b := got[headerSize:]
	for _, r := range goldenRecords() {
		back, n, err := decodeRecord(b, goldenHeader().salt, blocksOf(goldenSize))
		must(t, err)
		if !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v came back as %+v", r, back)
		}
		b = b[n:]
	}
	p, err := replay(bytes.NewReader(got), int64(len(got)))
	must(t, err)
	if len(b) != 0 || p.torn || p.open || p.unclean || p.seq != 10 || p.committed != 4 || len(p.pending) != 1 {
		t.Fatalf("replayed: %+v", p)
	}
	// 1–3 and 6–7 are data; 4, 5 and a page are zero.
	if p.states.data != 5 || p.states.zero != 2+pageBlocks || p.states.get(4) != isZero || p.states.get(7) != inData {
		t.Fatalf("%d blocks of data, %d of zeros", p.states.data, p.states.zero)
	}
	if s := strings.Join([]string{kindData.String(), kind(77).String(), Full.String(), Kind(99).String()}, " "); s != "data kind(0x4d) full kind 0x63" {
		t.Fatal(s)
	}
}

// TestEveryWrongBit: no single bit of a map can change without the record being refused.
func TestEveryWrongBit(t *testing.T) {
	h := goldenHeader()
	for _, r := range goldenRecords() {
		b := r.append(nil, h.salt)
		for i := range len(b) * 8 {
			c := bytes.Clone(b)
			c[i/8] ^= 1 << (i % 8)
			if _, _, err := decodeRecord(c, h.salt, blocksOf(goldenSize)); !errors.Is(err, errRecord) {
				t.Fatalf("%v with bit %d changed: %v", r.kind, i, err)
			}
		}
		if _, _, err := decodeRecord(b, [16]byte{1}, blocksOf(goldenSize)); !errors.Is(err, errRecord) {
			t.Fatalf("%v of another map: %v", r.kind, err)
		}
		for n := range b {
			if _, _, err := decodeRecord(b[:n], h.salt, blocksOf(goldenSize)); !errors.Is(err, errRecord) {
				t.Fatalf("%v cut to %d: %v", r.kind, n, err)
			}
		}
	}
}

// FuzzReplay gives the reader maps whose checksums are right and all else is not: no panic, no block behind the end, memory
// in proportion to the file; what is read and written again is the same.
func FuzzReplay(f *testing.F) {
	f.Add(encode(goldenHeader(), goldenRecords()))
	f.Add(goldenHeader().encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		b = bytes.Clone(b)
		seal(b)
		p, err := replay(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if p.end > int64(len(b)) || p.states.data+p.states.zero > p.states.blocks {
			t.Fatalf("replayed %+v", p)
		}
		at := b[headerSize:]
		for int64(len(at)) > int64(len(b))-p.end {
			r, n, err := decodeRecord(at, p.header.salt, p.states.blocks)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.append(nil, p.header.salt), at[:n]) {
				t.Fatalf("%+v is written otherwise than it was read", r)
			}
			at = at[n:]
		}
		_ = p.verify(func(i int64) ([]byte, error) {
			if i < 0 || i >= p.states.blocks {
				t.Fatalf("block %d of %d", i, p.states.blocks)
			}
			return nil, nil
		})
	})
}

// seal makes the checksums of a map right, as far as it can be read as one. The disk is kept small, so that the states of
// a fuzzer's map fit into memory.
func seal(b []byte) {
	if len(b) < headerSize {
		return
	}
	b[20] &= 0x0f // below 64 GiB
	b[21], b[22], b[23] = 0, 0, 0
	binary.LittleEndian.PutUint32(b[60:], checksum(b[:60]))
	salt := [16]byte(b[24:40])
	for b = b[headerSize:]; len(b) >= recordHead; {
		n := recordLength(b)
		if n == 0 || n > len(b) {
			return
		}
		binary.LittleEndian.PutUint32(b, recordSum(b[:n], salt))
		b = b[n:]
	}
}
