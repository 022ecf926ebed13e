package boottrace

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"sync"
	"time"

	"coffer/nbd"
)

// Result is what a replay saw.
type Result struct {
	Took     time.Duration
	Requests int
	Bytes    int64
	// Sum is of all that was read: two disks with the same contents give the same.
	Sum uint32
	// Waits are how long each request took, sorted.
	Waits []time.Duration
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // which processors have

// step is a read of a replay.
type step struct {
	Request
	place int // among all reads, in the order in which they ended
	after int // how many had ended when it began
}

// plan returns the reads of a trace in the order in which they began.
func plan(t *Trace) []step {
	var steps []step
	var byEnd []int
	for _, q := range t.Requests {
		if q.Kind == Read {
			byEnd = append(byEnd, len(steps))
			steps = append(steps, step{Request: q})
		}
	}
	slices.SortStableFunc(byEnd, func(a, b int) int { return cmp.Compare(steps[a].End, steps[b].End) })
	for place, i := range byEnd {
		steps[i].place = place
	}
	// INVARIANT: what a read waits for began before it did, so that the replay never waits for what it has not begun.
	for i := range steps {
		steps[i].after = sort.Search(len(byEnd), func(place int) bool { return steps[byEnd[place]].End >= steps[i].Begin })
	}
	return steps
}

// Replay asks a device for what a trace has read, without the time that the machine took to think: a read begins when those have
// ended that had ended before it began in the recording. So as many are in flight as there were then.
func Replay(ctx context.Context, t *Trace, d nbd.Device) (Result, error) {
	if d.Size() < t.Size {
		return Result{}, fmt.Errorf("replay a boot from a disk of %d bytes: the disk has %d", t.Size, d.Size())
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p := newReplay(d, plan(t))
	begun := time.Now()
	for i, s := range p.steps {
		if p.ended.wait(ctx, s.after) != nil {
			break // the read that failed has said why
		}
		p.reads.Go(func() {
			if err := p.read(ctx, i); err != nil {
				stop(err)
			}
		})
	}
	p.reads.Wait()
	took := time.Since(begun)
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("replay a boot: %w", context.Cause(ctx))
	}
	return p.result(took), nil
}

// replay is one that is under way. Each read has its own places in the slices.
type replay struct {
	disk    nbd.Device
	steps   []step
	ended   *frontier
	sums    []uint32
	waits   []time.Duration
	buffers sync.Pool // of *[]byte, as long as the longest read
	reads   sync.WaitGroup
}

func newReplay(d nbd.Device, steps []step) *replay {
	longest := int64(0)
	for _, s := range steps {
		longest = max(longest, s.Len)
	}
	p := &replay{disk: d, steps: steps, ended: newFrontier(len(steps)), sums: make([]uint32, len(steps)), waits: make([]time.Duration, len(steps))}
	p.buffers.New = func() any { b := make([]byte, longest); return &b }
	return p
}

func (p *replay) read(ctx context.Context, i int) error {
	buffer := p.buffers.Get().(*[]byte)
	defer p.buffers.Put(buffer)
	s := p.steps[i]
	b := (*buffer)[:s.Len]
	begun := time.Now()
	if err := p.disk.ReadAt(ctx, b, s.Off); err != nil {
		return fmt.Errorf("%d bytes at %d: %w", s.Len, s.Off, err)
	}
	p.waits[i] = time.Since(begun)
	p.ended.end(s.place)
	p.sums[i] = crc32.Checksum(b, castagnoli) // when others need not wait for it any more
	return nil
}

func (p *replay) result(took time.Duration) Result {
	r := Result{Took: took, Requests: len(p.steps), Waits: p.waits}
	var all []byte
	for i, s := range p.steps {
		r.Bytes += s.Len
		all = binary.LittleEndian.AppendUint32(all, p.sums[i])
	}
	r.Sum = crc32.Checksum(all, castagnoli)
	slices.Sort(r.Waits)
	return r
}

// frontier knows how many of a number of things, in their order, have ended with none before them that has not.
type frontier struct {
	mu      sync.Mutex
	ended   []bool        // guarded by mu
	n       int           // guarded by mu
	changed chan struct{} // guarded by mu: closed when n grows
}

func newFrontier(things int) *frontier {
	return &frontier{ended: make([]bool, things), changed: make(chan struct{})}
}

// end says that the i-th has ended.
func (f *frontier) end(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended[i] = true
	before := f.n
	for f.n < len(f.ended) && f.ended[f.n] {
		f.n++
	}
	if f.n > before {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

// wait waits until the first n have ended.
func (f *frontier) wait(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		enough, changed := f.n >= n, f.changed
		f.mu.Unlock()
		if enough {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
