package main

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"coffer/dedup"
	"coffer/dedup/recipe"
)

type options struct {
	dir         string
	generations []string
	other       string
}

// result is one row: MB and KB of 10^6 and 10^3 bytes, as stored; times and rates by CPU seconds.
type result struct {
	first, generation, other, ratio float64
	recipe                          float64 // of the first generation
	index                           float64
	chunks                          uint64 // in all savesets together, each once
	seconds                         float64
	seqCold, seqWarm                float64
	randomCold, randomWarm          float64
}

const (
	// indexRow is what a chunk costs in the index, in bytes on disk.
	indexRow = 39
	depth    = 16
	readFor  = 3 * time.Second
)

func measure(ctx context.Context, o options, chunk int) (result, error) {
	root, err := os.MkdirTemp(o.dir, "imagebench-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(root)
	so, err := storeOptions(root)
	if err != nil {
		return result{}, err
	}
	last, r, err := storeAll(ctx, o, so, root, chunk)
	if err != nil {
		return r, err
	}
	err = r.readAll(ctx, so, last.ID)
	return r, err
}

// storeAll stores the disks, and returns the last generation.
func storeAll(ctx context.Context, o options, so dedup.Options, root string, chunk int) (last dedup.Manifest, r result, err error) {
	s, err := dedup.Create(ctx, so)
	if err != nil {
		return last, r, err
	}
	defer s.Close()
	logical, before := int64(0), 0.0
	put := func(path string) (grown float64, m dedup.Manifest, nodes int64, err error) {
		m, stats, nodes, err := store(ctx, s, path, chunk)
		if err != nil {
			return 0, m, 0, err
		}
		r.chunks += stats.New / uint64(chunk)
		st, err := os.Stat(path)
		if err != nil {
			return 0, m, 0, err
		}
		logical += st.Size()
		now := float64(s.Stats().StoredBytes) / 1e6
		grown, before = now-before, now
		return grown, m, nodes, nil
	}
	start := cpu()
	for i, path := range o.generations {
		grown, m, nodes, err := put(path)
		if err != nil {
			return last, r, err
		}
		if last = m; i == 0 {
			r.first, r.recipe, r.seconds = grown, float64(nodes)/1e3, (cpu() - start).Seconds()
			continue
		}
		r.generation += grown / float64(len(o.generations)-1)
	}
	r.ratio = float64(logical) / 1e6 / before
	if o.other != "" {
		if r.other, _, _, err = put(o.other); err != nil {
			return last, r, err
		}
	}
	r.index = float64(r.chunks) * indexRow / 1e3
	return last, r, err
}

// readAll reads the last generation, with a small cache and with one that holds it all.
func (r *result) readAll(ctx context.Context, so dedup.Options, id dedup.SavesetID) error {
	open := func(cache int64, read func(f *dedup.File) error) error {
		so.FrameMemory = cache
		s, err := dedup.Open(ctx, so)
		if err != nil {
			return err
		}
		defer s.Close()
		v, err := s.View(ctx, id)
		if err != nil {
			return err
		}
		defer v.Close()
		e, _, err := recipe.Lookup(ctx, v, v.Manifest().Root.Digest, "disk.raw")
		if err != nil {
			return err
		}
		f, err := dedup.OpenFile(v, e)
		if err != nil {
			return err
		}
		return read(f)
	}
	err := open(dedup.DefaultFrameMemory, func(f *dedup.File) (err error) {
		if r.seqCold, err = sequential(ctx, f); err == nil {
			r.randomCold, err = random(ctx, f)
		}
		return err
	})
	if err != nil {
		return err
	}
	return open(4<<30, func(f *dedup.File) (err error) {
		if _, err = sequential(ctx, f); err == nil {
			r.seqWarm, err = sequential(ctx, f)
		}
		if err == nil {
			r.randomWarm, err = random(ctx, f)
		}
		return err
	})
}

// cpu is the processor time of this process: unlike the clock, it says the same on a machine that does other work, too.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // EINVAL alone
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sequential reads the disk once, in order, and returns MB by CPU second.
func sequential(ctx context.Context, f *dedup.File) (float64, error) {
	p := make([]byte, 256<<10)
	start := cpu()
	for off := int64(0); off < f.Size(); off += int64(len(p)) {
		if err := f.ReadAt(ctx, p[:min(int64(len(p)), f.Size()-off)], off); err != nil {
			return 0, err
		}
	}
	return float64(f.Size()) / 1e6 / (cpu() - start).Seconds(), nil
}

// random reads blocks of 4 KiB that are data, from many goroutines, and returns reads by CPU second.
func random(ctx context.Context, f *dedup.File) (float64, error) {
	var data []int64
	at := int64(0)
	err := f.Extents(ctx, 0, f.Size(), func(n int64, hole bool) bool {
		for off := at; off < at+n && !hole; off += 4096 {
			data = append(data, off)
		}
		at += n
		return true
	})
	if err != nil {
		return 0, err
	}
	var reads atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	start, used := time.Now(), cpu()
	for i := range depth {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			p := make([]byte, 4096)
			for time.Since(start) < readFor {
				off := data[r.IntN(len(data))]
				if err := f.ReadAt(ctx, p[:min(4096, f.Size()-off)], off); err != nil {
					first.CompareAndSwap(nil, &err)
					return
				}
				reads.Add(1)
			}
		})
	}
	wg.Wait()
	if err := first.Load(); err != nil {
		return 0, *err
	}
	return float64(reads.Load()) / (cpu() - used).Seconds(), nil
}
