package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// readWindow is how much a restore plans at once: what the store counts container switches by.
const readWindow = 64 << 20

func read(ctx context.Context, b *bench) error {
	size, rounds := 256<<20, b.rounds
	if b.short {
		size, rounds = 64<<20, 3
	}
	for _, l := range loads[1:] {
		if err := b.readBack(ctx, l, size, rounds); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// readBack reads a saveset that was written by one run.
func (b *bench) readBack(ctx context.Context, l load, size, rounds int) error {
	p, err := newPlace(b.dir, "read", nil)
	if err != nil {
		return err
	}
	defer p.remove()
	s, err := p.create(ctx)
	if err != nil {
		return err
	}
	data := make([]byte, size)
	newContent(l.noise).fill(data, 5)
	if err := ingestAll(ctx, s, l.pieces(data)); err != nil {
		return errors.Join(err, s.Close())
	}
	sets, err := s.Savesets(ctx)
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	rates, err := p.rates(ctx, sets[0].ID, rounds)
	if err != nil {
		return err
	}
	rates.print(&b.table, l.name+", sequential read, cold")
	return nil
}

// rates are MB/s of reading a saveset in one round and of decompressing the same data bare.
type rates struct{ bareWall, bareCPU, restoreWall, restoreCPU, mountWall, mountCPU []float64 }

// rates reads a saveset with nothing of it in memory, in turns with bare decompression of what is read. The first round warms
// up: a process that reads has memory to read into.
func (p *place) rates(ctx context.Context, id dedup.SavesetID, rounds int) (r rates, err error) {
	var ds []piece
	var mb float64
	var frames []frame.Frame
	err = p.viewed(ctx, id, func(v *dedup.View) error {
		if ds, mb, err = chunksOf(ctx, v); err == nil {
			frames, err = framesOf(ctx, v, ds)
		}
		return err
	})
	if err != nil {
		return r, err
	}
	for i := range rounds + 1 {
		if i == 1 {
			r = rates{}
		}
		for _, way := range []struct {
			wall, cpu *[]float64
			f         func(*dedup.View) error
		}{
			{&r.bareWall, &r.bareCPU, func(*dedup.View) error { return decodeAll(frames) }},
			{&r.restoreWall, &r.restoreCPU, func(v *dedup.View) error { return restoreAll(ctx, v, ds) }},
			{&r.mountWall, &r.mountCPU, func(v *dedup.View) error { return mountAll(ctx, v, ds) }},
		} {
			err := p.viewed(ctx, id, func(v *dedup.View) error {
				runtime.GC()
				dropCaches()
				took, err := measure(func() error { return way.f(v) })
				*way.wall, *way.cpu = append(*way.wall, mb/took.wall), append(*way.cpu, mb/took.cpu)
				return err
			})
			if err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// viewed opens the store anew, with empty caches, and a saveset in it.
func (p *place) viewed(ctx context.Context, id dedup.SavesetID, f func(*dedup.View) error) error {
	s, err := p.open(ctx)
	if err != nil {
		return err
	}
	v, err := s.View(ctx, id)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	return errors.Join(f(v), v.Close(), s.Close())
}

func (r *rates) print(t *table, what string) {
	t.add(what, "bare decompression, MB/s (MB/s a core)", "%.0f (%.0f)", median(r.bareWall), median(r.bareCPU))
	t.add(what, "restore, MB/s (MB/s a core)", "%.0f (%.0f)", median(r.restoreWall), median(r.restoreCPU))
	t.add(what, "mount, MB/s (MB/s a core)", "%.0f (%.0f)", median(r.mountWall), median(r.mountCPU))
	t.atLeast(what, "restore / bare, wall, %", "%.0f", 100*median(r.restoreWall)/median(r.bareWall), 70)
	t.atLeast(what, "mount / bare, wall, %", "%.0f", 100*median(r.mountWall)/median(r.bareWall), 70)
	t.add(what, "restore / bare; mount / bare, CPU, %", "%.0f; %.0f", 100*median(r.restoreCPU)/median(r.bareCPU), 100*median(r.mountCPU)/median(r.bareCPU))
}

// piece is a chunk of a saveset.
type piece struct {
	d digest.Digest
	n uint64
}

// chunksOf returns all chunks of a saveset in its order, and their bytes in MB.
func chunksOf(ctx context.Context, v *dedup.View) (out []piece, mb float64, err error) {
	m := v.Manifest()
	err = recipe.Walk(ctx, v, m.Root.Digest, m.Side.Digest, func(_ string, st recipe.Step) error {
		if st.Entry.IsDir() {
			return nil
		}
		it := recipe.NewStreamIter(v, st.Entry.Content, st.Entry.Size)
		for {
			x, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			out, mb = append(out, piece{x.Digest, x.Length}), mb+float64(x.Length)/1e6
		}
	})
	return out, mb, err
}

// windows yields parts of about readWindow.
func windows(ds []piece, f func([]digest.Digest) error) error {
	var w []digest.Digest
	n := uint64(0)
	for i := range ds {
		w, n = append(w, ds[i].d), n+ds[i].n
		if n >= readWindow || i == len(ds)-1 {
			if err := f(w); err != nil {
				return err
			}
			w, n = w[:0], 0
		}
	}
	return nil
}

// framesOf packs a saveset's chunks anew, in its order: what a store without a past would hold.
func framesOf(ctx context.Context, v *dedup.View, ds []piece) (out []frame.Frame, err error) {
	var p frame.Packer
	enc := frame.NewEncoder()
	for _, c := range ds {
		b, err := v.Chunk(ctx, c.d)
		if err != nil {
			return nil, err
		}
		if !p.Fits(len(b)) {
			out = append(out, p.Encode(enc, nil))
			p.Reset()
		}
		p.Add(c.d, b)
	}
	return append(out, p.Encode(enc, nil)), nil
}

func decodeAll(frames []frame.Frame) (err error) {
	dec := frame.NewDecoder()
	var plain []byte
	for _, f := range frames {
		if plain, err = dec.Decode(f, plain[:0]); err != nil {
			return err
		}
	}
	return nil
}

// restoreAll is how a restore reads: frames in the order in which they are stored, a window at a time, decompressed
// meanwhile by who gets them, on all processors.
func restoreAll(ctx context.Context, v *dedup.View, ds []piece) error {
	g, ctx := errgroup.WithContext(ctx)
	decoders := runtime.GOMAXPROCS(0)
	frames, free := make(chan sentFrame, 16+1+decoders), make(chan *dedup.FrameBuffer, 16+1+decoders) // and one at each end
	for range cap(free) {
		free <- new(dedup.FrameBuffer)
	}
	g.Go(func() error {
		defer close(frames)
		return windows(ds, func(w []digest.Digest) error { return sendWindow(ctx, v, w, free, frames) })
	})
	for range decoders {
		g.Go(func() (err error) {
			dec := frame.NewDecoder()
			var plain []byte
			for f := range frames {
				if plain, err = dec.Decode(f.Frame, plain[:0]); err != nil {
					return err
				}
				free <- f.in
			}
			return nil
		})
	}
	return g.Wait()
}

// sentFrame lies in a buffer.
type sentFrame struct {
	frame.Frame
	in *dedup.FrameBuffer
}

func sendWindow(ctx context.Context, v *dedup.View, w []digest.Digest, free <-chan *dedup.FrameBuffer, to chan<- sentFrame) error {
	items, err := v.Plan(ctx, w)
	if err != nil {
		return err
	}
	for _, it := range items {
		var buf *dedup.FrameBuffer
		select {
		case buf = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		f, err := v.Frame(ctx, it.Loc, buf)
		if err != nil {
			return err
		}
		to <- sentFrame{f, buf} // there is room for all that there are
	}
	return nil
}

// mountAll is how a mount reads: chunk after chunk through the cache, with read-ahead.
func mountAll(ctx context.Context, v *dedup.View, ds []piece) error {
	const step, ahead = 64, 192
	next := make([]digest.Digest, 0, ahead)
	asked := 0
	for i := range ds {
		if i%step == 0 {
			next = next[:0]
			for ; asked < min(len(ds), i+ahead); asked++ {
				next = append(next, ds[asked].d)
			}
			v.ReadAhead(next)
		}
		if _, err := v.Chunk(ctx, ds[i].d); err != nil {
			return err
		}
	}
	return nil
}
