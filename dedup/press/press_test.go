package press

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func decoder(tb testing.TB) *zstd.Decoder {
	tb.Helper()
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(z.Close)
	return z
}

// roundTrip compresses src, holds the frame against the promises of Append, and returns its length.
func roundTrip(tb testing.TB, e *Encoder, z *zstd.Decoder, src []byte) int {
	tb.Helper()
	out := e.Append([]byte("before"), src)
	if string(out[:6]) != "before" {
		tb.Fatal("what was there is gone")
	}
	out = out[6:]
	if most := 9 + len(src) + blockHead*(1+len(src)/maxBlock); len(out) > most {
		tb.Fatalf("%d bytes became %d, at most %d", len(src), len(out), most)
	}
	var h zstd.Header
	if err := h.Decode(out); err != nil || !h.SingleSegment || !h.HasFCS || h.FrameContentSize != uint64(len(src)) || h.HasCheckSum || h.DictionaryID != 0 {
		tb.Fatalf("header %+v: %v", h, err)
	}
	got, err := z.DecodeAll(out, make([]byte, 0, len(src)))
	if err != nil || !bytes.Equal(got, src) {
		tb.Fatalf("%d bytes come back as %d: %v", len(src), len(got), err)
	}
	return len(out)
}

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

// letters is n bytes of an alphabet of the given size, without any order.
func letters(n, size int) []byte {
	p := noise(n)
	for i := range p {
		p[i] %= byte(size)
	}
	return p
}

// pieces is n bytes that were copied together from all distances, with noise between them.
func pieces(r *rand.Rand, n int) []byte {
	p := noise(16)
	for len(p) < n {
		for range r.IntN(1 << r.IntN(7)) {
			p = append(p, byte(r.Uint32()))
		}
		far := min(1+r.IntN(1<<r.IntN(23)), len(p))
		for range 1 << r.IntN(18) / (1 + r.IntN(8)) {
			p = append(p, p[len(p)-far])
		}
	}
	return p[:n]
}

func TestRoundTrip(t *testing.T) {
	for name, c := range map[string]struct {
		src  []byte
		most int // bytes that may become of it
	}{
		"nothing":           {nil, 9},
		"one byte":          {[]byte{7}, 10},
		"zeros":             {make([]byte, 300<<10), 80},
		"longest":           {make([]byte, MaxInput), 4 << 10},
		"two letters":       {bytes.Repeat([]byte("ab"), 100_000), 80},
		"one run":           {append(noise(40), make([]byte, 1000)...), 100},
		"text":              {text(200_000), 50_000},
		"longest of frames": {text(8 << 20), 2 << 20},
		"noise":             {noise(300_000), 300_020},
		"noise twice":       {append(noise(200_000), noise(200_000)...), 270_000},
		"literals alone":    {letters(100_000, 16), 51_000},
		"three letters":     {letters(100_000, 3), 27_000},
		"noise, text":       {append(noise(128<<10), text(128<<10)...), 170_000},
		"text, noise, text": {append(append(text(128<<10), noise(128<<10)...), text(128<<10)...), 180_000},
	} {
		t.Run(name, func(t *testing.T) {
			e, z := NewEncoder(), decoder(t)
			first := roundTrip(t, e, z, c.src)
			if first > c.most {
				t.Errorf("%d bytes became %d, expected at most %d", len(c.src), first, c.most)
			}
			roundTrip(t, e, z, text(1000))
			if again := roundTrip(t, e, z, c.src); again != first {
				t.Errorf("%d bytes at first, %d after other work", first, again)
			}
		})
	}
}

func TestEveryShortLength(t *testing.T) {
	e, z := NewEncoder(), decoder(t)
	for n := range 1200 {
		roundTrip(t, e, z, text(n))
		roundTrip(t, e, z, letters(n, 2))
		roundTrip(t, e, z, make([]byte, n))
	}
	for n := maxBlock - 20; n < maxBlock+20; n++ {
		roundTrip(t, e, z, text(n))
	}
	for n := 256 + 1<<16 - 2; n < 256+1<<16+2; n++ { // the header's sizes
		roundTrip(t, e, z, letters(n, 200))
	}
}

func TestPiecesFromEverywhere(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	e, z := NewEncoder(), decoder(t)
	for range 300 {
		roundTrip(t, e, z, pieces(r, r.IntN(1<<(4+r.IntN(19)))))
	}
}

// TestTablesFit holds every table to what the format asks of it, for counts of all shapes.
func TestTablesFit(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		counts := make([]uint32, 2+r.IntN(maxSymbols-1))
		total := uint32(0)
		for i := range counts {
			if r.IntN(3) > 0 {
				counts[i] = r.Uint32N(1 << r.IntN(14))
			}
			total += counts[i]
		}
		counts[len(counts)-1] += fewSequences
		counts[0]++
		total += fewSequences + 1
		var tab table
		tab.fit(counts, total, uint8(8+r.IntN(2)))
		sum := 0
		for i, c := range counts {
			n := int(tab.norm[i])
			if (c == 0) != (n == 0) {
				t.Fatalf("%v: symbol %d has %d states", counts, i, n)
			}
			sum += max(n, -n)
		}
		if sum != 1<<tab.log {
			t.Fatalf("%v: %d states of %d", counts, sum, 1<<tab.log)
		}
	}
}

func TestTooLong(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("taken")
		}
	}()
	NewEncoder().Append(nil, make([]byte, MaxInput+1))
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("abcabcabcabcabcabcabcabcabc"), uint8(3))
	f.Add(text(2000), uint8(100))
	f.Add(letters(3000, 2), uint8(50))
	e, z := NewEncoder(), decoder(f)
	f.Fuzz(func(t *testing.T, src []byte, times uint8) {
		roundTrip(t, e, z, src)
		roundTrip(t, e, z, bytes.Repeat(src, min(int(times), 1<<20/(1+len(src)))))
	})
}
