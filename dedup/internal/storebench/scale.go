package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// Scale uses chunks of eight bytes, so that everything but payload is as it is with real data: digests, rows, frames,
// directories of containers, recipes, index. Containers are sealed at a size that gives them as many rows as those of
// 32 MiB have with chunks of 8 KiB, compressed by half.
const (
	scaleContainer = 512 << 10
	chunksInFrame  = 32 // of 8 KiB: 256 KiB
	chunksInFile   = 20_000
	scaleMisses    = 200_000
	scaleHits      = 200_000
)

func scale(ctx context.Context, b *bench) error {
	steps := []int{1_000_000, 3_000_000, 10_000_000}
	if b.short {
		steps = []int{100_000, 400_000}
	}
	if b.chunks > 0 {
		steps = slices.DeleteFunc(steps, func(n int) bool { return n >= b.chunks })
		steps = append(steps, b.chunks)
	}
	p, err := newPlace(b.dir, "scale", func(o *dedup.Options) { o.ContainerSize = scaleContainer })
	if err != nil {
		return err
	}
	defer p.remove()
	s, err := p.create(ctx)
	if err != nil {
		return err
	}
	r := &scaleRun{b: b, place: p, store: s}
	defer func() { _ = r.store.Close() }()
	for _, n := range steps {
		if err := r.step(ctx, n); err != nil {
			return fmt.Errorf("at %d chunks: %w", n, err)
		}
	}
	return r.rebuild(ctx)
}

type scaleRun struct {
	b     *bench
	place *place
	store *dedup.Store
	have  int // chunks that the store has
	label string
}

// step grows the store to n chunks, and measures it.
func (r *scaleRun) step(ctx context.Context, n int) error {
	r.label = fmt.Sprintf("scale, %s chunks", count(n))
	r.b.note("%s", r.label)
	for _, f := range []func(context.Context, int) error{r.grow, r.again, r.collect, r.reopen, r.lookups} {
		if err := f(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *scaleRun) grow(ctx context.Context, n int) error {
	top := watch()
	took, err := measure(func() error { return r.send(ctx, r.have, n) })
	m := top()
	if err != nil {
		return err
	}
	t := &r.b.table
	t.add(r.label, "insert: Have and PutFrame, 1 lane, durable", "%.0f/s (%.1f µs of CPU each)",
		float64(n-r.have)/took.wall, 1e6*took.cpu/float64(n-r.have))
	t.atMost(r.label, "RssAnon while inserting, MiB", "%.0f", mib(m.anon), mib(memoryLimit))
	t.add(r.label, "RssFile (mapped) while inserting, MiB", "%.0f", mib(m.file))
	r.have = n
	return nil
}

// send is a run over chunks from to to.
func (r *scaleRun) send(ctx context.Context, from, to int) error {
	_, err := backup(ctx, r.store, dedup.RunOptions{ID: r.label}, func(c *client) error {
		for i := from; i < to; i += chunksInFile {
			n := min(chunksInFile, to-i)
			if err := sendTiny(ctx, c, i, n); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// sendTiny sends a file of n chunks.
func sendTiny(ctx context.Context, c *client, first, n int) error {
	buf := make([]byte, 8*n)
	for i := range n {
		p := buf[8*i : 8*i+8]
		binary.LittleEndian.PutUint64(p, uint64(first+i))
		if err := c.chunk(ctx, p); err != nil {
			return err
		}
		if len(c.asked) == 0 && c.packer.Len() >= 8*chunksInFrame {
			if err := c.frame(ctx); err != nil {
				return err
			}
		}
	}
	return c.endFile(ctx, fmt.Sprintf("d%04d", first/chunksInFile/100), fmt.Sprintf("f%08d", first/chunksInFile), uint64(8*n))
}

// again asks for everything a second time in the same order, as a full second backup does.
func (r *scaleRun) again(ctx context.Context, n int) error {
	before := r.store.Stats()
	took, err := measure(func() error { return r.send(ctx, 0, n) })
	if err != nil {
		return err
	}
	now := r.store.Stats()
	hits, misses := now.LocalityHits-before.LocalityHits, now.LocalityMisses-before.LocalityMisses
	t := &r.b.table
	t.add(r.label, "a full second backup, all chunks there", "%.0f/s (%.1f µs of CPU each)", float64(n)/took.wall, 1e6*took.cpu/float64(n))
	t.atLeast(r.label, "of its lookups by the locality cache, %", "%.2f", 100*float64(hits)/float64(hits+misses), 95)
	return nil
}

// collect marks everything; there is nothing to sweep.
func (r *scaleRun) collect(ctx context.Context, n int) error {
	settle()
	before := memoryNow()
	top := watch()
	var rep dedup.CollectReport
	took, err := measure(func() (err error) {
		rep, err = r.store.Collect(ctx, dedup.CollectOptions{})
		return err
	})
	m := top()
	t := &r.b.table
	if err != nil {
		t.add(r.label, "collection", "%v", err)
		return nil
	}
	t.atMost(r.label, "GC mark, s", "%.1f", rep.MarkTime.Seconds(), 60)
	t.add(r.label, "GC in all", "%.1f s, %.1f s of CPU, %d marked", took.wall, took.cpu, rep.Marked)
	t.atMost(r.label, "RssAnon of index and GC at the mark, MiB", "%.0f", mib(m.anon), mib(memoryLimit))
	t.add(r.label, "of it before the mark; marks", "%.0f; %.1f MiB", mib(before.anon), mib(rep.Memory))
	return nil
}

// reopen closes and opens the store, which flushes what the index has in memory.
func (r *scaleRun) reopen(ctx context.Context, n int) (err error) {
	if err := r.store.Close(); err != nil {
		return err
	}
	tables := int64(0)
	took, err := measure(func() error { tables, err = r.probe(ctx, n); return err })
	if err != nil {
		return err
	}
	t := &r.b.table
	t.add(r.label, "index, bytes a chunk: tables; all files", "%.1f; %.1f", float64(tables)/float64(n), float64(treeBytes(r.place.opts.IndexDir))/float64(n))
	r.b.note("probes took %.1f s", took.wall)
	took, err = measure(func() error { r.store, err = r.place.open(ctx); return err })
	t.add(r.label, "open", "%.1f s", took.wall)
	return err
}

// probe looks up what is and what is not there in the index itself, and counts what its filters let pass.
func (r *scaleRun) probe(ctx context.Context, n int) (tables int64, err error) {
	x, err := index.Open(r.place.opts.IndexDir, index.Options{Store: r.store.Domain().ID, Reserve: -1, Count: true})
	if err != nil {
		return 0, err
	}
	defer x.Close()
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	miss := make([]digest.Digest, scaleMisses)
	for i := range miss {
		for k := 0; k < digest.Size; k += 8 {
			binary.LittleEndian.PutUint64(miss[i][k:], rnd.Uint64())
		}
	}
	h := digest.NewHasher(r.store.Domain().Keys.Data)
	hit := make([]digest.Digest, scaleHits)
	for i := range hit {
		hit[i] = h.Sum(binary.LittleEndian.AppendUint64(nil, rnd.Uint64N(uint64(n))))
	}
	t := &r.b.table
	if err := r.rate(ctx, x, "index, hit (in no order)", hit, true); err != nil {
		return 0, err
	}
	before := x.Stats()
	if err := r.rate(ctx, x, "index, miss", miss, false); err != nil {
		return 0, err
	}
	after := x.Stats()
	passed := after.Passed - before.Passed
	t.atMost(r.label, "bloom filters: misses that read a block, %", "%.4f", 100*float64(passed)/scaleMisses, 0.1)
	t.add(r.label, "tables asked a miss", "%.1f", float64(after.Asked-before.Asked)/scaleMisses)
	most, several, err := mostReads(ctx, x, miss)
	t.atMost(r.label, "blocks that one miss reads at most", "%.0f", float64(most), 1)
	t.add(r.label, "misses that read more than one block, %", "%.4f", 100*float64(several)/scaleMisses)
	return after.DiskBytes, err
}

// mostReads looks digests up one by one, and returns the most blocks that any of them cost, and how many cost several.
func mostReads(ctx context.Context, x *index.Index, ds []digest.Digest) (most int64, several int, err error) {
	var loc [1]index.Loc
	var found [1]bool
	last := x.Stats().Passed
	for i := range ds {
		if err := x.Lookup(ctx, ds[i:i+1], loc[:], found[:]); err != nil {
			return 0, 0, err
		}
		now := x.Stats().Passed
		if most = max(most, now-last); now-last > 1 {
			several++
		}
		last = now
	}
	return most, several, nil
}

// rate looks digests up in batches.
func (r *scaleRun) rate(ctx context.Context, x *index.Index, what string, ds []digest.Digest, want bool) error {
	const batch = 500
	locs, found := make([]index.Loc, batch), make([]bool, batch)
	took, err := measure(func() error {
		for i := 0; i+batch <= len(ds); i += batch {
			if err := x.Lookup(ctx, ds[i:i+batch], locs, found); err != nil {
				return err
			}
			if found[0] != want {
				return fmt.Errorf("%s: wrong answer", what)
			}
		}
		return nil
	})
	r.b.table.add(r.label, what, "%.0f/s (%.2f µs of CPU each)", float64(len(ds))/took.wall, 1e6*took.cpu/float64(len(ds)))
	return err
}

// lookups measures the store's own answers: from the locality cache, through index and directory, and misses.
func (r *scaleRun) lookups(ctx context.Context, n int) error {
	run, err := r.store.Begin(ctx, dedup.RunOptions{ID: "lookups"})
	if err != nil {
		return err
	}
	defer run.Abort(ctx, "measured")
	h := digest.NewHasher(r.store.Domain().Keys.Data)
	local := make([]digest.Digest, min(n, 100_000))
	for i := range local {
		local[i] = h.Sum(binary.LittleEndian.AppendUint64(nil, uint64(n/2+i)%uint64(n)))
	}
	miss := make([]digest.Digest, scaleMisses)
	for i := range miss {
		miss[i] = h.Sum(binary.LittleEndian.AppendUint64(nil, uint64(n)+1<<40+uint64(i)))
	}
	for _, c := range []struct {
		what string
		ds   []digest.Digest
	}{{"Have, hit, directories not loaded", local}, {"Have, local", local}, {"Have, miss", miss}} {
		took, err := measure(func() error { return askAll(ctx, run, c.ds) })
		if err != nil {
			return err
		}
		r.b.table.add(r.label, c.what, "%.0f/s (%.2f µs of CPU each)", float64(len(c.ds))/took.wall, 1e6*took.cpu/float64(len(c.ds)))
	}
	return nil
}

func askAll(ctx context.Context, run *dedup.Run, ds []digest.Digest) error {
	const batch = 500
	have := make([]bool, batch)
	for i := 0; i < len(ds); i += batch {
		d := ds[i:min(len(ds), i+batch)]
		if err := run.Have(ctx, d, have[:len(d)]); err != nil {
			return err
		}
	}
	return nil
}

// rebuild drops the index and opens the store.
func (r *scaleRun) rebuild(ctx context.Context) error {
	if err := r.store.Close(); err != nil {
		return err
	}
	if err := index.Remove(filepath.Clean(r.place.opts.IndexDir)); err != nil {
		return err
	}
	settle()
	top := watch()
	start := time.Now()
	took, err := measure(func() (err error) { r.store, err = r.place.open(ctx); return err })
	m := top()
	if err != nil {
		return err
	}
	t := &r.b.table
	t.add(r.label, "reindex", "%.1f s (%.0f chunks/s)", time.Since(start).Seconds(), float64(r.have)/took.wall)
	t.atMost(r.label, "RssAnon at reindex, MiB", "%.0f", mib(m.anon), mib(memoryLimit))
	return nil
}

func count(n int) string {
	if n >= 1_000_000 {
		return fmt.Sprintf("%d million", n/1_000_000)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
