package nbdtest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"coffer/nbd"
)

// Read checks that a device reads as the reference says, whole and in pieces, that it lends the same bytes, if it lends any, and
// that its map, if it has one, covers it and calls zero only what is.
func Read(t *testing.T, d nbd.Device, want []byte) {
	t.Helper()
	if d.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", d.Size(), len(want))
	}
	r, ctx := random(t), t.Context()
	readAll(t, d, want)
	for range 200 {
		off, n := span(r, len(want), 200_000)
		p := make([]byte, n)
		if err := d.ReadAt(ctx, p, int64(off)); err != nil {
			t.Fatalf("read %d bytes at %d: %v", n, off, err)
		}
		if !bytes.Equal(p, want[off:off+n]) {
			t.Fatalf("read %d bytes at %d: other bytes than were written", n, off)
		}
		if l, ok := d.(nbd.Lender); ok {
			q, err := l.Lend(ctx, int64(off), int64(n))
			if err != nil || len(q) > n || !bytes.Equal(q, p[:len(q)]) {
				t.Fatalf("%d bytes at %d: %d others are lent: %v", n, off, len(q), err)
			}
		}
	}
	if m, ok := d.(nbd.Mapper); ok {
		mapped(t, m, want, 0, len(want))
		for range 20 {
			off, n := span(r, len(want), len(want))
			mapped(t, m, want, off, n)
		}
	}
}

func random(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// span is a range of at least one byte, and at most of most bytes.
func span(r *rand.Rand, size, most int) (off, n int) {
	off = r.IntN(size)
	return off, 1 + r.IntN(min(most, size-off))
}

func readAll(t *testing.T, d nbd.Device, want []byte) {
	t.Helper()
	const piece = 1 << 20
	p := make([]byte, min(piece, len(want)))
	for off := 0; off < len(want); off += piece {
		q := p[:min(piece, len(want)-off)]
		if err := d.ReadAt(t.Context(), q, int64(off)); err != nil {
			t.Fatalf("read %d bytes at %d: %v", len(q), off, err)
		}
		if !bytes.Equal(q, want[off:off+len(q)]) {
			t.Fatalf("read %d bytes at %d: other bytes than were written", len(q), off)
		}
	}
}

func mapped(t *testing.T, m nbd.Mapper, want []byte, off, n int) {
	t.Helper()
	at := off
	err := m.Extents(t.Context(), int64(off), int64(n), func(d int64, f nbd.ExtentFlags) bool {
		if d <= 0 || int64(at)+d > int64(len(want)) {
			t.Errorf("extents of %d bytes at %d: %d bytes at %d", n, off, d, at)
			return false
		}
		if f&nbd.Zero != 0 && len(bytes.Trim(want[at:at+int(d)], "\x00")) != 0 {
			t.Errorf("extents of %d bytes at %d: %d bytes at %d are said to be zero and are not", n, off, d, at)
		}
		at += int(d)
		return at < off+n
	})
	if err != nil || at < off+n {
		t.Fatalf("extents of %d bytes at %d: ended at %d: %v", n, off, at, err)
	}
}

// Write changes a device in random ways, by several writers that keep to their own parts, and checks that it reads as it
// must. want is its contents before, and is changed along.
func Write(t *testing.T, d nbd.Device, want []byte) {
	t.Helper()
	w, ok := d.(nbd.Writer)
	if !ok {
		t.Fatalf("%T is no nbd.Writer", d)
	}
	const writers = 4
	var all sync.WaitGroup
	part := (len(want) + writers - 1) / writers
	for i := range writers {
		from, to := min(i*part, len(want)), min((i+1)*part, len(want))
		r := random(t)
		all.Go(func() { writePart(t, w, want[from:to], int64(from), r) })
	}
	all.Wait()
	if err := w.Flush(t.Context()); err != nil {
		t.Fatalf("flush: %v", err)
	}
	if !t.Failed() {
		Read(t, d, want)
	}
}

func writePart(t *testing.T, w nbd.Writer, want []byte, base int64, r *rand.Rand) {
	if len(want) == 0 {
		return
	}
	for range 100 {
		off, n := span(r, len(want), 100_000)
		if err := change(t.Context(), w, want[off:off+n], base+int64(off), r); err != nil {
			t.Errorf("%d bytes at %d: %v", n, base+int64(off), err)
			return
		}
	}
}

// change does one thing to a range, there and in the reference.
func change(ctx context.Context, w nbd.Writer, want []byte, off int64, r *rand.Rand) error {
	what := r.IntN(10)
	if what < 2 {
		clear(want)
		return w.Zero(ctx, off, int64(len(want)), what == 0)
	}
	if what == 2 { // what is trimmed is anything until it is written again
		if err := w.Trim(ctx, off, int64(len(want))); err != nil {
			return err
		}
	}
	for i := range want {
		want[i] = byte(r.Uint32())
	}
	if f, ok := w.(nbd.FUAWriter); ok && what == 3 {
		return f.WriteFUA(ctx, want, off)
	}
	return w.WriteAt(ctx, want, off)
}
