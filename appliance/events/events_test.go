package events

import (
	"context"
	"testing"
)

type counter struct {
	topic string
	class Class
	n     int
}

func (c counter) Topic() string { return c.topic }
func (c counter) Class() Class  { return c.class }

func TestSlowWatcherLosesOldCountersOnly(t *testing.T) {
	var h Hub[counter]
	slow := h.Subscribe(t.Context(), "r")
	for n := range 100 {
		h.Publish(counter{"r", Newest, n})
	}
	h.Publish(counter{"r", Kept, 0})
	var got []counter
	for e := range slow {
		got = append(got, e)
		if e.class == Kept {
			break
		}
	}
	if len(got) > 3 || got[len(got)-2].n != 99 {
		t.Errorf("a slow watcher got %v", got)
	}
}

func TestHopelessWatcherIsGivenUp(t *testing.T) {
	var h Hub[counter]
	slow := h.Subscribe(t.Context(), "")
	for range 2*MaxBehind + 10 { // the watcher's goroutine holds up to MaxBehind besides the queue
		h.Publish(counter{"r", Aside, 0})
	}
	n := 0
	for range slow {
		n++
	}
	if n < MaxBehind || n >= 2*MaxBehind+10 {
		t.Errorf("a watcher that is behind got %d events before it was given up", n)
	}
}

func TestTopicsAndClose(t *testing.T) {
	var h Hub[counter]
	ctx, cancel := context.WithCancel(t.Context())
	other, all := h.Subscribe(ctx, "x"), h.Subscribe(t.Context(), "")
	h.Publish(counter{"r", Kept, 1})
	if e := <-all; e.n != 1 {
		t.Errorf("the watcher of all got %v", e)
	}
	cancel()
	for range other {
		t.Error("an event of another topic")
	}
	h.Close()
	if _, open := <-h.Subscribe(t.Context(), ""); open {
		t.Error("a closed hub takes subscriptions")
	}
	for range all {
		t.Error("an event after the end")
	}
}
