package dedup

import (
	"sync"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
)

// prefetched is a blob store that takes note of what it is told to begin to read.
type prefetched struct {
	blob.Store
	mu     sync.Mutex
	ranges map[string][][2]int64 // guarded by mu: from and to, of each blob
}

func (p *prefetched) Prefetch(name string, off, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ranges[name] = append(p.ranges[name], [2]int64{off, off + n})
}

// take returns the ranges so far, and forgets them.
func (p *prefetched) take() map[string][][2]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.ranges
	p.ranges = make(map[string][][2]int64)
	return r
}

// TestPrefetch has the disk begin to read what is planned, and what is read ahead: every frame once, neighbours at once.
func TestPrefetch(t *testing.T) {
	o := memOptions(t)
	b := &prefetched{Store: o.Blob, ranges: make(map[string][][2]int64)}
	o.Blob = b
	s, v, ds, _ := openView(t, o)
	b.take()
	items, err := v.Plan(t.Context(), ds)
	if err != nil {
		t.Fatal(err)
	}
	planned := b.take()
	covers := func(ranges map[string][][2]int64, it PlanItem) bool {
		dir, err := s.directory(t.Context(), it.Loc.Container)
		if err != nil {
			t.Fatal(err)
		}
		f := dir.Frame(it.Loc.Frame)
		for _, r := range ranges[it.Loc.Container.Name()] {
			if r[0] <= f.Offset && f.Offset+int64(f.Size) <= r[1] {
				return true
			}
		}
		return false
	}
	total := 0
	for _, ranges := range planned {
		total += len(ranges)
	}
	for _, it := range items {
		if !covers(planned, it) {
			t.Errorf("%v is planned, and not prefetched", it.Loc)
		}
	}
	if total == 0 || total >= len(items) {
		t.Errorf("%d ranges for %d frames", total, len(items))
	}

	// What is in the cache already is not.
	some := ds[:20]
	for _, d := range some[:10] {
		if _, err := v.Chunk(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	v.ReadAhead(some[:10])
	if r := b.take(); len(r) > 0 {
		t.Errorf("%v is prefetched, and was in the cache", r)
	}
	s.frames = newFrameCache(s.opts.FrameMemory)
	v.ReadAhead(some)
	ahead := b.take()
	for _, at := range must(s.locate(t.Context(), some)) {
		if it := (PlanItem{Loc: at.loc()}); !covers(ahead, it) {
			t.Errorf("%v is read ahead, and not prefetched", it.Loc)
		}
	}
}

// TestReadAheadOffersOnce fills the queue of a read-ahead that nobody works at: a frame waits there once, and what does
// not fit is left out.
func TestReadAheadOffersOnce(t *testing.T) {
	s, _, ds, _ := openView(t, memOptions(t))
	dir := must(s.locate(t.Context(), []digest.Digest{ds[0]}))[0].dir
	a := &readAhead{jobs: make(chan aheadJob, 2), waiting: make(map[Loc]struct{})}
	for i, want := range []bool{true, true, false} {
		job := aheadJob{dir, uint32(i)}
		if got := a.offer(job); got != want {
			t.Fatalf("frame %d is taken: %v", i, got)
		}
		if a.offer(job) {
			t.Fatalf("frame %d waits twice", i)
		}
	}
	a.begun(<-a.jobs)
	if !a.offer(aheadJob{dir, 0}) || a.offer(aheadJob{dir, 2}) {
		t.Fatal("there is room for one")
	}
}
