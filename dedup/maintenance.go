package dedup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// operation is a kind of maintenance. One of each runs at a time; see bars for the others.
type operation uint8

const (
	collecting operation = iota + 1 // garbage collection, and the figures of Usage
	checking
	healing
	rekeying
)

func (o operation) String() string {
	switch o {
	case collecting:
		return "collection"
	case checking:
		return "check"
	case healing:
		return "healing"
	case rekeying:
		return "change of keys"
	}
	return fmt.Sprintf("operation %#x", uint8(o))
}

// bars reports whether two operations may not run side by side: the matrix of the package's documentation.
func (o operation) bars(p operation) bool {
	return o == p || (o == healing && p != rekeying) || (p == healing && o != rekeying)
}

// maintenance is the lock that long operations of a store share.
type maintenance struct {
	mu      sync.Mutex
	closed  bool                                  // guarded by mu
	running map[operation]context.CancelCauseFunc // guarded by mu
	wg      sync.WaitGroup                        // of what runs; Add is guarded by mu
}

// runs reports whether an operation is running.
func (m *maintenance) runs(op operation) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.running[op]
	return ok
}

var errClosing = &Error{Kind: Closed, Op: "maintain store"}

// maintain begins an operation. Its context ends with the caller's, and when the store closes: then the operation has to
// stop between two steps and leave nothing condemned. end gives the lock back; Close waits for it. Kinds InUse, naming
// what runs, and Closed.
func (s *Store) maintain(ctx context.Context, op operation) (_ context.Context, end func(), _ error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	m := &s.maintenance
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil, errClosing
	}
	for other := range m.running {
		if op.bars(other) {
			return nil, nil, &Error{Kind: InUse, Op: "begin " + op.String(), Err: fmt.Errorf("a %v is running", other)}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if m.running == nil {
		m.running = make(map[operation]context.CancelCauseFunc)
	}
	m.running[op] = cancel
	m.wg.Add(1)
	return ctx, func() {
		m.mu.Lock()
		delete(m.running, op)
		m.mu.Unlock()
		cancel(nil)
		m.wg.Done()
	}, nil
}

// stop ends what runs, waits for it, and lets nothing begin.
func (m *maintenance) stop() {
	m.mu.Lock()
	m.closed = true
	for _, cancel := range m.running {
		cancel(errClosing)
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// stopped returns why a maintenance operation's context ended: Kind Closed when the store closes.
func stopped(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if err := context.Cause(ctx); errors.Is(err, errClosing) {
		return err
	}
	return ctx.Err()
}

// progressEvery is how often progress is told at most.
const progressEvery = 100 * time.Millisecond

// meter tells progress to whoever asked for it: at most ten times a second, one call at a time. A nil function is fine.
type meter struct {
	mu   sync.Mutex
	tell func(Progress) // guarded by mu, as is all below
	now  Progress
	last time.Time
}

func newMeter(tell func(Progress)) *meter { return &meter{tell: tell} }

// phase begins a part of the work; it is told at once.
func (m *meter) phase(name, unit string, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = Progress{Phase: name, Unit: unit, Total: total}
	m.last = time.Time{}
	m.send()
}

// add counts n more units as done.
func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Done += n
	m.send()
}

// send needs mu held.
func (m *meter) send() {
	if m.tell == nil || time.Since(m.last) < progressEvery {
		return
	}
	m.last = time.Now()
	m.tell(m.now)
}

// pacer holds work to a number of bytes a second. Safe for concurrent use. The zero pacer has no limit.
type pacer struct {
	rate int64 // bytes a second; 0: no limit

	mu   sync.Mutex
	free time.Time // guarded by mu: when the bytes taken so far are paid for
}

// maxBurst is how far behind its rate a pacer may catch up.
const maxBurst = 100 * time.Millisecond

// take waits until n more bytes may be moved.
func (p *pacer) take(ctx context.Context, n int64) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	p.mu.Lock()
	if oldest := now.Add(-maxBurst); p.free.Before(oldest) {
		p.free = oldest
	}
	p.free = p.free.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
