package exports

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"

	"coffer/dedup/vfs"
	"coffer/nbd"
	"coffer/nbd/overlay"
	"coffer/nbd/relay"
	"coffer/nbd/savesetdev"
)

// export is one export in memory.
type export struct {
	m             *Manager
	rec           record // constant
	read, written atomic.Int64
	turns         relay.Turns // of the connections of the machine's relay

	mu         sync.Mutex // guards all below; never taken under the Manager's
	view       Reading    // the lease; nil while the store is not open
	dev        *savesetdev.Device
	overlay    *overlay.Overlay // nil without one, and where it is broken
	broken     error
	conns      map[string]*peerConns // by peer
	committing bool
	ended      bool
}

// peerConns are the connections of one peer.
type peerConns struct {
	client   string // whose certificate it showed; may be empty
	n        int
	recorded bool // its access is in the audit log
	cut      atomic.Bool
}

func newExport(m *Manager, r record) *export {
	return &export{m: m, rec: r, conns: map[string]*peerConns{}}
}

func (e *export) dir() string { return filepath.Join(e.m.o.Dir, e.rec.ID) }

func (e *export) overlayOptions() overlay.Options {
	return overlay.Options{Limit: e.rec.Limit, Reserve: e.m.o.Reserve, BootID: e.m.o.BootID}
}

// write makes the folder of a new export, the record last.
func (e *export) write(ctx context.Context) (err error) {
	fsys := e.m.o.FS
	if err := vfs.MkdirAllSync(fsys, e.dir()); err != nil {
		return err
	}
	if e.rec.Overlay {
		if e.overlay, err = overlay.Create(ctx, fsys, e.dir(), base{e}, e.overlayOptions()); err != nil {
			return err
		}
	}
	b, err := e.rec.encode()
	if err != nil {
		return err
	}
	return vfs.WriteFileSync(fsys, filepath.Join(e.dir(), recordName), b)
}

// openOverlay opens the overlay of an export that was found. It needs no store: the base is read when somebody reads.
func (e *export) openOverlay(ctx context.Context) {
	if !e.rec.Overlay {
		return
	}
	o, err := overlay.Open(ctx, e.m.o.FS, e.dir(), base{e}, e.overlayOptions())
	if err != nil {
		e.broken = failf(Broken, err, "the overlay of export %s cannot be opened", e.rec.ID)
		return
	}
	e.overlay = o
	if o.Unclean() {
		e.m.log.Warn("the machine lost power while an export was written: what was not flushed may be lost", "export", e.rec.ID)
	}
}

// attach leases the saveset.
func (e *export) attach(ctx context.Context, s Store) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.view != nil || e.ended || e.rec.Saveset.IsZero() {
		return
	}
	view, err := s.View(ctx, e.rec.Saveset)
	if err == nil {
		e.view = view
		return
	}
	err = viewError(e.rec.Saveset, err)
	if KindOf(err) == NotFound && e.broken == nil {
		e.broken = failf(Broken, nil, "saveset %s is gone", e.rec.Saveset)
	}
	e.m.log.Error("the saveset of an export is not leased", "export", e.rec.ID, "saveset", e.rec.Saveset, "error", err)
}

func (e *export) detach() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.release()
}

// release gives the lease back. mu is held.
func (e *export) release() {
	if e.view == nil {
		return
	}
	if err := e.view.Close(); err != nil {
		e.m.log.Warn("the saveset of an export is not closed cleanly", "export", e.rec.ID, "error", err)
	}
	e.view, e.dev = nil, nil
}

// idle refuses where somebody uses the export.
func (e *export) idle(what string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.unused(what)
}

// unused is idle with mu held.
func (e *export) unused(what string) error {
	switch {
	case e.committing:
		return failf(InUse, nil, "export %s is being committed", e.rec.ID)
	case len(e.conns) > 0:
		return failf(InUse, nil, "export %s has open connections (%d): %s needs it to have none", e.rec.ID, e.connections(), what)
	}
	return nil
}

func (e *export) connections() (n int) {
	for _, c := range e.conns {
		n += c.n
	}
	return n
}

// end ends the export: nobody uses it any more.
func (e *export) end(force bool) error {
	e.mu.Lock()
	if err := e.unused("to drop it"); err != nil && (e.committing || !force) {
		e.mu.Unlock()
		return err
	}
	e.ended = true // what connections there are find it so
	e.mu.Unlock()
	if err := e.close(); err != nil { // what was written is to be removed
		e.m.log.Debug("a dropped export is not closed cleanly", "export", e.rec.ID, "error", err)
	}
	return nil
}

// close closes the overlay and gives the lease back.
func (e *export) close() error {
	e.mu.Lock()
	o := e.overlay
	e.ended, e.overlay = true, nil
	e.mu.Unlock()
	var err error
	if o != nil {
		err = o.Close() // waits for those who write, who may need the base
	}
	e.detach()
	return err
}

// state tells whether the export can be served. mu is held.
func (e *export) state() (State, error) {
	switch {
	case e.broken != nil:
		return IsBroken, e.broken
	case e.committing:
		return BeingCommitted, failf(InUse, nil, "export %s is being committed", e.rec.ID)
	case e.view == nil:
		return StoreLocked, failf(Locked, nil, "the store is not open")
	}
	if _, err := e.view.Key(); err != nil {
		return KeyNeeded, failf(Sealed, err, "saveset %s is of an encrypted task", e.rec.Saveset)
	}
	return Ready, nil
}

func (e *export) info() Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := &e.rec
	i := Info{ID: r.ID, Name: r.wireName(), Saveset: r.Saveset, Client: r.Client, Task: r.Task, Disk: r.Disk, Size: r.Size, Overlay: r.Overlay,
		Allow: r.Allow, Purpose: r.Purpose, By: r.By, Machine: r.Machine, Created: r.Created, Connections: e.connections(), BytesRead: e.read.Load(),
		BytesWritten: e.written.Load()}
	if e.overlay != nil {
		i.Usage, i.Unclean = e.overlay.Usage(), e.overlay.Unclean()
	}
	var why error
	if i.State, why = e.state(); why != nil {
		i.Problem = why.Error()
	}
	return i
}

// device opens the disk in the saveset. It is open for as long as the lease is held.
func (e *export) device(ctx context.Context) (*savesetdev.Device, error) {
	e.mu.Lock()
	view, dev := e.view, e.dev
	e.mu.Unlock()
	if dev != nil {
		return dev, nil
	}
	if view == nil {
		return nil, failf(Locked, nil, "the store is not open")
	}
	dev, err := savesetdev.Open(ctx, view, view.Manifest().Root.Digest, e.rec.Disk)
	if err != nil {
		return nil, diskError(e.rec.Saveset, err)
	}
	if dev.Size() != e.rec.Size {
		return nil, failf(Broken, nil, "disk %s has %d bytes, the export %s was made for %d", e.rec.Disk, dev.Size(), e.rec.ID, e.rec.Size)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.view != view {
		return nil, failf(Locked, nil, "the store was closed")
	}
	e.dev = dev
	return dev, nil
}

// base is the disk in the saveset, opened when it is read.
type base struct{ e *export }

var (
	_ nbd.Device = base{}
	_ nbd.Mapper = base{}
	_ nbd.Lender = base{}
)

func (b base) Size() int64 { return b.e.rec.Size }

func (b base) ReadAt(ctx context.Context, p []byte, off int64) error {
	d, err := b.e.device(ctx)
	if err != nil {
		return err
	}
	return d.ReadAt(ctx, p, off)
}

func (b base) Lend(ctx context.Context, off, n int64) ([]byte, error) {
	d, err := b.e.device(ctx)
	if err != nil {
		return nil, err
	}
	return d.Lend(ctx, off, n)
}

func (b base) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	d, err := b.e.device(ctx)
	if err != nil {
		return err
	}
	return d.Extents(ctx, off, n, yield)
}

// gone is what a device answers after the end of its export.
func (e *export) gone() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return errors.Join(failf(NotFound, nil, "export %s was dropped", e.rec.ID), nbd.ESHUTDOWN)
	}
	return nil
}
