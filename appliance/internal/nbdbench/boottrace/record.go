package boottrace

import (
	"context"
	"slices"
	"sync"
	"time"

	"coffer/nbd"
)

var (
	_ nbd.Device = (*Recorder)(nil)
	_ nbd.Writer = (*Recorder)(nil)
)

// Disk is what a machine can boot from.
type Disk interface {
	nbd.Device
	nbd.Writer
}

// Recorder is a disk that notes what is asked of it.
type Recorder struct {
	disk  Disk
	begun time.Time

	mu       sync.Mutex
	requests []Request // guarded by mu: those that have ended
}

// NewRecorder begins a recording of a disk.
func NewRecorder(d Disk) *Recorder { return &Recorder{disk: d, begun: time.Now()} }

// Trace is what was recorded so far: the requests that have ended.
func (r *Recorder) Trace() *Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &Trace{Size: r.disk.Size(), Requests: slices.Clone(r.requests)}
	t.sort()
	return t
}

// note records a request that the disk is about to serve.
func (r *Recorder) note(k Kind, off, n int64, serve func() error) error {
	q := Request{Kind: k, Off: off, Len: n, Begin: time.Since(r.begun).Truncate(time.Microsecond)}
	err := serve()
	q.End = time.Since(r.begun).Truncate(time.Microsecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
	return err
}

// Size implements nbd.Device.
func (r *Recorder) Size() int64 { return r.disk.Size() }

// ReadAt implements nbd.Device.
func (r *Recorder) ReadAt(ctx context.Context, p []byte, off int64) error {
	return r.note(Read, off, int64(len(p)), func() error { return r.disk.ReadAt(ctx, p, off) })
}

// WriteAt implements nbd.Writer.
func (r *Recorder) WriteAt(ctx context.Context, p []byte, off int64) error {
	return r.note(Write, off, int64(len(p)), func() error { return r.disk.WriteAt(ctx, p, off) })
}

// Zero implements nbd.Writer.
func (r *Recorder) Zero(ctx context.Context, off, n int64, mayPunch bool) error {
	return r.note(Zero, off, n, func() error { return r.disk.Zero(ctx, off, n, mayPunch) })
}

// Trim implements nbd.Writer.
func (r *Recorder) Trim(ctx context.Context, off, n int64) error {
	return r.note(Trim, off, n, func() error { return r.disk.Trim(ctx, off, n) })
}

// Flush implements nbd.Writer.
func (r *Recorder) Flush(ctx context.Context) error {
	return r.note(Flush, 0, 0, func() error { return r.disk.Flush(ctx) })
}
