package sms

import (
	"time"

	"coffer/dedup/recipe"
)

// Phase names what a run is doing.
type Phase string

// The phases of a run on the agent.
const (
	PhasePreparing Phase = "preparing" // pre command, opening
	PhaseWorking   Phase = "working"   // scanning and reading, or restoring
	PhaseFinishing Phase = "finishing" // flushing, directories' times, post command
)

// Counters tell how far a run is. All count from its start.
type Counters struct {
	Entries   uint64 `json:"entries"`    // entries of the tree seen or restored
	Unchanged uint64 `json:"unchanged"`  // of these, taken from the parent, or kept as they were
	Files     uint64 `json:"files"`      // files read, or written
	BytesRead uint64 `json:"bytes_read"` // read from the source (backup) or written to the target (restore), plain
	BytesNew  uint64 `json:"bytes_new"`  // plain bytes that the store lacked
	BytesSent uint64 `json:"bytes_sent"` // compressed bytes on the wire, frames only
	Warnings  uint64 `json:"warnings"`
	Noted     uint64 `json:"noted"` // files that changed while they were read

	// Time spent per stage, summed over all workers.
	Source   time.Duration `json:"source_ns"` // reading and lstat (backup), writing (restore)
	Hashing  time.Duration `json:"hashing_ns"`
	Compress time.Duration `json:"compress_ns"` // or decompressing
	Network  time.Duration `json:"network_ns"`  // waiting for answers, credits and frames
}

// Progress is sent every half second. The newest one replaces those not yet sent.
type Progress struct {
	Phase Phase `json:"phase"`
	Counters
	// Total is what is expected in the end where that is known (a restore): entries and bytes; else 0.
	TotalEntries uint64 `json:"total_entries,omitempty"`
	TotalBytes   uint64 `json:"total_bytes,omitempty"`
	// Current is the path worked on.
	Current Path `json:"current,omitempty"`
}

// Severity of a notice.
type Severity string

// The severities: a warning makes the run end "warning", an info does not.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
)

// Notice is something that the run's log shall have: an unreadable file, one that changed while it was read, an
// attribute that the target cannot take. Notices are delivered once each and in order, across lost connections, too.
type Notice struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"` // e.g. "unreadable", "changed_while_read", "xattr_not_set"
	Path     Path     `json:"path,omitempty"`
	Message  string   `json:"message"`
}

// Commit asks the appliance to make a saveset of what the run sent.
type Commit struct {
	Root recipe.Ref `json:"root"`
	Side recipe.Ref `json:"side"` // zero for a stream
	// SourceID names the identity of the source's file systems; a change makes the next run a FULL (source_changed).
	SourceID string `json:"source_id,omitempty"`
	// Started and Finished are by the client's clock: Started is what the next run compares ctimes with.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Counters Counters  `json:"counters"`
	// FullReason says that the agent had to read everything where a DIFF or INCR was ordered, and why: the saveset is a FULL.
	FullReason string `json:"full_reason,omitempty"`
}

// FullCBTInvalid is the FullReason of a machine whose changed-block tracking does not reach back to the reference.
const FullCBTInvalid = "cbt_invalid"

// CommitResult answers Commit when the saveset is durable.
type CommitResult struct {
	SavesetID string `json:"saveset_id"`
	// Warning says that the run ends "warning", not "success".
	Warning bool `json:"warning,omitempty"`
	// Stored is what the run added to the store in bytes.
	Stored uint64 `json:"stored"`
}

// Outcome says how a run ended on the agent, where no commit says it: a restore, or a run that failed.
type Outcome struct {
	// Code is empty for a restore that was done; else e.g. "source_missing", "command_failed", "cancelled".
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Counters Counters `json:"counters"`
	// Different counts what a verifying restore found to differ.
	Different uint64 `json:"different,omitempty"`
}
