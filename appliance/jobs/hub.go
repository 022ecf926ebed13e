package jobs

import (
	"context"
	"sync"
	"time"

	"coffer/appliance/catalog"
)

// EventKind is what an event tells of.
type EventKind uint8

// Kinds of events.
const (
	EventState    EventKind = iota // a run changed its state
	EventProgress                  // a run's counters moved; an older one not yet read is replaced
	EventNotice                    // a run noted something
	EventClient                    // a client came, went or changed
)

// Event is a change that watchers are told of.
type Event struct {
	Kind   EventKind
	Time   time.Time
	RunID  string // all but EventClient
	Run    Info   // EventState, EventProgress
	Notice catalog.Notice
	Client string // EventClient
}

// maxBehind is how many events a watcher may leave unread before it is given up.
const maxBehind = 4096

// Hub hands events to watchers. Publish never waits. The zero value works.
type Hub struct {
	mu       sync.Mutex // guards the two below
	watchers map[*watcher]struct{}
	closed   bool
}

// watcher is one subscription: a queue that Publish fills and a goroutine that empties it.
type watcher struct {
	run  string // only events of this run, where not empty
	wake chan struct{}

	mu     sync.Mutex // guards the two below
	queue  []Event
	behind bool // hopelessly: give up
}

// Subscribe tells of events from now on, of one run where run is not empty. The channel is closed when ctx ends, when
// the hub closes, or when the watcher is more than maxBehind events behind.
func (h *Hub) Subscribe(ctx context.Context, run string) <-chan Event {
	out := make(chan Event)
	w := &watcher{run: run, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		cancel()
		close(out)
		return out
	}
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	// The goroutine ends with ctx, which its caller owns, or with the hub.
	go func() {
		defer cancel()
		defer close(out)
		defer h.drop(w)
		w.pump(ctx, out)
	}()
	return out
}

// Publish gives an event to all watchers of its run.
func (h *Hub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.run == "" || w.run == e.RunID {
			w.put(e)
		}
	}
}

// Close ends all subscriptions after what is queued for them was read; later ones end at once.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		w.giveUp()
	}
}

func (h *Hub) drop(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (w *watcher) put(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.behind:
		return
	case e.Kind == EventProgress && w.replace(e):
		return
	case len(w.queue) >= maxBehind:
		w.behind = true
	default:
		w.queue = append(w.queue, e)
	}
	w.signal()
}

// replace puts the event in place of an unread one of the same run that nothing followed.
func (w *watcher) replace(e Event) bool {
	for i := len(w.queue) - 1; i >= 0; i-- {
		old := w.queue[i]
		if old.RunID != e.RunID || old.Kind == EventNotice {
			continue
		}
		if old.Kind != EventProgress {
			return false
		}
		w.queue[i] = e
		return true
	}
	return false
}

func (w *watcher) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind = true
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued and whether more may come.
func (w *watcher) take() (events []Event, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events, w.queue = w.queue, nil
	return events, !w.behind
}

func (w *watcher) pump(ctx context.Context, out chan<- Event) {
	for {
		events, more := w.take()
		for _, e := range events {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		if !more {
			return
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}
