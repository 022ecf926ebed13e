package container

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testSeed makes what is random in a test repeat.
func testRand(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

func testRing(t testing.TB, encrypted bool) *keys.Ring {
	t.Helper()
	src := keys.None()
	if encrypted {
		src = keys.Password([]byte("secret"), keys.PasswordOptions{Time: 1, MemoryKiB: 64, Threads: 1})
	}
	r, err := keys.Create(context.Background(), testRand(1), src)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var testDomain = digest.DomainID{0xd0, 0x0d}

func testHeader(ring *keys.Ring) Header {
	return Header{ID: MakeID(3, 7), Kind: Data, Domain: testDomain, Keys: ring, Created: 1764000000}
}

// testFrames makes frames of many sizes; plain bytes are random, so raw.
func testFrames(n int) []frame.Frame {
	rnd := rand.New(rand.NewPCG(1, 2))
	h := digest.NewHasher([32]byte{5})
	var fs []frame.Frame
	for i := range n {
		f := frame.Frame{Codec: frame.Raw}
		for range 1 + rnd.IntN(5) {
			p := make([]byte, 1+rnd.IntN(9000))
			for k := range p {
				p[k] = byte(rnd.Uint32())
			}
			f.Refs = append(f.Refs, frame.Ref{Digest: h.Sum(p), Length: uint32(len(p))})
			f.Stored = append(f.Stored, p...)
		}
		if i%3 == 1 { // nothing here decompresses: a codec is carried, not understood
			f.Codec, f.Stored = frame.Zstd, f.Stored[:len(f.Stored)/2+1]
			if len(f.Stored) >= f.PlainLen() {
				f.Codec, f.Stored = frame.Raw, make([]byte, f.PlainLen())
			}
		}
		fs = append(fs, f)
	}
	return fs
}

type testStore struct {
	fs   vfs.FS
	blob *blob.Dir
}

func newTestStore(t testing.TB, fsys vfs.FS) testStore {
	t.Helper()
	b, err := blob.OpenDir(fsys, "/store")
	if err != nil {
		t.Fatal(err)
	}
	return testStore{fs: fsys, blob: b}
}

func (s testStore) write(ctx context.Context, h Header, frames []frame.Frame) (*Directory, error) {
	w, err := NewWriter(s.fs, "/spool-"+h.ID.String(), h)
	if err != nil {
		return nil, err
	}
	for _, f := range frames {
		if _, err := w.Append(f); err != nil {
			w.Abandon()
			return nil, err
		}
	}
	sealed, err := w.Seal(ctx)
	if err != nil {
		return nil, err
	}
	return sealed.Directory, Store(ctx, s.fs, s.blob, sealed)
}

func sameFrame(a, b frame.Frame) error {
	if a.Codec != b.Codec || !bytes.Equal(a.Stored, b.Stored) || len(a.Refs) != len(b.Refs) {
		return errors.New("frames differ")
	}
	for i := range a.Refs {
		if a.Refs[i] != b.Refs[i] {
			return fmt.Errorf("ref %d differs", i)
		}
	}
	return nil
}

// checkAll compares everything a directory answers with the frames that went in.
func checkAll(t *testing.T, b blob.Store, d *Directory, frames []frame.Frame) {
	t.Helper()
	var buf Buffer
	slot := uint32(0)
	if d.Frames() != len(frames) {
		t.Fatalf("%d frames, want %d", d.Frames(), len(frames))
	}
	for i, want := range frames {
		got, err := ReadFrame(t.Context(), b, d, uint32(i), &buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := sameFrame(got, want); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if info := d.Frame(uint32(i)); info.FirstSlot != slot || int(info.Plain) != want.PlainLen() || info.Codec != want.Codec {
			t.Fatalf("frame %d: %+v", i, info)
		}
		offset := uint32(0)
		for _, r := range want.Refs {
			row := Row{Digest: r.Digest, Frame: uint32(i), Offset: offset, Length: r.Length}
			if d.Row(slot) != row || d.Digest(slot) != r.Digest {
				t.Fatalf("slot %d: %+v, want %+v", slot, d.Row(slot), row)
			}
			if s, ok := d.Lookup(r.Digest); !ok || d.Digest(s) != r.Digest {
				t.Fatalf("digest of slot %d is not found", slot)
			}
			offset += r.Length
			slot++
		}
	}
	if d.Rows() != int(slot) {
		t.Fatalf("%d rows, want %d", d.Rows(), slot)
	}
	if _, ok := d.Lookup(digest.Digest{1}); ok {
		t.Fatal("a digest is found that is not there")
	}
}

func TestRoundTrip(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted=%v", encrypted), func(t *testing.T) {
			ring, frames := testRing(t, encrypted), testFrames(300)
			s := newTestStore(t, vfs.NewMem())
			sealed, err := s.write(t.Context(), testHeader(ring), frames)
			if err != nil {
				t.Fatal(err)
			}
			checkAll(t, s.blob, sealed, frames)
			d, err := OpenDirectory(t.Context(), s.blob, MakeID(3, 7), ring)
			if err != nil {
				t.Fatal(err)
			}
			checkAll(t, s.blob, d, frames)
			if d.ID() != MakeID(3, 7) || d.Kind() != Data || d.Domain() != testDomain || d.Created() != 1764000000 ||
				d.Size() != sealed.Size() || d.StoreKey() != 1 || d.MemSize() < int64(44*d.Rows()) {
				t.Fatalf("header of %v is not what was written", d.ID())
			}
			if err := scanWhole(t.Context(), s.blob, d.ID()); err != nil {
				t.Fatal(err)
			}
			bare, err := OpenDirectory(t.Context(), s.blob, d.ID(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := bare.Lookup(frames[9].Refs[0].Digest); !ok {
				t.Fatal("without keys, a digest is not found")
			}
			if _, err := ReadFrame(t.Context(), s.blob, bare, 0, nil); !errors.Is(err, ErrNoKeys) {
				t.Fatalf("read without keys: %v", err)
			}
			if names, err := s.fs.List("/"); err != nil || len(names) != 1 {
				t.Fatalf("spool is not empty: %v %v", names, err)
			}
		})
	}
}

func TestAppend(t *testing.T) {
	frames := testFrames(400)
	w, err := NewWriter(vfs.NewMem(), "/c", testHeader(testRing(t, true)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abandon()
	slot := uint32(0)
	for i, f := range frames {
		first, err := w.Append(f)
		if err != nil {
			t.Fatal(err)
		}
		if first != slot {
			t.Fatalf("frame %d: slot %d, want %d", i, first, slot)
		}
		slot += uint32(len(f.Refs))
	}
	before := w.Size()
	s, err := w.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != before || w.Size() != 0 {
		t.Fatalf("sealed at %d bytes, Size said %d, and says %d", s.Size, before, w.Size())
	}
	if _, err := w.Append(frames[0]); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after seal: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := newTestStore(t, vfs.NewMem())
	ring := testRing(t, true)
	w, err := NewWriter(s.fs, "/c", testHeader(ring))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(frame.Frame{}); !errors.Is(err, frame.ErrMalformed) {
		t.Fatalf("malformed frame: %v", err)
	}
	if _, err := w.Seal(t.Context()); !errors.Is(err, ErrEmpty) {
		t.Fatalf("seal without a frame: %v", err)
	}
	if names, _ := s.fs.List("/"); len(names) != 1 {
		t.Fatalf("spool is not empty: %v", names)
	}
	if _, err := OpenDirectory(t.Context(), s.blob, 5, ring); !errors.Is(err, blob.ErrNotExist) {
		t.Fatalf("open what is not there: %v", err)
	}
	if _, err := s.write(t.Context(), testHeader(ring), testFrames(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write(t.Context(), testHeader(ring), testFrames(2)); !errors.Is(err, blob.ErrExists) {
		t.Fatalf("an id used twice: %v", err)
	}
	other, err := keys.Create(t.Context(), testRand(9), keys.Password([]byte("x"), keys.PasswordOptions{Time: 1, MemoryKiB: 64, Threads: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(t.Context(), s.blob, MakeID(3, 7), other); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open with another store's keys: %v", err)
	}
}

func TestNames(t *testing.T) {
	id := MakeID(0x0a, 0x1ff)
	if id.String() != "0000000a000001ff" || id.Name() != "containers/0000000a000001/0000000a000001ff" {
		t.Fatalf("id %v is named %s", id, id.Name())
	}
	if got, ok := ParseName(id.Name()); !ok || got != id {
		t.Fatalf("parsed as %v", got)
	}
	for _, bad := range []string{"", "containers/0000000a000001/0000000A000001FF", "containers/0000000a000002/0000000a000001ff",
		"manifests/0000000a000001/0000000a000001ff", "containers/0000000a000001/0000000a000001f", "containers/0000000a000001/+000000a000001ff"} {
		if _, ok := ParseName(bad); ok {
			t.Errorf("%q is taken for a container", bad)
		}
	}
}

// blobOf returns a container's bytes.
func blobOf(t testing.TB, s testStore, id ID) []byte {
	t.Helper()
	b, err := blob.ReadAll(context.Background(), s.blob, id.Name(), MaxSize)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// oneBlob is a Store of one blob.
type oneBlob struct {
	blob.Store
	data []byte
}

func (o oneBlob) Size(context.Context, string) (int64, error) { return int64(len(o.data)), nil }

func (o oneBlob) ReadRange(_ context.Context, _ string, p []byte, off int64) error {
	if off < 0 || off > int64(len(o.data)) || copy(p, o.data[off:]) < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// TestEveryByteCounts flips each byte of a container, one at a time: Scan finds it, and reading everything finds it
// too, unless it lies in the header, of which the directory has a copy.
func TestEveryByteCounts(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		ring := testRing(t, encrypted)
		s := newTestStore(t, vfs.NewMem())
		frames := []frame.Frame{{Codec: frame.Raw, Stored: []byte("one two"), Refs: []frame.Ref{
			{Digest: digest.Digest{1}, Length: 3}, {Digest: digest.Digest{2}, Length: 4}}},
			{Codec: frame.Zstd, Stored: []byte("three"), Refs: []frame.Ref{{Digest: digest.Digest{3}, Length: 100}}}}
		d, err := s.write(t.Context(), testHeader(ring), frames)
		if err != nil {
			t.Fatal(err)
		}
		whole := blobOf(t, s, d.ID())
		for i := range whole {
			o := oneBlob{data: bytes.Clone(whole)}
			o.data[i] ^= 1
			if err := scanWhole(t.Context(), o, d.ID()); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("byte %d of %d flipped: verify says %v", i, len(whole), err)
			}
			err := readAll(t.Context(), o, d.ID(), ring)
			inHash := i >= len(whole)-footerSize+footerHashed && i < len(whole)-crcSize
			if i >= headerSize && !inHash && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("byte %d of %d flipped: reading says %v", i, len(whole), err)
			}
		}
		for n := range whole {
			o := oneBlob{data: whole[:n]}
			if err := readAll(t.Context(), o, d.ID(), ring); !errors.Is(err, ErrDamaged) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
			}
		}
	}
}

func readAll(ctx context.Context, b blob.Store, id ID, ring *keys.Ring) error {
	d, err := OpenDirectory(ctx, b, id, ring)
	if err != nil {
		return err
	}
	for i := range uint32(d.Frames()) {
		if _, err := ReadFrame(ctx, b, d, i, nil); err != nil {
			return err
		}
	}
	return nil
}

func TestForgedDirectory(t *testing.T) {
	ring := testRing(t, true)
	s := newTestStore(t, vfs.NewMem())
	d, err := s.write(t.Context(), testHeader(ring), testFrames(3))
	if err != nil {
		t.Fatal(err)
	}
	b := blobOf(t, s, d.ID())
	ft, err := parseFooter(b[len(b)-footerSize:], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	dir := b[ft.dirOffset : ft.dirOffset+int64(ft.dirLen)]
	dir[dirHead+3*frameRowSize] ^= 1 // the first digest, with every checksum made right
	le.PutUint32(dir[len(dir)-crcSize:], crc(dir[:len(dir)-crcSize]))
	if _, err := OpenDirectory(t.Context(), oneBlob{data: b}, d.ID(), nil); err != nil {
		t.Fatalf("without keys: %v", err)
	}
	if _, err := OpenDirectory(t.Context(), oneBlob{data: b}, d.ID(), ring); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a forged digest: %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	ring := testRing(t, true)
	s := newTestStore(t, vfs.NewMem())
	d, err := s.write(t.Context(), testHeader(ring), testFrames(1))
	if err != nil {
		t.Fatal(err)
	}
	b := blobOf(t, s, d.ID())
	b[len(b)-footerSize+8] = version + 1
	if err := readAll(t.Context(), oneBlob{data: b}, d.ID(), ring); !errors.Is(err, ErrDamaged) {
		t.Fatalf("one wrong bit in the version: %v", err)
	}
	le.PutUint32(b[len(b)-crcSize:], crc(b[len(b)-footerSize:len(b)-crcSize]))
	for _, err := range []error{readAll(t.Context(), oneBlob{data: b}, d.ID(), ring), scanWhole(t.Context(), oneBlob{data: b}, d.ID())} {
		if !errors.Is(err, ErrNewerFormat) {
			t.Fatalf("newer footer: %v", err)
		}
	}
}

func TestGolden(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		name := fmt.Sprintf("encrypted-%v.hex", encrypted)
		s := newTestStore(t, vfs.NewMem())
		h := testHeader(testRing(t, encrypted))
		h.Kind = Node
		d, err := s.write(t.Context(), h, []frame.Frame{
			{Codec: frame.Raw, Stored: []byte("one two"), Refs: []frame.Ref{{Digest: digest.Digest{1}, Length: 3}, {Digest: digest.Digest{2}, Length: 4}}},
			{Codec: frame.Zstd, Stored: []byte("three"), Refs: []frame.Ref{{Digest: digest.Digest{3}, Length: 100}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, blobOf(t, s, d.ID()))
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	dump := hex.Dump(got)
	if *update {
		if err := os.WriteFile(path, []byte(dump), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if dump != string(want) {
		t.Errorf("%s differs (run with -update if that is meant):\n%s", name, dump)
	}
}

// TestFailEachOperation fails the i-th operation of building a container, for every i: the container is stored whole, or
// there is an error; nothing is left in the spool but what a failed removal leaves.
func TestFailEachOperation(t *testing.T) {
	frames, ring := testFrames(200), testRing(t, true)
	for i := int64(0); ; i++ {
		mem := vfs.NewMem()
		if err := mem.MkdirAll("/store/.tmp"); err != nil {
			t.Fatal(err)
		}
		c := errorfs.FailAt(i)
		b, err := blob.OpenDir(errorfs.Wrap(mem, c), "/store")
		if err == nil {
			_, err = testStore{fs: errorfs.Wrap(mem, c), blob: b}.write(t.Context(), testHeader(ring), frames)
		}
		if !c.Reached() {
			if err != nil {
				t.Fatal(err)
			}
			if i < 8 {
				t.Fatalf("only %d operations were failed", i)
			}
			return
		}
		if err == nil {
			// The operation was one that may fail. Then the container is there.
			d, err := OpenDirectory(t.Context(), newTestStore(t, mem).blob, MakeID(3, 7), ring)
			if err != nil {
				t.Fatalf("operation %d failed, the container was reported stored: %v", i, err)
			}
			checkAll(t, newTestStore(t, mem).blob, d, frames)
		}
	}
}

// TestBroken has the disk fill up under a writer: it takes no more, and leaves nothing.
func TestBroken(t *testing.T) {
	frames, ring := testFrames(300), testRing(t, true)
	mem := vfs.NewMem()
	mem.SetCapacity(1<<20 + 1000)
	for name, fsys := range map[string]vfs.FS{"cached": mem, "past the cache": &directFS{FS: mem}} {
		t.Run(name, func(t *testing.T) {
			w, err := NewWriter(fsys, "/c", testHeader(ring))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; n < len(frames) && err == nil; n++ {
				_, err = w.Append(frames[n])
			}
			if !vfs.IsNoSpace(err) {
				t.Fatalf("after %d frames: %v", n, err)
			}
			if _, err := w.Append(frames[0]); !errors.Is(err, ErrBroken) || !vfs.IsNoSpace(err) {
				t.Fatalf("append after an error: %v", err)
			}
			if _, err := w.Seal(t.Context()); !errors.Is(err, ErrBroken) || !vfs.IsNoSpace(err) {
				t.Fatalf("seal after an error: %v", err)
			}
			if names, _ := mem.List("/"); len(names) != 0 {
				t.Fatalf("spool is not empty: %v", names)
			}
		})
	}
}

// TestCrash loses power before every change that building a container makes: afterwards it is there whole, or not at
// all, and once stored it is there.
func TestCrash(t *testing.T) {
	frames, ring := testFrames(200), testRing(t, true)
	mem := vfs.NewMem()
	newTestStore(t, mem) // its directories are durable
	var crashes []*vfs.Mem
	rnd := rand.New(rand.NewPCG(3, 4))
	fsys := errorfs.Wrap(mem, errorfs.Func(func(op errorfs.Op, _ string) error {
		if op.Changes() {
			for _, fate := range []vfs.Fate{vfs.Lost, vfs.Kept, vfs.Torn} {
				crashes = append(crashes, mem.Crash(vfs.CrashOptions{Data: fate, Entries: fate, Rand: rnd}),
					mem.Crash(vfs.CrashOptions{Data: fate, Entries: vfs.Kept, Rand: rnd}))
			}
		}
		return nil
	}))
	if _, err := newTestStore(t, fsys).write(t.Context(), testHeader(ring), frames); err != nil {
		t.Fatal(err)
	}
	whole := 0
	for i, after := range append(crashes, mem.Crash(vfs.CrashOptions{})) {
		s := newTestStore(t, after)
		d, err := OpenDirectory(t.Context(), s.blob, MakeID(3, 7), ring)
		if errors.Is(err, blob.ErrNotExist) && i < len(crashes) {
			continue
		}
		if err != nil {
			t.Fatalf("crash %d of %d: %v", i, len(crashes), err)
		}
		checkAll(t, s.blob, d, frames)
		whole++
	}
	if whole < 2 || whole == len(crashes)+1 {
		t.Fatalf("%d of %d crashes left the container", whole, len(crashes)+1)
	}
}
