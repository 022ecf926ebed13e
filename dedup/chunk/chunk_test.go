package chunk_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"coffer/dedup/chunk"

	"github.com/restic/chunker"
)

// params are those of restic's own tests.
func params() chunk.Params {
	return chunk.Params{Polynomial: 0x3DA3358B4DC173, Min: chunk.DefaultMin, Max: chunk.DefaultMax, AvgBits: chunk.DefaultAvgBits}
}

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

func newCutter(t testing.TB, p chunk.Params) *chunk.Cutter {
	t.Helper()
	c, err := chunk.NewCutter(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cut returns the lengths of a stream's chunks and checks that they are the stream.
func cut(t testing.TB, c *chunk.Cutter, data []byte) (lengths []int) {
	t.Helper()
	c.Reset(bytes.NewReader(data))
	buf := make([]byte, 0, chunk.MaxChunk)
	for {
		p, err := c.Next(buf)
		if err == io.EOF {
			break
		}
		if err != nil || !bytes.HasPrefix(data, p) {
			t.Fatalf("after %v: %v", lengths, err)
		}
		lengths = append(lengths, len(p))
		data = data[len(p):]
	}
	if len(data) != 0 {
		t.Fatalf("%d bytes are missing", len(data))
	}
	return lengths
}

// TestGolden pins the cuts: another library version that cuts elsewhere would store everything anew.
func TestGolden(t *testing.T) {
	got := fmt.Sprint(cut(t, newCutter(t, params()), noise(16<<20)))
	if want := "[684579 1968500 1607772 952831 951948 804488 2354884 1385590 4329859 594157 569099 573509]"; got != want {
		t.Errorf("cuts %s, want %s", got, want)
	}
}

// TestCutsLikeRestic holds the cutter against the library whose fingerprint it computes its own way.
func TestCutsLikeRestic(t *testing.T) {
	zeros := make([]byte, 5<<20)
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 100_000)
	for _, p := range []chunk.Params{
		params(),
		{Min: 128, Max: 1 << 20, AvgBits: 6},
		{Min: 128, Max: 128, AvgBits: 20},
		{Min: 1000, Max: 5000, AvgBits: 12},
		{Min: 70_000, Max: 600_000, AvgBits: 16},
		{Min: 600_000, Max: 600_001, AvgBits: 6},
	} {
		random, err := chunk.NewParams(rand.NewChaCha8([32]byte{byte(p.AvgBits)}))
		if err != nil {
			t.Fatal(err)
		}
		p.Polynomial = random.Polynomial
		c := newCutter(t, p)
		for name, data := range map[string][]byte{
			"noise": noise(3<<20 + 17), "zeros": zeros, "text": text, "tiny": noise(100), "minimum": noise(p.Min), "maximum": noise(p.Max),
			"more": noise(p.Max + 1), "block": noise(512 << 10), "nothing": nil,
		} {
			ref := chunker.NewWithBoundaries(bytes.NewReader(data), chunker.Pol(p.Polynomial), uint(p.Min), uint(p.Max))
			ref.SetAverageBits(p.AvgBits)
			var want []int
			for {
				ch, err := ref.Next(nil)
				if err != nil {
					break
				}
				want = append(want, int(ch.Length))
			}
			if got := cut(t, c, data); !slices.Equal(got, want) {
				t.Errorf("%s, %+v: %d chunks, want %d", name, p, len(got), len(want))
			}
		}
	}
}

func TestCutterIsReusable(t *testing.T) {
	c := newCutter(t, params())
	if _, err := c.Next(nil); err != io.EOF {
		t.Errorf("before Reset: %v", err)
	}
	data := noise(9 << 20)
	want := fmt.Sprint(cut(t, c, data))
	c.Reset(bytes.NewReader(data))
	if _, err := c.Next(nil); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(cut(t, c, data)); got != want {
		t.Errorf("after half a stream: %s, want %s", got, want)
	}
	small := params()
	small.Min, small.Max, small.AvgBits = 4<<10, 64<<10, 13
	c = newCutter(t, small)
	for range 2 {
		if n := len(cut(t, c, data)); n < 500 || n > 1500 {
			t.Errorf("%d chunks of about 12 KiB in 9 MiB", n)
		}
	}
	if got := cut(t, c, nil); got != nil {
		t.Errorf("empty stream: %v", got)
	}
}

func TestInsertionMovesFewCuts(t *testing.T) {
	c := newCutter(t, params())
	data := noise(64 << 20)
	seen := map[[32]byte]bool{}
	each := func(p []byte, f func([32]byte)) {
		for _, n := range cut(t, c, p) {
			f(sha256.Sum256(p[:n]))
			p = p[n:]
		}
	}
	each(data, func(d [32]byte) { seen[d] = true })
	changed := append(append(append([]byte(nil), data[:20<<20]...), "something"...), data[20<<20:]...)
	fresh := 0
	each(changed, func(d [32]byte) {
		if !seen[d] {
			fresh++
		}
	})
	if fresh > 3 {
		t.Errorf("%d new chunks of %d", fresh, len(seen))
	}
}

func TestReaderErrorComesThrough(t *testing.T) {
	c := newCutter(t, params())
	boom := errors.New("boom")
	c.Reset(io.MultiReader(bytes.NewReader(noise(100)), iotest.ErrReader(boom)))
	if _, err := c.Next(nil); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

func TestMaxHolds(t *testing.T) {
	for _, n := range cut(t, newCutter(t, params()), make([]byte, 20<<20)) {
		if n > chunk.MaxChunk {
			t.Errorf("chunk of %d bytes", n)
		}
	}
}

func TestNewParams(t *testing.T) {
	a, err := chunk.NewParams(rand.NewChaCha8([32]byte{1}))
	if err != nil || a.Validate() != nil {
		t.Fatalf("%v, %v", err, a.Validate())
	}
	b, _ := chunk.NewParams(rand.NewChaCha8([32]byte{2}))
	if a == b {
		t.Errorf("two domains have the polynomial %x", a.Polynomial)
	}
	if _, err := chunk.NewParams(iotest.ErrReader(io.ErrNoProgress)); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("no randomness: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(p *chunk.Params){
		"no polynomial": func(p *chunk.Params) { p.Polynomial = 0 },
		"reducible":     func(p *chunk.Params) { p.Polynomial = 1 << 53 },
		"degree":        func(p *chunk.Params) { p.Polynomial |= 1 << 60 },
		"small minimum": func(p *chunk.Params) { p.Min = 127 },
		"large minimum": func(p *chunk.Params) { p.Min = chunk.MaxChunk + 1 },
		"maximum":       func(p *chunk.Params) { p.Max = p.Min - 1 },
		"large maximum": func(p *chunk.Params) { p.Max = chunk.MaxChunk + 1 },
		"small average": func(p *chunk.Params) { p.AvgBits = 5 },
		"large average": func(p *chunk.Params) { p.AvgBits = 64 },
		"negative":      func(p *chunk.Params) { p.Min, p.Max, p.AvgBits = -1, -1, -1 },
	} {
		p := params()
		change(&p)
		if err := p.Validate(); err == nil {
			t.Errorf("%s: %+v is valid", name, p)
		}
		if _, err := chunk.NewCutter(p); err == nil {
			t.Errorf("%s: a cutter for %+v", name, p)
		}
	}
}

func BenchmarkCutter(b *testing.B) {
	data := noise(32 << 20)
	buf := make([]byte, 0, chunk.MaxChunk)
	p := params()
	b.Run("ours", func(b *testing.B) {
		c := newCutter(b, p)
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			c.Reset(bytes.NewReader(data))
			for {
				if _, err := c.Next(buf); err != nil {
					break
				}
			}
		}
	})
	b.Run("restic", func(b *testing.B) {
		c := chunker.New(nil, chunker.Pol(p.Polynomial))
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			c.Reset(bytes.NewReader(data), chunker.Pol(p.Polynomial))
			for {
				if _, err := c.Next(buf); err != nil {
					break
				}
			}
		}
	})
}
