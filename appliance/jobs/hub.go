package jobs

import (
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/events"
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

var _ events.Event = Event{}

// Topic implements events.Event: watchers may ask for one run.
func (e Event) Topic() string { return e.RunID }

// Class implements events.Event.
func (e Event) Class() events.Class {
	switch e.Kind {
	case EventProgress:
		return events.Newest
	case EventNotice:
		return events.Aside
	}
	return events.Kept
}
