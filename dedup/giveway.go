package dedup

import (
	"context"
	"runtime"
	"sync"
	"time"
)

const (
	// maintenanceShare is how much of one processor maintenance takes while runs are open. Of two that a backup keeps busy it
	// leaves that backup 85 %, and a collection takes less than four times as long as alone.
	maintenanceShare = 0.3
	// maxCredit is how much processor time maintenance may use at once after it waited, for the disk or for a processor: the
	// share of half a second, in which a container is made durable.
	maxCredit = 150 * time.Millisecond
	// restFrom is the debt of processor time from which on a rest is worth a timer.
	restFrom = time.Millisecond
)

// givingWay does a part of maintenance, a few milliseconds long, and then rests for a while if runs are open: a backup does
// not wait for it. Waiting for the disk, or for a processor, is rest.
func (s *Store) givingWay(ctx context.Context, part func() error) error {
	if !s.busy() {
		if err := part(); err != nil {
			return err
		}
		return stopped(ctx)
	}
	used, err := timed(part)
	if err != nil {
		return err
	}
	if rest := s.pace.spend(used, time.Now()); rest > 0 {
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return stopped(ctx)
}

// pace holds maintenance to its share, all goroutines together. The zero value has all the credit there can be.
type pace struct {
	mu     sync.Mutex
	at     time.Time     // guarded by mu: up to when credit was given
	credit time.Duration // guarded by mu: processor time that may be used; below 0 it was used already
}

// spend takes note of processor time that was used, and returns how long to rest.
func (p *pace) spend(used time.Duration, now time.Time) (rest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	given := time.Duration(float64(now.Sub(p.at)) * maintenanceShare)
	p.at, p.credit = now, min(p.credit+given, maxCredit)-used
	if p.credit > -restFrom {
		return 0
	}
	return time.Duration(float64(-p.credit) / maintenanceShare)
}

// timed runs a function and returns the processor time that it took.
func timed(part func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime()
	err := part()
	return threadTime() - start, err
}

// busy reports whether runs are open.
func (s *Store) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs) > 0
}
