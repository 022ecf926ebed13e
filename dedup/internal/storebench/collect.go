package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/vfs"
)

// collect measures ingest beside a collection, and the collection beside ingest, each against itself alone. The store has
// generations of a tree of which all but the last are deleted, so that there is much to delete and to copy.
func collect(ctx context.Context, b *bench) error {
	size := int64(256 << 20)
	if b.short {
		size = 48 << 20
	}
	first, err := newPlace(b.dir, "collect", nil)
	if err != nil {
		return err
	}
	defer first.remove()
	if err := garbage(ctx, first, size); err != nil {
		return err
	}
	twin, err := first.clone("collect-twin")
	if err != nil {
		return err
	}
	defer twin.remove()
	idle, _, err := first.collectBeside(ctx, nil)
	if err != nil {
		return err
	}
	if err := first.remove(); err != nil {
		return err
	}
	in := newStream()
	before, err := twin.ingestFor(ctx, in, max(idle, 2*time.Second))
	if err != nil {
		return err
	}
	busy, beside, err := twin.collectBeside(ctx, in)
	if err != nil {
		return err
	}
	after, err := twin.ingestFor(ctx, in, max(idle, 2*time.Second))
	if err != nil {
		return err
	}
	alone := (before + after) / 2
	t := &b.table
	t.add("collection", "alone, s; beside ingest, s", "%.1f; %.1f", idle.Seconds(), busy.Seconds())
	t.add("collection", "ingest alone (before, after), beside it, MB/s", "%.0f, %.0f; %.0f", before, after, beside)
	t.atMost("collection", "ingest loses, %", "%.1f", 100*(1-beside/alone), 15)
	t.atMost("collection", "it takes longer beside ingest, times", "%.1f", busy.Seconds()/idle.Seconds(), 4)
	return nil
}

// garbage writes generations and deletes all but the last.
func garbage(ctx context.Context, p *place, size int64) error {
	s, err := p.create(ctx)
	if err != nil {
		return err
	}
	src := newTree(size)
	for gen := range 8 {
		if _, err := backup(ctx, s, dedup.RunOptions{ID: fmt.Sprint(gen)}, func(c *client) error { return src.send(ctx, c) }); err != nil {
			return errors.Join(err, s.Close())
		}
		for range 6 {
			src.age()
		}
	}
	sets, err := s.Savesets(ctx)
	for i := range len(sets) - 1 {
		if err == nil {
			_, err = s.SetState(ctx, sets[i].ID, func(st dedup.State) dedup.State { st.Deleted = true; return st })
		}
	}
	// What broken runs left is kept for three days; here nothing is.
	p.opts.Now = func() time.Time { return time.Now().AddDate(0, 0, 7) }
	return errors.Join(err, s.Close())
}

// clone copies a place that is closed.
func (p *place) clone(name string) (*place, error) {
	q := &place{filepath.Join(filepath.Dir(p.root), name), p.opts}
	if err := os.CopyFS(q.root, os.DirFS(p.root)); err != nil {
		return nil, err
	}
	b, err := blob.OpenDir(vfs.OS(), filepath.Join(q.root, "store"))
	q.opts.Blob, q.opts.SpoolDir, q.opts.IndexDir = b, filepath.Join(q.root, "spool"), filepath.Join(q.root, "index")
	return q, err
}

// collectBeside collects, while in is written if it is not nil, and returns how long it took and at what rate was written.
func (p *place) collectBeside(ctx context.Context, in *stream) (took time.Duration, rate float64, err error) {
	s, err := p.open(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		rep, err := s.Collect(ctx, dedup.CollectOptions{})
		took = time.Since(start)
		if err == nil && rep.Copied == 0 {
			err = fmt.Errorf("nothing was copied forward: %+v", rep)
		}
		done <- err
	}()
	bytes := 0
	for in != nil && len(done) == 0 {
		n, err := in.ingest(ctx, s)
		if err != nil {
			return 0, 0, errors.Join(err, <-done)
		}
		bytes += n
	}
	rate = float64(bytes) / 1e6 / time.Since(start).Seconds()
	return took, rate, <-done
}

// ingestFor writes for some time, and returns MB/s.
func (p *place) ingestFor(ctx context.Context, in *stream, d time.Duration) (rate float64, err error) {
	s, err := p.open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	bytes, start := 0, time.Now()
	for time.Since(start) < d {
		n, err := in.ingest(ctx, s)
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return float64(bytes) / 1e6 / time.Since(start).Seconds(), nil
}

// stream is small files that are new each time, and cost nothing to make.
type stream struct {
	pieces [][]byte
	next   uint64
}

func newStream() *stream {
	data := make([]byte, 24<<20)
	newContent(false).fill(data, 77)
	return &stream{pieces: load{files: true}.pieces(data)}
}

// ingest is one run.
func (in *stream) ingest(ctx context.Context, s *dedup.Store) (bytes int, err error) {
	for _, p := range in.pieces {
		if in.next++; len(p) >= 8 {
			binary.LittleEndian.PutUint64(p, in.next)
		}
		bytes += len(p)
	}
	return bytes, ingestAll(ctx, s, in.pieces)
}
