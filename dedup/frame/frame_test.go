package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coffer/dedup/digest"
	"coffer/dedup/frame"

	"github.com/klauspost/compress/zstd"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func hasher() *digest.Hasher { return digest.NewHasher([32]byte{1}) }

// text is n bytes that compress; noise is n bytes that do not.
func text(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "static int function_%d(struct device *dev, int %x);\n", i*i, i)
	}
	return b.Bytes()[:n]
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

// pack makes refs and plain bytes of chunks of these lengths.
func pack(source []byte, lengths ...int) (refs []frame.Ref, plain []byte) {
	h := hasher()
	for _, n := range lengths {
		refs = append(refs, frame.Ref{Digest: h.Sum(source[:n]), Length: uint32(n)})
		plain = append(plain, source[:n]...)
		source = source[n:]
	}
	return refs, plain
}

func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]struct {
		source  []byte
		lengths []int
		codec   frame.Codec
	}{
		"one byte":       {text(1), []int{1}, frame.Raw},
		"small text":     {text(300), []int{300}, frame.Zstd},
		"many chunks":    {text(60_000), []int{1, 2, 3, 40_000, 500}, frame.Zstd},
		"full frame":     {text(frame.MaxPlain), []int{100_000, frame.MaxPlain - 100_000}, frame.Zstd},
		"noise":          {noise(200_000), []int{1000, 199_000}, frame.Raw},
		"longest chunk":  {text(frame.MaxChunk), []int{frame.MaxChunk}, frame.Zstd},
		"longest noise":  {noise(frame.MaxChunk), []int{frame.MaxChunk}, frame.Raw},
		"noise and text": {append(noise(128<<10), text(100<<10)...), []int{128 << 10, 100 << 10}, frame.Zstd},
		"zeros":          {make([]byte, frame.MaxChunk), []int{frame.MaxChunk}, frame.Zstd},
	} {
		t.Run(name, func(t *testing.T) {
			enc, dec, h := frame.NewEncoder(), frame.NewDecoder(), hasher()
			refs, plain := pack(c.source, c.lengths...)
			var stored []byte
			for range 3 { // reuse changes nothing
				f := enc.Encode(refs, plain, stored)
				stored = f.Stored
				if f.Codec != c.codec || f.Validate() != nil {
					t.Fatalf("%v, %d bytes of %d: %v", f.Codec, len(f.Stored), len(plain), f.Validate())
				}
				got, err := dec.Decode(f, []byte("before"))
				if err != nil || string(got) != "before"+string(plain) {
					t.Fatalf("decode: %v", err)
				}
				if err := f.Verify(h, plain); err != nil {
					t.Fatal(err)
				}
				if f.PlainLen() != len(plain) || !bytes.Equal(f.Chunk(len(refs)-1, plain), plain[len(plain)-int(refs[len(refs)-1].Length):]) {
					t.Error("the last chunk lies elsewhere")
				}
				if again, err := frame.Parse(f.Append(nil)); err != nil || !bytes.Equal(again.Append(nil), f.Append(nil)) {
					t.Errorf("parse: %v", err)
				}
			}
		})
	}
}

func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	refs, plain := pack(text(3000), 1000, 2000)
	f := frame.NewEncoder().Encode(refs, plain, nil)
	for _, i := range []int{0, 999, 1000, 2999} {
		plain[i] ^= 4
		if err := f.Verify(hasher(), plain); !errors.Is(err, frame.ErrWrongDigest) {
			t.Errorf("byte %d: %v", i, err)
		}
		plain[i] ^= 4
	}
	if err := f.Verify(hasher(), plain[1:]); !errors.Is(err, frame.ErrMalformed) {
		t.Errorf("short: %v", err)
	}
}

func zstdFrame(t *testing.T, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(p, nil)
}

// TestHostileFrames: each is refused, and none makes the decoder spend memory beyond what the refs promise.
func TestHostileFrames(t *testing.T) {
	one := func(n int) []frame.Ref { return []frame.Ref{{Length: uint32(n)}} }
	single := zstd.WithSingleSegment(true)
	skippable := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, 4)
	bomb := zstdFrame(t, make([]byte, 64<<20), single)
	lying := append([]byte(nil), bomb...)
	binary.LittleEndian.PutUint32(lying[5:], 100_000) // the content size in the header
	many := make([]frame.Ref, frame.MaxRefs+1)
	for i := range many {
		many[i].Length = 1
	}
	for name, f := range map[string]frame.Frame{
		"no chunks":        {Codec: frame.Raw},
		"too many chunks":  {Refs: many, Stored: make([]byte, len(many))},
		"empty chunk":      {Refs: one(0)},
		"chunk too long":   {Refs: one(frame.MaxChunk + 1), Stored: make([]byte, frame.MaxChunk+1)},
		"frame too long":   {Refs: []frame.Ref{{Length: frame.MaxPlain}, {Length: 1}}, Stored: make([]byte, frame.MaxPlain+1)},
		"overflow":         {Refs: []frame.Ref{{Length: 1<<32 - 1}, {Length: 1<<32 - 1}}, Stored: []byte{1}},
		"unknown codec":    {Refs: one(10), Codec: 2, Stored: make([]byte, 5)},
		"raw too short":    {Refs: one(10), Stored: make([]byte, 9)},
		"raw too long":     {Refs: one(10), Stored: make([]byte, 11)},
		"nothing stored":   {Refs: one(10), Codec: frame.Zstd},
		"stored too long":  {Refs: one(10), Codec: frame.Zstd, Stored: make([]byte, 10)},
		"garbage":          {Refs: one(1000), Codec: frame.Zstd, Stored: noise(500)},
		"bomb":             {Refs: one(100_000), Codec: frame.Zstd, Stored: bomb},
		"bomb with a lie":  {Refs: one(100_000), Codec: frame.Zstd, Stored: lying},
		"shorter":          {Refs: one(5000), Codec: frame.Zstd, Stored: zstdFrame(t, text(4999), single)},
		"longer":           {Refs: one(5000), Codec: frame.Zstd, Stored: zstdFrame(t, text(5001), single)},
		"cut off":          {Refs: one(5000), Codec: frame.Zstd, Stored: zstdFrame(t, text(5000), single)[:300]},
		"skippable":        {Refs: one(5000), Codec: frame.Zstd, Stored: append(skippable, zstdFrame(t, text(5000), single)...)},
		"second frame":     {Refs: one(5000), Codec: frame.Zstd, Stored: append(zstdFrame(t, text(5000), single), zstdFrame(t, text(5000), single)...)},
		"window, no size":  {Refs: one(5000), Codec: frame.Zstd, Stored: streamed(t, text(5000))},
		"trailing garbage": {Refs: one(5000), Codec: frame.Zstd, Stored: append(zstdFrame(t, text(5000), single), 1, 2, 3)},
		"trailing nothing": {Refs: one(5000), Codec: frame.Zstd, Stored: append(zstdFrame(t, text(5000), single), skippable...)},
	} {
		t.Run(name, func(t *testing.T) {
			d := frame.NewDecoder()
			got, err := d.Decode(f, make([]byte, 0, 10))
			if !errors.Is(err, frame.ErrMalformed) || got != nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if n := testing.AllocsPerRun(1, func() { d.Decode(f, nil) }); n > 50 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// streamed is a zstd frame whose header has a window and no content size.
func streamed(t *testing.T, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(p)
	z.Flush()
	z.Close()
	return b.Bytes()
}

func TestPacker(t *testing.T) {
	var p frame.Packer
	if p.Fits(0) || p.Fits(frame.MaxChunk+1) || !p.Fits(frame.MaxChunk) || !p.Empty() {
		t.Error("an empty packer takes what it should not, or the reverse")
	}
	src := text(frame.MaxPlain)
	enc := frame.NewEncoder()
	for range 2 {
		p.Add(hasher().Sum(src[:100]), src[:100])
		if !p.Fits(frame.Alone-1) || p.Fits(frame.Alone) || p.Len() != 100 {
			t.Error("a long chunk is not alone")
		}
		f := p.Encode(enc, nil)
		p.Reset()
		p.Add(digest.Digest{}, src[:1])
		if err := f.Verify(hasher(), src[:100]); err != nil {
			t.Errorf("the packer changed a frame it had made: %v", err)
		}
		p.Reset()
	}
	p.Add(digest.Digest{}, src[:frame.Alone])
	if p.Fits(1) {
		t.Error("a long chunk is not alone")
	}
	p.Reset()
	for p.Fits(frame.Alone - 1) {
		p.Add(digest.Digest{}, src[:frame.Alone-1])
	}
	if p.Fits(3) || !p.Fits(2) || p.Len() != frame.MaxPlain-2 {
		t.Errorf("the limit of several chunks does not hold: %d bytes", p.Len())
	}
	p.Reset()
	for p.Fits(1) {
		p.Add(digest.Digest{1}, src[:1])
	}
	if p.Len() != frame.MaxRefs {
		t.Errorf("%d chunks", p.Len())
	}
}

// TestMissing: what lies together goes together, as far as the packer would take it.
func TestMissing(t *testing.T) {
	const a, k = frame.Alone, 1 << 10
	for _, c := range []struct {
		lengths []uint32
		had     int // index of a chunk that is there; -1: none
		n, size int
	}{
		{nil, -1, 0, 0},
		{[]uint32{5}, 0, 0, 0},
		{[]uint32{a - k, a - k, k, k, 1}, -1, 4, 2 * a},
		{[]uint32{a - k, a - k, k, k, 1}, 2, 2, 2*a - 2*k},
		{[]uint32{a, 1}, -1, 1, a},
		{[]uint32{1, a, 1}, -1, 1, 1},
		{[]uint32{frame.MaxChunk, 1}, -1, 1, frame.MaxChunk},
	} {
		refs, have := make([]frame.Ref, len(c.lengths)), make([]bool, len(c.lengths))
		for i, n := range c.lengths {
			refs[i].Length, have[i] = n, i == c.had
		}
		if n, size := frame.Missing(refs, have); n != c.n || size != c.size {
			t.Errorf("%v: %d chunks, %d bytes", c, n, size)
		}
	}
	many := make([]frame.Ref, frame.MaxRefs+1)
	for i := range many {
		many[i].Length = 1
	}
	if n, _ := frame.Missing(many, make([]bool, len(many))); n != frame.MaxRefs {
		t.Errorf("%d chunks", n)
	}
}

// TestGolden reads a frame as it was written on the first day.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func() frame.Frame
	}{
		{"zstd", func() frame.Frame {
			refs, plain := pack(text(2000), 1500, 500)
			return frame.NewEncoder().Encode(refs, plain, nil)
		}},
		{"raw", func() frame.Frame {
			refs, plain := pack(noise(100), 60, 40)
			return frame.NewEncoder().Encode(refs, plain, nil)
		}},
	} {
		path := filepath.Join("testdata", "golden-"+c.name)
		if *update {
			if err := os.WriteFile(path, c.f().Append(nil), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		rec, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := frame.Parse(rec)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		plain, err := frame.NewDecoder().Decode(f, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := f.Verify(hasher(), plain); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		want := c.f()
		if got := want.AppendHeader(nil); !bytes.Equal(got, rec[:len(got)]) {
			t.Errorf("%s: header is written as %x, was %x", c.name, got, rec[:len(got)])
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, n := range []int{1, 500, 5000} {
		refs, plain := pack(text(n), n)
		f.Add(frame.NewEncoder().Encode(refs, plain, nil).Append(nil))
	}
	refs, plain := pack(noise(100), 60, 40)
	f.Add(frame.NewEncoder().Encode(refs, plain, nil).Append(nil))
	dec, enc := frame.NewDecoder(), frame.NewEncoder()
	f.Fuzz(func(t *testing.T, p []byte) {
		fr, err := frame.Parse(p)
		if err != nil {
			return
		}
		if !bytes.Equal(fr.Append(nil), p) {
			t.Fatal("another encoding")
		}
		plain, err := dec.Decode(fr, nil)
		if err != nil {
			if !errors.Is(err, frame.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if len(plain) != fr.PlainLen() {
			t.Fatalf("%d bytes for %d", len(plain), fr.PlainLen())
		}
		again, err := dec.Decode(enc.Encode(fr.Refs, plain, nil), nil)
		if err != nil || !bytes.Equal(again, plain) {
			t.Fatalf("encode and decode: %v", err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for name, src := range map[string][]byte{
		"text-256K": text(256 << 10), "noise-256K": noise(256 << 10), "text-1M": text(1 << 20), "noise-1M": noise(1 << 20),
	} {
		b.Run(name, func(b *testing.B) {
			refs, plain := pack(src, len(src))
			e := frame.NewEncoder()
			var dst []byte
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for b.Loop() {
				dst = e.Encode(refs, plain, dst).Stored
			}
			b.ReportMetric(float64(len(dst))/float64(len(src)), "ratio")
		})
		b.Run(name+"-bare", func(b *testing.B) {
			z, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
			var dst []byte
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				dst = z.EncodeAll(src, dst[:0])
			}
			b.ReportMetric(float64(len(dst))/float64(len(src)), "ratio")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	refs, plain := pack(text(256<<10), 256<<10)
	f := frame.NewEncoder().Encode(refs, plain, nil)
	d := frame.NewDecoder()
	var dst []byte
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = d.Decode(f, dst[:0])
	}
}
