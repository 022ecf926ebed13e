package dedup

import (
	"context"
	"runtime"
	"time"
)

// restShare is how long maintenance rests while runs are open, for each second of processor time that it used: so it takes a
// third of one processor at most, and beside a backup that leaves no processor idle it takes less than four times as long.
const restShare = 1.75

// givingWay does a part of maintenance, a few milliseconds long, and then rests for a while if runs are open: a backup does
// not wait for it. Waiting for the disk, or for a processor, is no work.
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
	t := time.NewTimer(time.Duration(float64(used) * restShare))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return stopped(ctx)
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
