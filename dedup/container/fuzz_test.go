package container

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

func fuzzContainer(f *testing.F) (whole []byte, id ID, ring *keys.Ring) {
	f.Helper()
	ring = testRing(f, true)
	s := newTestStore(f, vfs.NewMem())
	d, err := s.write(context.Background(), testHeader(ring), []frame.Frame{
		{Codec: frame.Raw, Stored: []byte("one two"), Refs: []frame.Ref{{Digest: digest.Digest{1}, Length: 3}, {Digest: digest.Digest{2}, Length: 4}}},
		{Codec: frame.Zstd, Stored: []byte("three"), Refs: []frame.Ref{{Digest: digest.Digest{3}, Length: 100}}}})
	if err != nil {
		f.Fatal(err)
	}
	return blobOf(f, s, d.ID()), d.ID(), ring
}

// FuzzOpen reads whole containers: no panic, no other error than the package's own, and no answer but the right one.
func FuzzOpen(f *testing.F) {
	whole, id, ring := fuzzContainer(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte(headerMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		o := oneBlob{data: b}
		for _, err := range []error{readAll(t.Context(), o, id, ring), scanWhole(t.Context(), o, id)} {
			if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, keys.ErrUnknownKey) {
				t.Fatal(err)
			}
		}
	})
}

// FuzzDirectory makes the checksums right, so that the tables themselves are reached; without keys nothing else guards
// them. What passes must be safe to use.
func FuzzDirectory(f *testing.F) {
	whole, id, _ := fuzzContainer(f)
	ft, err := parseFooter(whole[len(whole)-footerSize:], int64(len(whole)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[ft.dirOffset:len(whole)-footerSize-crcSize], uint16(ft.dirOffset))
	f.Fuzz(func(t *testing.T, dir []byte, offset uint16) {
		if len(dir) < dirHead+macSize {
			return
		}
		dir = bytes.Clone(dir)
		le.PutUint32(dir[dirHead-crcSize:], crc(dir[16:dirHead-crcSize]))
		dir = le.AppendUint32(dir, crc(dir))
		ft := footer{id: id, dirOffset: int64(offset), dirLen: uint32(len(dir)), size: int64(offset) + int64(len(dir)) + footerSize}
		b := append(append(make([]byte, offset), dir...), ft.encode()...)
		d, err := OpenDirectory(t.Context(), oneBlob{data: b}, id, nil)
		if err != nil {
			return
		}
		for slot := range uint32(d.Rows()) {
			if r := d.Row(slot); r.Frame >= uint32(d.Frames()) || d.Frame(r.Frame).FirstSlot > slot {
				t.Fatalf("slot %d: %+v", slot, r)
			}
			if s, ok := d.Lookup(d.Digest(slot)); !ok || s > slot {
				t.Fatalf("slot %d is found at %d", slot, s)
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	ring := testRing(b, true)
	stored := make([]byte, 80<<10)
	for i := range stored {
		stored[i] = byte(i * i >> 3)
	}
	f := frame.Frame{Codec: frame.Zstd, Stored: stored}
	for i := range 16 {
		f.Refs = append(f.Refs, frame.Ref{Digest: digest.Digest{byte(i)}, Length: 16 << 10})
	}
	s := newDirStore(b)
	b.SetBytes(int64(len(stored)))
	b.ReportAllocs()
	var w *Writer
	seq := uint32(0)
	seal := func() {
		sealed, err := w.Seal(context.Background())
		if err == nil {
			err = Store(context.Background(), s.fs, s.blob, sealed)
		}
		if err != nil {
			b.Fatal(err)
		}
		w = nil
	}
	for b.Loop() {
		if w == nil {
			seq++
			h := testHeader(ring)
			h.ID = MakeID(1, seq)
			var err error
			if w, err = NewWriter(s.fs, s.spool+h.ID.String(), h); err != nil {
				b.Fatal(err)
			}
		}
		for i := range f.Refs {
			le.PutUint64(f.Refs[i].Digest[8:], rand.Uint64())
		}
		if _, err := w.Append(f); err != nil {
			b.Fatal(err)
		}
		if w.Size() > 32<<20 {
			seal()
		}
	}
	if w != nil {
		w.Abandon()
	}
}

type dirStore struct {
	testStore
	spool string
}

func newDirStore(b *testing.B) dirStore {
	root := b.TempDir()
	bs, err := blob.OpenDir(vfs.OS(), root+"/store")
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(root+"/spool", 0o700); err != nil {
		b.Fatal(err)
	}
	return dirStore{testStore{fs: vfs.OS(), blob: bs}, root + "/spool/"}
}

func BenchmarkReadFrame(b *testing.B) {
	ring := testRing(b, true)
	s := newDirStore(b)
	w, err := NewWriter(s.fs, s.spool+"c", testHeader(ring))
	if err != nil {
		b.Fatal(err)
	}
	f := frame.Frame{Codec: frame.Raw, Stored: make([]byte, 80<<10)}
	for i := range 8 {
		f.Refs = append(f.Refs, frame.Ref{Digest: digest.Digest{byte(i)}, Length: 10 << 10})
	}
	for range 300 {
		if _, err := w.Append(f); err != nil {
			b.Fatal(err)
		}
	}
	sealed, err := w.Seal(context.Background())
	if err == nil {
		err = Store(context.Background(), s.fs, s.blob, sealed)
	}
	if err != nil {
		b.Fatal(err)
	}
	d, err := OpenDirectory(context.Background(), s.blob, MakeID(3, 7), ring)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(80 << 10)
	b.ReportAllocs()
	var buf Buffer
	i := uint32(0)
	for b.Loop() {
		if _, err := ReadFrame(context.Background(), s.blob, d, i%300, &buf); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
