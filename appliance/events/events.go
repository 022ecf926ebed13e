// Package events hands what changes to those who watch: a Hub never waits for a watcher, a watcher that does not keep up
// loses old counters first, and is given up before it costs much memory. It does not know what the events are about.
package events

import (
	"context"
	"sync"
)

// Class says what becomes of an event that a watcher has not read yet.
type Class uint8

const (
	// Kept events reach every watcher: a change of state.
	Kept Class = iota
	// Newest events replace an unread Newest one of the same topic, unless a Kept one came after it: counters.
	Newest
	// Aside events reach every watcher and do not hinder the replacing of others: notices.
	Aside
)

// Event is what a hub carries.
type Event interface {
	// Topic names the object that the event is about.
	Topic() string
	Class() Class
}

// MaxBehind is how many events a watcher may leave unread before it is given up.
const MaxBehind = 4096

// Hub hands events to watchers. Publish never waits. The zero value works; all methods may be called concurrently.
type Hub[E Event] struct {
	mu       sync.Mutex // guards the two below
	watchers map[*watcher[E]]struct{}
	closed   bool
}

// watcher is one subscription: a queue that Publish fills and a goroutine that empties it.
type watcher[E Event] struct {
	topic string // only events of this topic, where not empty
	wake  chan struct{}

	mu     sync.Mutex // guards the two below
	queue  []E
	behind bool // hopelessly: give up
}

// Subscribe tells of events from now on, of one topic where topic is not empty. The channel is closed when ctx ends, when
// the hub closes, or when the watcher is more than MaxBehind events behind.
func (h *Hub[E]) Subscribe(ctx context.Context, topic string) <-chan E {
	out := make(chan E)
	w := &watcher[E]{topic: topic, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		cancel()
		close(out)
		return out
	}
	if h.watchers == nil {
		h.watchers = map[*watcher[E]]struct{}{}
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

// Publish gives an event to all watchers of its topic.
func (h *Hub[E]) Publish(e E) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if w.topic == "" || w.topic == e.Topic() {
			w.put(e)
		}
	}
}

// Close ends all subscriptions after what is queued for them was read; later ones end at once.
func (h *Hub[E]) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		w.giveUp()
	}
}

func (h *Hub[E]) drop(w *watcher[E]) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

func (w *watcher[E]) put(e E) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.behind:
		return
	case e.Class() == Newest && w.replace(e):
		return
	case len(w.queue) >= MaxBehind:
		w.behind = true
	default:
		w.queue = append(w.queue, e)
	}
	w.signal()
}

// replace puts the event in place of an unread one of the same topic that no Kept one followed.
func (w *watcher[E]) replace(e E) bool {
	for i := len(w.queue) - 1; i >= 0; i-- {
		old := w.queue[i]
		if old.Topic() != e.Topic() || old.Class() == Aside {
			continue
		}
		if old.Class() != Newest {
			return false
		}
		w.queue[i] = e
		return true
	}
	return false
}

func (w *watcher[E]) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind = true
	w.signal()
}

func (w *watcher[E]) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued and whether more may come.
func (w *watcher[E]) take() (events []E, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events, w.queue = w.queue, nil
	return events, !w.behind
}

func (w *watcher[E]) pump(ctx context.Context, out chan<- E) {
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
