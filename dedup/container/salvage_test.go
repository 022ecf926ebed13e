package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// scanWhole is Scan with damaged records as an error.
func scanWhole(ctx context.Context, b blob.Store, id ID) error {
	var bad error
	_, err := Scan(ctx, b, id, ScanOptions{Bad: func(_ uint32, err error) { bad = errors.Join(bad, err) }})
	return errors.Join(err, bad)
}

// salvaged returns what Salvage finds in the bytes of a container, held against the frames that went in.
func salvaged(t *testing.T, b []byte, id ID, ring *keys.Ring, frames []frame.Frame) (SalvageResult, []uint32) {
	t.Helper()
	var numbers []uint32
	res, err := Salvage(t.Context(), oneBlob{data: b}, id, ring, func(r Record) error {
		want := frames[r.Number]
		if r.Codec != want.Codec || !bytes.Equal(r.Stored, want.Stored) || len(r.Lengths) != len(want.Refs) {
			t.Errorf("record %d differs", r.Number)
		}
		for i, n := range r.Lengths {
			if n != want.Refs[i].Length {
				t.Errorf("record %d: chunk %d has %d bytes", r.Number, i, n)
			}
		}
		numbers = append(numbers, r.Number)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return res, numbers
}

func TestSalvage(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		ring := testRing(t, encrypted)
		s := newTestStore(t, vfs.NewMem())
		frames := testFrames(9)
		d, err := s.write(t.Context(), testHeader(ring), frames)
		if err != nil {
			t.Fatal(err)
		}
		whole := blobOf(t, s, d.ID())
		flip := func(b []byte, off int64) []byte { b[off] ^= 0x10; return b }
		dir := d.Frame(8).Offset + int64(d.Frame(8).Size)
		tests := []struct {
			name  string
			b     []byte
			wants string
		}{
			{"whole", bytes.Clone(whole), "[0 1 2 3 4 5 6 7 8]"},
			{"no footer", bytes.Clone(whole[:len(whole)-footerSize]), "[0 1 2 3 4 5 6 7 8]"},
			{"no directory", bytes.Clone(whole[:dir]), "[0 1 2 3 4 5 6 7 8]"},
			{"directory", flip(bytes.Clone(whole), dir+200), "[0 1 2 3 4 5 6 7 8]"},
			{"torn in the last record", bytes.Clone(whole[:dir-5]), "[0 1 2 3 4 5 6 7]"},
			{"header", flip(bytes.Clone(whole), 60), "[0 1 2 3 4 5 6 7 8]"},
			{"a record's head", flip(bytes.Clone(whole), d.Frame(3).Offset+16), "[0 1 2 4 5 6 7 8]"},
			{"a record's magic", flip(bytes.Clone(whole), d.Frame(0).Offset), "[1 2 3 4 5 6 7 8]"},
			{"a record's bytes", flip(flip(bytes.Clone(whole), d.Frame(5).Offset+90), d.Frame(6).Offset+8), "[0 1 2 3 4 7 8]"},
			{"a hole of zeros", append(append(bytes.Clone(whole[:d.Frame(2).Offset+9]), make([]byte, d.Frame(4).Offset-d.Frame(2).Offset)...),
				whole[d.Frame(4).Offset+9:]...), "[0 1 5 6 7 8]"},
			{"header only", bytes.Clone(whole[:headerSize]), "[]"},
		}
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/%v", tt.name, encrypted), func(t *testing.T) {
				res, numbers := salvaged(t, tt.b, d.ID(), ring, frames)
				if fmt.Sprint(numbers) != tt.wants && !(len(numbers) == 0 && tt.wants == "[]") {
					t.Errorf("records %v, want %s", numbers, tt.wants)
				}
				if res.Kind != Data || res.Domain != testDomain || res.Records != len(numbers) {
					t.Errorf("result %+v", res)
				}
			})
		}
		both := flip(flip(bytes.Clone(whole), 60), dir+20)
		if _, err := Salvage(t.Context(), oneBlob{data: both}, d.ID(), ring, func(Record) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("without a header: %v", err)
		}
		if _, err := Salvage(t.Context(), oneBlob{data: whole}, d.ID()+1, ring, func(Record) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("as another container: %v", err)
		}
	}
}

// TestScanNamesFrames flips one bit in every record: Scan names that frame and no other, with and without keys.
func TestScanNamesFrames(t *testing.T) {
	ring := testRing(t, true)
	s := newTestStore(t, vfs.NewMem())
	frames := testFrames(6)
	d, err := s.write(t.Context(), testHeader(ring), frames)
	if err != nil {
		t.Fatal(err)
	}
	whole := blobOf(t, s, d.ID())
	for i := range uint32(d.Frames()) {
		for _, o := range []ScanOptions{{}, {Ring: ring, Frame: func(*Directory, uint32, frame.Frame) error { return nil }}} {
			b := bytes.Clone(whole)
			b[d.Frame(i).Offset+int64(d.Frame(i).Size)/2] ^= 1
			var bad []uint32
			o.Bad = func(i uint32, _ error) { bad = append(bad, i) }
			res, err := Scan(t.Context(), oneBlob{data: b}, d.ID(), o)
			if err != nil || res.Directory == nil || res.Frames != 6 || len(bad) != 1 || bad[0] != i {
				t.Errorf("frame %d: %+v, bad %v, %v", i, res, bad, err)
			}
		}
	}
	read := 0
	_, err = Scan(t.Context(), oneBlob{data: whole}, d.ID(), ScanOptions{Wait: func(_ context.Context, n int) error { read += n; return nil }})
	if err != nil || read < len(whole)-footerSize {
		t.Errorf("the limiter saw %d of %d bytes, %v", read, len(whole), err)
	}
}

// FuzzSalvage: no panic, no error but the package's own, and no record that did not go in.
func FuzzSalvage(f *testing.F) {
	whole, id, ring := fuzzContainer(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-footerSize])
	f.Add(append(bytes.Clone(whole[:headerSize]), "CRECCRECCREC"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := Salvage(t.Context(), oneBlob{data: b}, id, ring, func(r Record) error {
			if s := string(r.Stored); s != "one two" && s != "three" {
				t.Errorf("record %q", s)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, keys.ErrUnknownKey) {
			t.Fatal(err)
		}
	})
}
