//go:build linux

package fusefs

import (
	"context"
	"sync"
	"time"
)

const (
	// watchEvery is how often requests under way are looked at.
	watchEvery = 250 * time.Millisecond
	// interruptGrace is how long an interrupted request may go on. Interrupts are mostly harmless signals, and EINTR from
	// a read surprises programs; a request that takes longer than this is one that a person wants to be rid of.
	interruptGrace = 2 * time.Second
)

// call is one request under way.
type call struct {
	op        string
	started   time.Time
	interrupt <-chan struct{} // closed when the caller is interrupted
	cancel    context.CancelCauseFunc
}

// watch ends requests that take too long. One goroutine looks at all of them, so that the usual request, which ends long
// before anybody looks, pays neither a timer nor a goroutine.
type watch struct {
	base    context.Context // ends with errStopped when the mount goes
	stop    context.CancelCauseFunc
	timeout time.Duration
	now     func() time.Time
	done    chan struct{}

	mu    sync.Mutex // guards calls
	calls map[*call]struct{}
}

func newWatch(timeout time.Duration) *watch {
	base, stop := context.WithCancelCause(context.Background())
	w := &watch{base: base, stop: stop, timeout: timeout, now: time.Now, done: make(chan struct{}), calls: map[*call]struct{}{}}
	go w.run()
	return w
}

// begin gives a request its context. end must be called when it is answered.
func (w *watch) begin(op string, interrupt <-chan struct{}) (context.Context, *call) {
	ctx, cancel := context.WithCancelCause(w.base)
	c := &call{op: op, started: w.now(), interrupt: interrupt, cancel: cancel}
	w.mu.Lock()
	w.calls[c] = struct{}{}
	w.mu.Unlock()
	return ctx, c
}

func (w *watch) end(c *call) {
	w.mu.Lock()
	delete(w.calls, c)
	w.mu.Unlock()
	c.cancel(nil)
}

func (w *watch) run() {
	defer close(w.done)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.base.Done():
			return
		case <-tick.C:
			w.look()
		}
	}
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for c := range w.calls {
		switch age := now.Sub(c.started); {
		case age > w.timeout:
			c.cancel(errTimeout)
		case age > interruptGrace && isClosed(c.interrupt):
			c.cancel(errInterrupted)
		}
	}
}

// close ends all requests and waits for the goroutine.
func (w *watch) close() {
	w.stop(errStopped)
	<-w.done
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
