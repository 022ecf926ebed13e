// Package report owns what a run tells about itself while it works: counters, progress, notices about single files, and
// the code of its failure. Backup and restore share it; what is done with the reports is the appliance's.
package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"coffer/appliance/sms"
)

// Interval is how often progress is sent.
const Interval = 500 * time.Millisecond

// maxNotices is how many notices of a run are sent one by one; further ones are counted.
const maxNotices = 10_000

// Sink takes the reports; uplink.Run is one.
type Sink interface {
	Progress(p sms.Progress)
	Notice(n sms.Notice)
}

// Error is why a run failed.
type Error struct {
	Code string // for sms.Outcome
	Err  error
}

// Errorf makes an Error; %w keeps a cause.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeFailed is the code of an error that has none of its own.
const CodeFailed = "failed"

// CodeOf returns the code of the first Error in err's chain, or of an sms.Error, else CodeFailed.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	var wire *sms.Error
	if errors.As(err, &wire) {
		return string(wire.Code)
	}
	return CodeFailed
}

// Count are counters that many goroutines add to.
type Count struct {
	Entries, Unchanged, Files          atomic.Uint64
	BytesRead, BytesNew, BytesSent     atomic.Uint64
	Warnings, Noted, Different         atomic.Uint64
	Source, Hashing, Compress, Network atomic.Int64 // nanoseconds
	notices                            atomic.Uint64
}

// Reporter sends a run's reports. It is safe for concurrent use.
type Reporter struct {
	Count
	sink    Sink
	log     *slog.Logger
	phase   atomic.Value // sms.Phase
	current atomic.Pointer[string]
	entries atomic.Uint64 // expected, or 0
	bytes   atomic.Uint64
}

// New makes a Reporter for a run.
func New(sink Sink, log *slog.Logger) *Reporter {
	r := &Reporter{sink: sink, log: log}
	r.phase.Store(sms.PhaseWorking)
	return r
}

// Start sends progress until ctx ends or stop is called; stop sends it a last time.
func (r *Reporter) Start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(Interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.sink.Progress(r.progress())
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
		r.sink.Progress(r.progress())
	}
}

// Phase says what the run is doing now.
func (r *Reporter) Phase(p sms.Phase) { r.phase.Store(p) }

// Current says what path is worked on.
func (r *Reporter) Current(path string) { r.current.Store(&path) }

// Expect says how much there is to do.
func (r *Reporter) Expect(entries, bytes uint64) {
	r.entries.Store(entries)
	r.bytes.Store(bytes)
}

func (r *Reporter) progress() sms.Progress {
	p := sms.Progress{Phase: r.phase.Load().(sms.Phase), Counters: r.Counters(),
		TotalEntries: r.entries.Load(), TotalBytes: r.bytes.Load()}
	if cur := r.current.Load(); cur != nil {
		p.Current = sms.Path(*cur)
	}
	return p
}

// Counters returns what was counted so far.
func (r *Reporter) Counters() sms.Counters {
	return sms.Counters{
		Entries: r.Entries.Load(), Unchanged: r.Unchanged.Load(), Files: r.Files.Load(),
		BytesRead: r.BytesRead.Load(), BytesNew: r.BytesNew.Load(), BytesSent: r.BytesSent.Load(),
		Warnings: r.Warnings.Load(), Noted: r.Noted.Load(),
		Source: time.Duration(r.Source.Load()), Hashing: time.Duration(r.Hashing.Load()),
		Compress: time.Duration(r.Compress.Load()), Network: time.Duration(r.Network.Load()),
	}
}

// Warn reports something that makes the run end "warning".
func (r *Reporter) Warn(code, path string, err error) {
	r.Warnings.Add(1)
	r.notice(sms.SeverityWarning, code, path, err)
}

// Note reports something worth knowing that is no warning.
func (r *Reporter) Note(code, path string, err error) { r.notice(sms.SeverityInfo, code, path, err) }

func (r *Reporter) notice(sev sms.Severity, code, path string, err error) {
	switch n := r.notices.Add(1); {
	case n < maxNotices:
		r.sink.Notice(sms.Notice{Severity: sev, Code: code, Path: sms.Path(path), Message: err.Error()})
	case n == maxNotices:
		r.sink.Notice(sms.Notice{Severity: sev, Code: "more", Message: "further notices are counted, not shown"})
	}
	r.log.Debug("notice", "code", code, "path", path, "error", err)
}
