// Package retention says which savesets may go, and why the others are kept: DOMAIN's "Retention", rules 5 and 8. It is
// rules and nothing else: it deletes nothing, and it has no clock; whoever asks gives it trusted time.
//
// In a store every saveset is whole, so that none has dependents. What a lock covers (rule 5) follows the chain all the
// same: a locked saveset keeps those that it needs.
package retention

import (
	"slices"
	"strings"
	"time"

	"coffer/appliance/catalog"
)

// Cause is why a saveset is kept. Part of the API.
type Cause string

// Causes.
const (
	EOL       Cause = "eol"       // its end of life has not come
	Locked    Cause = "locked"    // it is locked
	Needed    Cause = "needed"    // a locked saveset needs it
	Immutable Cause = "immutable" // until a time that has not come
	Exported  Cause = "exported"  // it is served as a block device, or an overlay lies on it
	Newest    Cause = "newest"    // it is the newest restorable one of a task that exists
)

// Reason is one cause with what it comes from.
type Reason struct {
	Cause Cause
	Until time.Time // EOL, Immutable: zero where there is no end
	By    string    // EOL: who or what set it; Needed: the locked saveset; Exported: the export
}

// Binding reports whether nobody may delete the saveset as long as the reason holds. The others bind the purge: a person
// who insists may.
func (r Reason) Binding() bool { return r.Cause != EOL && r.Cause != Newest }

// Facts are what the rules are judged on.
type Facts struct {
	// Savesets are all that are not deleted, of one store.
	Savesets []catalog.Saveset
	// TaskExists tells whether a task is still there.
	TaskExists func(task string) bool
	// Harmed tells whether damage keeps a saveset from being restored whole; nil: none.
	Harmed func(id string) bool
	// Exported returns the export that needs a saveset, or ""; nil: none does.
	Exported func(id string) string
	// Now is trusted time.
	Now time.Time
}

// Verdict is what the rules say of a saveset.
type Verdict struct {
	Saveset catalog.Saveset
	Kept    []Reason // why it may not go; none: it may
}

// Judge returns a verdict for each saveset, in the order in which they may go: by end of life, then by age.
func Judge(f Facts) []Verdict {
	needed, newest := f.neededByLocked(), f.newest()
	out := make([]Verdict, 0, len(f.Savesets))
	for _, s := range f.Savesets {
		out = append(out, Verdict{s, f.reasons(s, needed[s.ID], newest[s.ID])})
	}
	slices.SortFunc(out, func(a, b Verdict) int {
		if c := a.Saveset.EOL.Compare(b.Saveset.EOL); c != 0 {
			return c
		}
		return strings.Compare(a.Saveset.ID, b.Saveset.ID) // ids sort by time
	})
	return out
}

func (f Facts) reasons(s catalog.Saveset, neededBy string, newest bool) []Reason {
	var out []Reason
	if s.Locked {
		out = append(out, Reason{Cause: Locked})
	}
	if neededBy != "" {
		out = append(out, Reason{Cause: Needed, By: neededBy})
	}
	if f.Exported != nil {
		if by := f.Exported(s.ID); by != "" {
			out = append(out, Reason{Cause: Exported, By: by})
		}
	}
	if !f.Now.After(s.ImmutableUntil) {
		out = append(out, Reason{Cause: Immutable, Until: s.ImmutableUntil})
	}
	if s.EOL.IsZero() || !f.Now.After(s.EOL) {
		out = append(out, Reason{Cause: EOL, Until: s.EOL, By: s.EOLCause})
	}
	if newest {
		out = append(out, Reason{Cause: Newest})
	}
	return out
}

// neededByLocked returns, for each saveset that a locked one needs, the locked one.
func (f Facts) neededByLocked() map[string]string {
	byID := make(map[string]catalog.Saveset, len(f.Savesets))
	for _, s := range f.Savesets {
		byID[s.ID] = s
	}
	out := make(map[string]string)
	for _, s := range f.Savesets {
		if !s.Locked {
			continue
		}
		for need, ok := byID[s.Parent]; ok && out[need.ID] == ""; need, ok = byID[need.Parent] {
			out[need.ID] = s.ID
		}
	}
	return out
}

// newest returns the newest restorable saveset of each task that exists.
func (f Facts) newest() map[string]bool {
	best := make(map[string]catalog.Saveset)
	for _, s := range f.Savesets {
		if !f.TaskExists(s.Task) || f.Harmed != nil && f.Harmed(s.ID) {
			continue
		}
		if b, ok := best[s.Task]; !ok || b.ID < s.ID {
			best[s.Task] = s
		}
	}
	out := make(map[string]bool, len(best))
	for _, s := range best {
		out[s.ID] = true
	}
	return out
}
