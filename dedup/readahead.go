package dedup

import (
	"context"
	"runtime"
	"sync"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// aheadQueue is how many frames may wait for being brought in. Read-ahead is a hint: nobody waits for it.
const aheadQueue = 64

// readAhead brings frames into the cache before they are asked for.
type readAhead struct {
	jobs   chan aheadJob
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	waiting map[Loc]struct{} // guarded by mu: what is in jobs
}

type aheadJob struct {
	dir   *container.Directory
	frame uint32
}

func (j aheadJob) loc() Loc { return Loc{j.dir.ID(), j.frame} }

// startReadAhead starts a worker for each processor: decoding is what takes the time.
func startReadAhead(s *Store) *readAhead {
	ctx, cancel := context.WithCancel(context.Background())
	a := &readAhead{jobs: make(chan aheadJob, aheadQueue), cancel: cancel, waiting: make(map[Loc]struct{})}
	for range max(2, runtime.GOMAXPROCS(0)) {
		a.wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-a.jobs:
					a.begun(j)
					_, _ = s.plain(ctx, j.dir, j.frame) // the reader who needs it meets the error himself
				}
			}
		})
	}
	return a
}

func (a *readAhead) stop() {
	a.cancel()
	a.wg.Wait()
}

// offer puts a frame into the queue, and reports whether it did: not when it waits already, nor when the queue is full.
func (a *readAhead) offer(j aheadJob) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.waiting[j.loc()]; ok {
		return false
	}
	select {
	case a.jobs <- j:
		a.waiting[j.loc()] = struct{}{}
		return true
	default:
		return false
	}
}

// begun takes note that a frame has left the queue.
func (a *readAhead) begun(j aheadJob) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, j.loc())
}

// ReadAhead starts to bring the frames of chunks into the frame cache and returns at once. It is a hint: under pressure
// it does nothing. Give what comes next, in order, a few MiB at most.
func (v *View) ReadAhead(ds []digest.Digest) {
	if v.alive() != nil {
		return
	}
	places, err := v.s.locate(context.Background(), ds) // as who reads them does
	if err != nil {
		return // who needs them meets the error himself
	}
	v.asked.add(ds, places)
	pre := v.s.prefetch()
	defer pre.flush()
	var last Loc
	for _, at := range places {
		if at.dir == nil || at.dir.Kind() != container.Data {
			continue
		}
		loc := at.loc()
		if loc == last || v.s.frames.has(loc) {
			continue
		}
		last = loc
		if v.s.ahead.offer(aheadJob{at.dir, loc.Frame}) {
			pre.add(at.dir, loc.Frame)
		}
	}
}

// prefetch has the blob store begin to read frames, so that who decodes them does not wait for the disk one by one.
// Neighbours are one range. The zero value does nothing.
type prefetch struct {
	blob     blob.Prefetcher // nil: the blob store cannot
	id       container.ID
	from, to int64
}

func (s *Store) prefetch() *prefetch {
	b, _ := s.blob.(blob.Prefetcher)
	return &prefetch{blob: b}
}

// add takes a frame. flush is called at the end.
func (p *prefetch) add(dir *container.Directory, i uint32) {
	f := dir.Frame(i)
	if dir.ID() != p.id || f.Offset != p.to {
		p.flush()
		p.id, p.from = dir.ID(), f.Offset
	}
	p.to = f.Offset + int64(f.Size)
}

func (p *prefetch) flush() {
	if p.blob != nil && p.to > p.from {
		p.blob.Prefetch(p.id.Name(), p.from, p.to-p.from)
	}
	p.from, p.to = 0, 0
}
