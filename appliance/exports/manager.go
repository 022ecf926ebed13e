package exports

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"coffer/dedup"
	"coffer/dedup/seal"
	"coffer/dedup/vfs"
	"coffer/nbd/overlay"
	"coffer/nbd/savesetdev"
)

// DefaultReserve is the free space that overlays leave alone: more than the store's own, so that a guest that writes stops
// before backups do.
const DefaultReserve = 512 << 20

// Reading is an open saveset, under a lease until Close.
type Reading interface {
	dedup.FileSource
	Manifest() dedup.Manifest
	// Key returns the key of the saveset's encrypted task: nil where it needs none, an error where it is not here.
	Key() (*seal.Key, error)
	Close() error
}

// Store opens savesets.
type Store interface {
	// View leases a saveset. dedup.NotFound for one that is not there.
	View(ctx context.Context, id dedup.SavesetID) (Reading, error)
}

// Access is a use of an export that the audit log should know.
type Access struct {
	Export, Saveset, Disk string
	Peer                  string // who: a client, an address
	Write                 bool   // the export takes writes
}

// Options of a Manager. Dir and BootID are needed.
type Options struct {
	FS      vfs.FS // nil: the system's
	Dir     string // made when missing
	BootID  overlay.BootID
	Reserve int64 // of the file system of Dir; 0: DefaultReserve
	// ClientOf returns the client that a certificate, whose chain has been verified, belongs to. nil: certificates count for
	// nothing.
	ClientOf func(ctx context.Context, cert *x509.Certificate) (string, error)
	// Accessed is told of the first read or write of a peer, and again when it comes back after its last connection.
	Accessed func(Access)
	Logger   *slog.Logger
	Now      func() time.Time
}

// Spec is an export to make.
type Spec struct {
	Saveset dedup.SavesetID
	Disk    string // path in the saveset; empty: its only disk image
	Overlay bool   // take writes
	Limit   int64  // of the overlay, in bytes; 0: the disk's size
	Allow   []string
	Purpose string
	By      string
	// Machine is the id of the machine whose disk it is; empty: of none. It is refused for good after a loss of power that
	// cost what was not flushed, until Settle: a guest that runs must not see a disk that forgot what was written to it.
	Machine string
}

// Info is an export as it is now.
type Info struct {
	ID, Name                string // Name: on the wire
	Saveset                 dedup.SavesetID
	Client, Task, Disk      string
	Size                    int64
	Overlay                 bool
	Usage                   overlay.Usage // of the overlay
	Allow                   []string
	Purpose, By, Machine    string
	Created                 time.Time
	State                   State
	Problem                 string // why it is not ready
	Connections             int
	BytesRead, BytesWritten int64
	// Unclean: the machine lost power while the overlay was written; what was not flushed may be lost.
	Unclean bool
}

// State of an export. Part of the API.
type State string

// States.
const (
	Ready          State = "ready"
	StoreLocked    State = "locked"
	KeyNeeded      State = "sealed"
	BeingCommitted State = "committing"
	IsBroken       State = "broken"
)

// Manager keeps the exports. It is safe for concurrent use.
type Manager struct {
	o   Options
	log *slog.Logger

	mu      sync.Mutex // guards all below; never held over I/O
	store   Store      // nil: not open
	exports map[string]*export
}

// New returns a Manager without exports: Load finds them.
func New(o Options) *Manager {
	o.FS = cmp.Or(o.FS, vfs.OS())
	o.Reserve = cmp.Or(o.Reserve, DefaultReserve)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Accessed == nil {
		o.Accessed = func(Access) {}
	}
	return &Manager{o: o, log: o.Logger, exports: map[string]*export{}}
}

// Load finds the exports and opens their overlays. What is wrong with one of them is its own affair: see Info.Problem.
func (m *Manager) Load(ctx context.Context) error {
	if err := vfs.MkdirAllSync(m.o.FS, m.o.Dir); err != nil {
		return failf(Other, err, "find the exports")
	}
	names, err := m.o.FS.List(m.o.Dir)
	if err != nil {
		return failf(Other, err, "find the exports")
	}
	for _, name := range names {
		if !validID(name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m.load(ctx, name)
	}
	return nil
}

func (m *Manager) load(ctx context.Context, id string) {
	dir := filepath.Join(m.o.Dir, id)
	r, err := readRecord(m.o.FS, filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		if err := removeExport(m.o.FS, dir); err != nil {
			m.log.Warn("what is left of an export is not removed", "dir", dir, "error", err)
		}
		return
	}
	if err == nil && r.ID != id {
		err = errors.New("it is another one's")
	}
	e := newExport(m, r)
	e.rec.ID = id
	if err != nil {
		e.broken = failf(Broken, err, "%s of export %s cannot be read", recordName, id)
	} else {
		e.openOverlay(ctx)
	}
	if e.broken != nil {
		m.log.Error("export is broken", "export", id, "error", e.broken)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.exports[id] = e
}

// Attach leases the savesets of all exports in a store that was opened. Until it has returned nobody may delete savesets.
func (m *Manager) Attach(ctx context.Context, s Store) {
	m.mu.Lock()
	m.store = s
	m.mu.Unlock()
	for _, e := range m.all() {
		e.attach(ctx, s)
	}
}

// Detach gives all leases back, because the store is to be closed. Kind InUse, and nothing is done, while there are
// connections or a commit.
func (m *Manager) Detach() error {
	all := m.all()
	for _, e := range all {
		if err := e.idle("it"); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.store = nil
	m.mu.Unlock()
	for _, e := range all {
		e.detach()
	}
	return nil
}

// Close closes all overlays and gives all leases back. The nbd.Server has ended before.
func (m *Manager) Close() error {
	var errs []error
	for _, e := range m.all() {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

// all returns the exports in the order of their making.
func (m *Manager) all() []*export {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*export, 0, len(m.exports))
	for _, e := range m.exports {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *export) int {
		return cmp.Or(a.rec.Created.Compare(b.rec.Created), cmp.Compare(a.rec.ID, b.rec.ID))
	})
	return out
}

// List tells of all exports, the oldest first.
func (m *Manager) List() []Info {
	all := m.all()
	out := make([]Info, len(all))
	for i, e := range all {
		out[i] = e.info()
	}
	return out
}

// Get tells of one export. Kind NotFound.
func (m *Manager) Get(id string) (Info, error) {
	e, err := m.find(id)
	if err != nil {
		return Info{}, err
	}
	return e.info(), nil
}

func (m *Manager) find(id string) (*export, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.exports[id]; e != nil {
		return e, nil
	}
	return nil, failf(NotFound, nil, "there is no export %q", id)
}

// Using returns the ids of the exports that need a saveset.
func (m *Manager) Using(id dedup.SavesetID) (ids []string) {
	for _, e := range m.all() {
		if e.rec.Saveset == id {
			ids = append(ids, e.rec.ID)
		}
	}
	return ids
}

// Create makes an export, durably. Kinds Locked, Sealed, NotFound (saveset, disk), Invalid, Full.
func (m *Manager) Create(ctx context.Context, s Spec) (Info, error) {
	m.mu.Lock()
	store := m.store
	m.mu.Unlock()
	if store == nil {
		return Info{}, failf(Locked, nil, "the store is not open")
	}
	view, err := store.View(ctx, s.Saveset)
	if err != nil {
		return Info{}, viewError(s.Saveset, err)
	}
	e, err := m.make(ctx, s, view)
	if err != nil {
		return Info{}, errors.Join(err, view.Close())
	}
	if err := m.enter(e, store); err != nil {
		return Info{}, errors.Join(err, e.close(), removeExport(m.o.FS, e.dir()))
	}
	m.log.Info("export made", "export", e.rec.ID, "saveset", s.Saveset, "disk", e.rec.Disk, "overlay", s.Overlay, "allow", s.Allow)
	return e.info(), nil
}

// enter makes an export known, unless the store it was made from has been closed meanwhile.
func (m *Manager) enter(e *export, store Store) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.store != store {
		return failf(Locked, nil, "the store was closed")
	}
	m.exports[e.rec.ID] = e
	return nil
}

// make makes an export's folder.
func (m *Manager) make(ctx context.Context, s Spec, view Reading) (*export, error) {
	r, err := m.record(ctx, s, view)
	if err != nil {
		return nil, err
	}
	e := newExport(m, r)
	e.view = view
	if _, err := e.device(ctx); err != nil {
		return nil, err
	}
	if err := e.write(ctx); err != nil {
		if e.overlay != nil {
			err = errors.Join(err, e.overlay.Close())
		}
		kind := Other
		if vfs.IsNoSpace(err) {
			kind = Full
		}
		return nil, errors.Join(failf(kind, err, "make export %s", r.ID), removeExport(m.o.FS, e.dir()))
	}
	return e, nil
}

// record fills in what the request leaves open and checks it.
func (m *Manager) record(ctx context.Context, s Spec, view Reading) (record, error) {
	mf := view.Manifest()
	r := record{Version: recordVersion, ID: newID(), Saveset: s.Saveset, Client: mf.Client, Task: mf.Task, Overlay: s.Overlay, Limit: s.Limit,
		Purpose: s.Purpose, Machine: s.Machine, Created: m.o.Now().UTC().Round(0), By: s.By}
	r.Allow = slices.Compact(slices.Sorted(slices.Values(s.Allow)))
	if _, err := view.Key(); err != nil {
		return r, failf(Sealed, err, "saveset %s is of an encrypted task", s.Saveset)
	}
	if s.Limit != 0 && !s.Overlay {
		return r, failf(Invalid, nil, "an export without an overlay has no limit")
	}
	var err error
	if r.Disk, err = diskOf(ctx, s, view); err != nil {
		return r, err
	}
	entry, err := savesetdev.Find(ctx, view, mf.Root.Digest, r.Disk)
	if err != nil {
		return r, diskError(s.Saveset, err)
	}
	r.Size = int64(entry.Size)
	if s.Overlay && r.Size > overlay.MaxSize {
		return r, failf(Invalid, nil, "disk %s has %d bytes: an overlay has room for %d", r.Disk, r.Size, int64(overlay.MaxSize))
	}
	if err := r.check(); err != nil {
		return r, failf(Invalid, err, "this export cannot be made")
	}
	return r, nil
}

// diskOf returns the disk that a request means.
func diskOf(ctx context.Context, s Spec, view Reading) (string, error) {
	if s.Disk != "" {
		disk, err := savesetdev.Clean(s.Disk)
		if err != nil {
			err = diskError(s.Saveset, err)
		}
		return disk, err
	}
	const few = 20
	names, err := savesetdev.Disks(ctx, view, view.Manifest().Root.Digest, few)
	switch {
	case err != nil:
		return "", failf(Other, err, "look for the disks of saveset %s", s.Saveset)
	case len(names) == 1:
		return names[0], nil
	case len(names) == 0:
		return "", failf(Invalid, nil, "saveset %s has no disk image in its root directory: name one by its path in the saveset", s.Saveset)
	}
	return "", failf(Invalid, nil, "saveset %s has more than one disk: name one of %q", s.Saveset, names)
}

func diskError(id dedup.SavesetID, err error) error {
	switch savesetdev.KindOf(err) {
	case savesetdev.NotFound:
		return failf(NotFound, err, "saveset %s has no such disk, as a path from its root", id)
	case savesetdev.NoDisk:
		return failf(Invalid, err, "this is nothing to export, in saveset %s: a regular file with content is", id)
	}
	return failf(Other, err, "open a disk of saveset %s", id)
}

func viewError(id dedup.SavesetID, err error) error {
	if dedup.KindOf(err) == dedup.NotFound {
		return failf(NotFound, nil, "there is no saveset %s", id)
	}
	return failf(Other, err, "open saveset %s", id)
}

func newID() string {
	var b [idDigits / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Drop removes an export, and what was written to its overlay. Kinds NotFound; InUse while connections are open, unless
// force, which cuts them off from the disk.
func (m *Manager) Drop(_ context.Context, id string, force bool) error {
	e, err := m.find(id)
	if err != nil {
		return err
	}
	if err := e.end(force); err != nil {
		return err
	}
	if err := removeExport(m.o.FS, e.dir()); err != nil {
		err = failf(Other, err, "remove export %s", id)
		e.mu.Lock()
		e.broken = err // it can be tried again
		e.mu.Unlock()
		return err
	}
	m.mu.Lock()
	delete(m.exports, id)
	m.mu.Unlock()
	m.log.Info("export dropped", "export", id)
	return nil
}

// Settle takes notice, for good, that an overlay may have lost what was not flushed. Kind NotFound.
func (m *Manager) Settle(ctx context.Context, id string) error {
	e, err := m.find(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	o := e.overlay
	e.mu.Unlock()
	if o == nil {
		return nil
	}
	return o.Settle(ctx)
}

// removeExport removes an export's folder, its record first: what a loss of power leaves of it is no export.
func removeExport(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fsys.SyncDir(filepath.Dir(dir)) // the last try may have failed there
	}
	if err != nil {
		return err
	}
	if slices.Contains(names, recordName) {
		if err := errors.Join(fsys.Remove(filepath.Join(dir, recordName)), fsys.SyncDir(dir)); err != nil {
			return err
		}
	}
	for _, n := range names {
		if n == recordName {
			continue
		}
		if err := fsys.Remove(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	if err := fsys.Remove(dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}
