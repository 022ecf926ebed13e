package overlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"coffer/dedup/vfs"
	"coffer/nbd"
)

// commitBlocks is how many new blocks of data are written before the overlay flushes by itself, in the background. Writers wait
// for that flush when they are aheadFactor times as many ahead: what a start after a loss of power has to read, at most about.
const (
	commitBlocks = 65536
	aheadFactor  = 4
)

// Options of an overlay. BootID is needed.
type Options struct {
	// Limit is how many bytes of data the overlay may hold. 0: as many as the disk has.
	Limit int64
	// Reserve is the free space of the file system, in bytes, that new blocks leave alone: for the map, and for others.
	Reserve int64
	// BootID is that of the running kernel: another one than last time means that unflushed writes may be lost.
	BootID BootID
}

// Usage says what an overlay takes.
type Usage struct {
	Size      int64 // of the disk
	DataBytes int64 // of blocks that differ from the base and are not zeros
	ZeroBytes int64 // of blocks that were zeroed or trimmed
	MapBytes  int64 // length of the map
	Limit     int64 // of DataBytes
}

// Overlay is a disk over another. Methods may be called from many goroutines.
type Overlay struct {
	fs   vfs.FS
	dir  string
	base nbd.Device
	size int64
	o    Options
	data vfs.File
	// slack is by how many bytes a map is longer than twice what is needed before it is made anew.
	slack int64
	every int64 // commitBlocks

	stripes stripeLocks
	acked   atomic.Int64 // changes that were acknowledged

	flushing sync.Mutex  // held while flushing, which is the only time that the log's file is replaced
	flushed  int64       // acked, as the last good flush found it; guarded by flushing
	behind   atomic.Bool // a flush in the background is under way

	logging  sync.Mutex // guards what follows, up to viewing; nobody takes a stripe under it
	log      *mapLog
	session  bool // the map says that the overlay is open
	unclean  bool
	inFlight int64 // blocks that are being written and are not in the log
	credit   int64 // bytes that may be written before the free space is asked for again
	fresh    int64 // blocks that went to data since the last commit
	closing  bool  // nothing changes any more
	closed   bool
	failure  error

	viewing sync.RWMutex // guards states; taken last
	states  *states
}

var (
	_ nbd.Device     = (*Overlay)(nil)
	_ nbd.Writer     = (*Overlay)(nil)
	_ nbd.Mapper     = (*Overlay)(nil)
	_ nbd.BlockSizer = (*Overlay)(nil)
)

func (o Options) check(dir string, size int64) error {
	var why string
	switch {
	case o.BootID.IsZero():
		why = "no boot id"
	case o.Limit < 0 || o.Reserve < 0:
		why = "negative limit or reserve"
	case size <= 0 || size > MaxSize:
		why = fmt.Sprintf("a disk of %d bytes", size)
	default:
		return nil
	}
	return &Error{Kind: Invalid, Op: "open overlay", Object: dir, Err: errors.New(why)}
}

// Create makes an overlay in a directory, which may exist but has no overlay in it. When it returns, it is durable; what a
// failure leaves behind is the caller's to remove.
func Create(ctx context.Context, fsys vfs.FS, dir string, base nbd.Device, opts Options) (*Overlay, error) {
	size := base.Size()
	if err := opts.check(dir, size); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := fsys.Stat(filepath.Join(dir, mapName)); err == nil {
		return nil, &Error{Kind: Invalid, Op: "create overlay", Object: dir, Err: fs.ErrExist}
	}
	o := &Overlay{fs: fsys, dir: dir, base: base, size: size, o: opts, slack: compactSlack, every: commitBlocks, states: newStates(blocksOf(size))}
	if err := o.create(); err != nil {
		if o.data != nil {
			_ = o.data.Close()
		}
		return nil, &Error{Op: "create overlay", Object: dir, Err: err}
	}
	return o, nil
}

func (o *Overlay) create() (err error) {
	if err := vfs.MkdirAllSync(o.fs, o.dir); err != nil {
		return err
	}
	if o.data, err = o.fs.Create(filepath.Join(o.dir, dataName)); err != nil {
		return err
	}
	if err := errors.Join(o.data.Truncate(o.size), o.data.Sync()); err != nil {
		return err
	}
	l, _, err := writeMap(o.fs, o.dir, contents{header: newHeader(o.size), states: o.states})
	if err != nil {
		if l != nil {
			_ = l.file.Close()
		}
		return err
	}
	o.log = l
	return nil
}

// newHeader is that of a new map: its records cannot be taken for those of another one.
func newHeader(size int64) header {
	h := header{size: size}
	_, _ = rand.Read(h.salt[:]) // never fails (crypto/rand)
	return h
}

// Open opens an overlay over the disk that it was made for. Kinds Damaged, NewerFormat, Mismatch (the base has another size);
// an error changes nothing.
func Open(ctx context.Context, fsys vfs.FS, dir string, base nbd.Device, opts Options) (*Overlay, error) {
	if err := opts.check(dir, base.Size()); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := &Overlay{fs: fsys, dir: dir, base: base, size: base.Size(), o: opts, slack: compactSlack, every: commitBlocks}
	if err := o.open(); err != nil {
		if o.data != nil {
			_ = o.data.Close()
		}
		if o.log != nil {
			_ = o.log.file.Close()
		}
		return nil, openError(dir, err)
	}
	return o, nil
}

func openError(dir string, err error) error {
	e := &Error{Op: "open overlay", Object: dir, Err: err}
	switch {
	case errors.Is(err, errNewer):
		e.Kind = NewerFormat
	case errors.Is(err, errHeader), errors.Is(err, errForeign), errors.Is(err, errMissing):
		e.Kind = Damaged
	case errors.Is(err, errOtherSize):
		e.Kind = Mismatch
	}
	return e
}

var errOtherSize = errors.New("the disk below it has another size")

func (o *Overlay) open() error {
	file, p, err := readMap(o.fs, o.dir)
	if err != nil {
		return err
	}
	o.log = &mapLog{file: file, header: p.header, end: p.end, seq: p.seq, committed: p.committed, compact: p.end}
	if p.header.size != o.size {
		return errOtherSize
	}
	if o.data, err = o.fs.OpenReadWrite(filepath.Join(o.dir, dataName)); err != nil {
		return err
	}
	if n, err := o.data.Size(); err != nil {
		return err
	} else if n != o.size {
		return fmt.Errorf("the data file has %d bytes instead of %d: %w", n, o.size, errMissing)
	}
	return o.resume(p)
}

// resume goes on where the last one ended. Where there is anything behind the last commit, or nobody closed the overlay, all
// that is known is made durable in a new map: what does not count now must not count later.
func (o *Overlay) resume(p *replayed) error {
	lost := p.lostPower(o.o.BootID)
	o.unclean = p.unclean || lost
	clean := !p.open && len(p.pending) == 0 && !p.torn
	if lost {
		if err := p.verify(o.dataBlock); err != nil {
			return err
		}
	} else {
		p.commit(p.seq)
	}
	o.states = p.states
	o.session = p.open && !lost
	if clean {
		o.log.durable = p.seq // closed, and that was synced
		return nil
	}
	if err := o.data.Sync(); err != nil {
		return err
	}
	_, err := o.rewrite()
	return err
}

// dataBlock reads a block of the data file.
func (o *Overlay) dataBlock(i int64) ([]byte, error) {
	b := make([]byte, o.blockLength(i))
	_, err := o.data.ReadAt(b, i*blockSize)
	return b, err
}

// blockLength is the length of a block: the last one of a disk may be short.
func (o *Overlay) blockLength(i int64) int64 { return min(blockSize, o.size-i*blockSize) }

// rewrite puts a new map in the place of the old one; all that the states say must be synced. placed: see writeMap. logging
// is held, or nobody else is about.
func (o *Overlay) rewrite() (placed bool, err error) {
	c := contents{header: newHeader(o.size), states: o.states, unclean: o.unclean}
	if o.session {
		c.boot = o.o.BootID
	}
	l, placed, err := writeMap(o.fs, o.dir, c)
	if l != nil {
		_ = o.log.file.Close() // of no use any more
		o.log = l
	}
	return placed, err
}

// Unclean tells that the overlay was written, not closed, and that the machine lost power since (or a sync failed): what was
// acknowledged and not flushed may be lost. It stays true, over restarts too, until Settle.
func (o *Overlay) Unclean() bool {
	o.logging.Lock()
	defer o.logging.Unlock()
	return o.unclean
}

// Settle takes notice of Unclean, durably.
func (o *Overlay) Settle(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.logging.Lock()
	defer o.logging.Unlock()
	if err := o.usable("settle"); err != nil || !o.unclean {
		return err
	}
	if err := o.log.add(record{kind: kindSettled}); err != nil {
		return &Error{Op: "settle overlay", Object: o.dir, Err: err}
	}
	if err := o.log.file.Sync(); err != nil {
		return o.fail("settle overlay", err)
	}
	o.unclean = false
	return nil
}

// Usage tells what the overlay takes now.
func (o *Overlay) Usage() Usage {
	o.logging.Lock()
	defer o.logging.Unlock()
	o.viewing.RLock()
	defer o.viewing.RUnlock()
	return Usage{Size: o.size, DataBytes: min(o.size, o.states.data*blockSize), ZeroBytes: min(o.size, o.states.zero*blockSize),
		MapBytes: o.log.end, Limit: o.limit()}
}

func (o *Overlay) limit() int64 {
	if o.o.Limit == 0 {
		return o.size
	}
	return o.o.Limit
}

// Changed yields, in order, what is not the base's: written bytes, and zeros. The caller sees to it that nobody writes.
func (o *Overlay) Changed(yield func(off, n int64, zero bool) bool) {
	o.viewing.RLock()
	defer o.viewing.RUnlock()
	o.states.runs(func(i, n int64, st state) bool {
		off := i * blockSize
		return yield(off, min(n*blockSize, o.size-off), st == isZero)
	})
}
