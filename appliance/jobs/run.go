package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"coffer/appliance/catalog"
	"coffer/appliance/sms"
)

// Info is a run as it is now: its record and its counters.
type Info struct {
	catalog.Run
	Progress Progress
}

// Progress are the counters of a run: what the agent tells, and what the store adds. It is the JSON in the catalog's
// column `counters`; part of its format.
type Progress struct {
	sms.Progress
	Stored    uint64 `json:"stored"`              // bytes added to the store
	Logical   uint64 `json:"logical,omitempty"`   // size of the saveset that was made
	Different uint64 `json:"different,omitempty"` // verifying restores: entries that differ
}

// info decodes the counters of a recorded run. Counters that cannot be read are left out: they are no reason to hide a
// run.
func info(r catalog.Run) Info {
	i := Info{Run: r}
	_ = json.Unmarshal(r.Counters, &i.Progress)
	return i
}

const (
	noticeBatch = 256   // kept in memory before they are written
	maxNotices  = 10000 // of one run that are written; further ones are counted only
)

// run is a run that this process works on.
type run struct {
	m     *Manager
	id    string
	ctx   context.Context // ends when the run is cancelled; its cause is a cancelled
	stop  context.CancelCauseFunc
	done  chan struct{} // closed when the run has ended and its slot is free
	watch stopwatch

	mu      sync.Mutex // guards all below
	info    Info
	agent   AgentRun
	worker  string // the client whose agent works, once one does
	stored  func() uint64
	seq     int64
	warned  int64
	pending []catalog.Notice
	dropped bool // the catalog holds maxNotices of it
}

// cancelled is the cause of a cancelled run's context.
type cancelled struct{ reason string }

func (c cancelled) Error() string { return c.reason }

// cancelReason says why the run was cancelled, where it was.
func (r *run) cancelReason() (string, bool) {
	c, ok := errors.AsType[cancelled](context.Cause(r.ctx))
	return c.reason, ok
}

// snapshot returns the run as it is now.
func (r *run) snapshot() Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current()
}

// current completes the counters; r.mu is held.
func (r *run) current() Info {
	i := r.info
	if r.stored != nil {
		i.Progress.Stored = max(i.Progress.Stored, r.stored())
	}
	c := i.Progress.Counters
	i.Stages = catalog.Stages{Source: c.Source, Hashing: c.Hashing, Compress: c.Compress, Network: c.Network, Store: r.watch.total()}
	i.Warnings = max(r.warned, int64(c.Warnings))
	return i
}

// change edits the record, and returns it as it is then.
func (r *run) change(edit func(*Info)) Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit(&r.info)
	r.info = r.current()
	return r.info
}

// Opened, Interrupted, Progress and Notice are the part of ingest.Sink that backups and restores share.

// Opened implements ingest.Sink.
func (r *run) Opened(resumed bool) {
	if resumed {
		r.note(sms.SeverityInfo, "resumed", "the agent is back, the run goes on")
	}
}

// Interrupted implements ingest.Sink.
func (r *run) Interrupted(cause error, until time.Time) {
	text := "connection to the agent lost, waiting for it until " + until.UTC().Format(time.RFC3339)
	if cause != nil {
		text += ": " + cause.Error()
	}
	r.note(sms.SeverityInfo, "interrupted", text)
}

// Progress implements ingest.Sink.
func (r *run) Progress(p sms.Progress) {
	now := r.change(func(i *Info) {
		if p.TotalEntries == 0 && p.TotalBytes == 0 { // the agent does not know: what the saveset, or the parent, has
			p.TotalEntries, p.TotalBytes = i.Progress.TotalEntries, i.Progress.TotalBytes
		}
		i.Progress.Progress = p
	})
	r.flushNotices(1)
	r.m.publish(Event{Kind: EventProgress, RunID: r.id, Run: now})
}

// Notice implements ingest.Sink.
func (r *run) Notice(n sms.Notice) {
	r.mu.Lock()
	r.seq++
	kept := catalog.Notice{Seq: r.seq, Time: r.m.now(), Severity: string(n.Severity), Code: n.Code, Path: string(n.Path), Message: n.Message}
	if n.Severity == sms.SeverityWarning {
		r.warned++
	}
	switch {
	case r.seq < maxNotices:
		r.pending = append(r.pending, kept)
	case !r.dropped:
		r.dropped = true
		kept.Severity, kept.Code, kept.Path = string(sms.SeverityInfo), "notices_left_out", ""
		kept.Message = "there are more notices than are kept: further ones are counted only"
		r.pending = append(r.pending, kept)
	default:
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.m.publish(Event{Kind: EventNotice, RunID: r.id, Notice: kept})
	r.flushNotices(noticeBatch)
}

// note is a notice of the appliance's own.
func (r *run) note(severity sms.Severity, code, message string) {
	r.Notice(sms.Notice{Severity: severity, Code: code, Message: message})
}

// flushNotices writes the pending notices when there are at least n. What cannot be written stays pending.
func (r *run) flushNotices(n int) {
	r.mu.Lock()
	batch := r.pending
	r.mu.Unlock()
	if len(batch) == 0 || len(batch) < n {
		return
	}
	// Not the run's context: a cancelled run keeps its log.
	if err := r.m.opts.Catalog.AddNotices(r.m.ctx, r.id, batch); err != nil {
		r.m.log.Warn("notices not written yet", "run", r.id, "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Others may have written the same batch meanwhile: drop what is written by number, not by count.
	last := batch[len(batch)-1].Seq
	for len(r.pending) > 0 && r.pending[0].Seq <= last {
		r.pending = r.pending[1:]
	}
}

// pendingAfter returns notices that are not written yet.
func (r *run) pendingAfter(seq int64) []catalog.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []catalog.Notice
	for _, n := range r.pending {
		if n.Seq > seq {
			out = append(out, n)
		}
	}
	return out
}
