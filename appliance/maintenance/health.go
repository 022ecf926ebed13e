package maintenance

import (
	"fmt"
	"time"

	"coffer/dedup"
)

// State is the health of a store: DOMAIN's "Store" rule 2.
type State string

// States of a store, from the best to the gravest. Part of the API.
const (
	Green      State = "green"
	Yellow     State = "yellow"     // a check is overdue
	Red        State = "red"        // the damage list is not empty
	Unwritable State = "unwritable" // no space above the reserve, or the disk takes no writes
	Locked     State = "locked"     // not open
)

// Reason is one thing that keeps a store from being green.
type Reason struct {
	State         State // at least
	Message, Hint string
}

// Facts are what the state of an open store follows from.
type Facts struct {
	Damage   int   // places on the damage list
	Full     bool  // the reserve is reached
	ReadOnly bool  // its file system, or that of the spool, takes no writes
	Fault    error // a write to them failed
	Check    dedup.CheckState
	// Oldest is when the oldest saveset was committed; zero where there is none: then nothing can be overdue.
	Oldest  time.Time
	Overdue time.Duration // 0: never
	Now     time.Time
}

// Judge returns the state of an open store and all the reasons, the gravest first.
func Judge(f Facts) (State, []Reason) {
	var out []Reason
	if f.ReadOnly {
		out = append(out, Reason{Unwritable, "its file system takes no writes", "look for disk errors in the kernel's log, mend the file system, and mount it for writing"})
	}
	if f.Fault != nil && !f.ReadOnly {
		out = append(out, Reason{Unwritable, fmt.Sprintf("its disk refuses to write: %v", f.Fault), "look for disk errors in the kernel's log; the state changes within a minute when the disk writes again"})
	}
	if f.Full {
		out = append(out, Reason{Unwritable, "the disk is full up to the reserve", "make space on the disk or enlarge it, or delete savesets and run: coffer store gc"})
	}
	if f.Damage > 0 {
		out = append(out, Reason{Red, fmt.Sprintf("%d damaged places; backups go on and heal what they meet", f.Damage), "see: coffer store damage"})
	}
	if due := f.CheckDue(); !due.IsZero() && f.Now.After(due) {
		out = append(out, Reason{Yellow, overdue(f), "coffer store check does it now; the daily maintenance does a share of it"})
	}
	if len(out) == 0 {
		return Green, nil
	}
	return out[0].State, out
}

// CheckDue is when the check becomes overdue; zero when it never does.
func (f Facts) CheckDue() time.Time {
	if f.Overdue <= 0 || f.Oldest.IsZero() {
		return time.Time{}
	}
	objects, pages := f.checked()
	if pages.Before(objects) {
		return pages.Add(f.Overdue)
	}
	return objects.Add(f.Overdue)
}

// checked is when each half was through last. What no round has seen yet counts from the oldest saveset.
func (f Facts) checked() (objects, pages time.Time) {
	pages = f.Check.Pages
	if f.Check.Deep.After(pages) {
		pages = f.Check.Deep
	}
	return later(f.Check.Objects, f.Oldest), later(pages, f.Oldest)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func overdue(f Facts) string {
	last := f.CheckDue().Add(-f.Overdue)
	if last.Equal(f.Oldest) {
		return fmt.Sprintf("the store was never checked as a whole, and holds savesets since %s", last.Format(time.DateOnly))
	}
	return fmt.Sprintf("a check is overdue: the last whole one ended on %s", last.Format(time.DateOnly))
}
