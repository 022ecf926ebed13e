package overlay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"coffer/dedup/vfs"
	"coffer/nbd"
)

var (
	bootA = BootID{1}
	bootB = BootID{2}
)

// ramDisk is a base in memory, with a hole in its second half.
type ramDisk []byte

func (d ramDisk) Size() int64 { return int64(len(d)) }

func (d ramDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	if copy(p, d[off:]) < len(p) {
		return errors.New("read behind the end of the base")
	}
	return nil
}

func (d ramDisk) Extents(_ context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	half := int64(len(d) / 2)
	if off < half {
		part := min(n, half-off)
		if !yield(part, 0) || part == n {
			return nil
		}
		n -= part
	}
	yield(n, nbd.Hole|nbd.Zero)
	return nil
}

// testDisk has bytes in its first half and zeros in the second.
func testDisk(size int) ramDisk {
	d := make(ramDisk, size)
	rnd := rand.New(rand.NewPCG(7, 7))
	for i := range d[:size/2] {
		d[i] = byte(rnd.Uint32())
	}
	return d
}

func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("OVERLAY_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("seed: OVERLAY_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fsys vfs.FS, base nbd.Device, o Options) *Overlay {
	t.Helper()
	v, err := Create(t.Context(), fsys, "/o", base, o)
	must(t, err)
	return v
}

func reopen(t *testing.T, fsys vfs.FS, base nbd.Device, o Options) *Overlay {
	t.Helper()
	v, err := Open(t.Context(), fsys, "/o", base, o)
	must(t, err)
	return v
}

func contentOf(t *testing.T, o *Overlay) []byte {
	t.Helper()
	b := make([]byte, o.Size())
	must(t, o.ReadAt(t.Context(), b, 0))
	return b
}

func wantContent(t *testing.T, o *Overlay, want []byte) {
	t.Helper()
	got := contentOf(t, o)
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d (block %d) is %#x, want %#x", i, i/blockSize, got[i], want[i])
			}
		}
	}
}

// op is one change of a disk.
type op struct {
	kind   string // write, zero, trim, flush
	off, n int64
	fill   byte
	alloc  bool // zero: may not punch
}

// randomOp draws a change of a disk; about a third are whole blocks.
func randomOp(rnd *rand.Rand, size int64) op {
	o := op{fill: byte(rnd.Uint32()) | 1}
	switch k := rnd.IntN(20); {
	case k < 11:
		o.kind = "write"
	case k < 14:
		o.kind = "zero"
		o.alloc = rnd.IntN(3) == 0
	case k < 16:
		o.kind = "trim"
	default:
		return op{kind: "flush"}
	}
	o.off = rnd.Int64N(size)
	o.n = min(size-o.off, 1+rnd.Int64N(5*blockSize))
	if rnd.IntN(3) == 0 {
		o.off -= o.off % blockSize
		o.n = min(size-o.off, (1+rnd.Int64N(5))*blockSize)
	}
	return o
}

// bytes of a write: each offset has its own, so that a misplaced byte is seen.
func (o op) bytes() []byte {
	p := make([]byte, o.n)
	for i := range p {
		p[i] = o.fill ^ byte(o.off+int64(i)) | 1
	}
	return p
}

func (o op) do(ctx context.Context, w nbd.Writer) error {
	switch o.kind {
	case "write":
		return w.WriteAt(ctx, o.bytes(), o.off)
	case "zero":
		return w.Zero(ctx, o.off, o.n, !o.alloc)
	case "trim":
		return w.Trim(ctx, o.off, o.n)
	}
	return w.Flush(ctx)
}

// apply makes the change in a model.
func (o op) apply(b []byte) {
	switch o.kind {
	case "write":
		copy(b[o.off:], o.bytes())
	case "zero":
		clear(b[o.off : o.off+o.n])
	case "trim":
		off, end := (o.off+blockSize-1)&^(blockSize-1), (o.off+o.n)&^(blockSize-1)
		if o.off+o.n == int64(len(b)) {
			end = o.off + o.n
		}
		if off < end {
			clear(b[off:end])
		}
	}
}
