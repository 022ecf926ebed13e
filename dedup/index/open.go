package index

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"coffer/dedup/vfs"
)

const (
	dbDir    = "db"
	lockName = "LOCK"

	// memtables is how many full memtables may wait to be written, beside the one in use.
	memtables   = 2
	minMemtable = 4 << 20
	maxMemtable = 64 << 20

	// maxDeaths is how often the process may die in Open before the index is given up.
	maxDeaths = 2
	// openNeeds is what must be free for badger to open its files for writing when it has no log to replay.
	openNeeds = 8 << 20
)

// memtableSize is the size of a memtable for a memory budget: the one in use, those that wait, and as much again for
// the building of tables.
func memtableSize(memory int64) int64 {
	if memory <= 0 {
		memory = DefaultMemory
	}
	return min(max(memory/(memtables+2), minMemtable), maxMemtable)
}

// DefaultReserve is the reserve that goes with a memory budget, in bytes: the logs and tables of all memtables, and the
// largest compaction, which rewrites the tables of level 0 (five, each a memtable) and those they overlap.
func DefaultReserve(memory int64) int64 { return 8 * memtableSize(memory) }

// Open opens the index in dir, or makes it there. Errors are *Error: with KindCorrupt, KindForeign and KindNewerFormat
// the caller calls Remove, opens anew and enters every container; with KindNoSpace and KindLocked it cannot have it now.
// On a full disk an index that was closed cleanly opens for reading only, and every change is KindNoSpace.
func Open(dir string, o Options) (*Index, error) {
	x := &Index{dir: dir, opts: o}
	if x.opts.Logger == nil {
		x.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if x.opts.Free == nil {
		x.opts.Free = vfs.OS().Free
	}
	if x.opts.Reserve == 0 {
		x.opts.Reserve = DefaultReserve(o.Memory)
	}
	if err := x.open(); err != nil {
		return nil, classify("open "+dir, err)
	}
	return x, nil
}

func (x *Index) open() (err error) {
	if err := vfs.OS().MkdirAll(x.dir); err != nil {
		return err
	}
	x.lock, err = vfs.OS().Lock(filepath.Join(x.dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return &Error{Op: "open " + x.dir, Kind: KindLocked, Err: err}
	}
	if err != nil {
		return err
	}
	if err := x.openLocked(); err != nil {
		_ = x.lock.Close()
		return err
	}
	return nil
}

func (x *Index) openLocked() error {
	before, err := x.readMeta()
	if err != nil {
		return err
	}
	x.meta = meta{store: x.opts.Store, memtable: memtableSize(x.opts.Memory)}
	if before.state != stateClosed {
		x.meta.memtable = max(x.meta.memtable, before.memtable)
	}
	x.reading, err = x.tooFull()
	if err != nil {
		return err
	}
	if !x.reading {
		deaths := 0
		if before.state == stateOpening {
			deaths = before.deaths
		}
		if err := x.writeMeta(stateOpening, deaths+1); err != nil {
			return err
		}
	}
	if err := x.openDB(before.state == stateClosed); err != nil {
		return err
	}
	if x.reading {
		x.opts.Logger.Warn("disk is full: the index is open for reading only", "dir", x.dir)
		return nil
	}
	return x.writeMeta(stateOpen, 0)
}

// readMeta reads how the index was left, and judges whether it can be used. A new one is as good as one closed cleanly.
func (x *Index) readMeta() (meta, error) {
	fail := func(k Kind, err error) (meta, error) {
		return meta{}, &Error{Op: "open " + x.dir, Kind: k, Err: err}
	}
	m, ok, err := readMeta(filepath.Join(x.dir, metaName))
	switch {
	case errors.Is(err, errNewer):
		return fail(KindNewerFormat, err)
	case err != nil:
		return meta{}, err
	case !ok:
		return x.newMeta()
	case m.store != x.opts.Store:
		return fail(KindForeign, fmt.Errorf("it belongs to store %x", m.store))
	case m.state == stateOpening && m.deaths >= maxDeaths:
		return fail(KindCorrupt, fmt.Errorf("the process died %d times while it opened the index", m.deaths))
	}
	return m, nil
}

// newMeta is readMeta without META: good only in an empty directory.
func (x *Index) newMeta() (meta, error) {
	switch _, err := os.Stat(filepath.Join(x.dir, dbDir)); {
	case errors.Is(err, os.ErrNotExist):
		return meta{state: stateClosed}, nil
	case err != nil:
		return meta{}, err
	}
	return meta{}, fmt.Errorf("%w: no %s", errDamage, metaName)
}

func (x *Index) writeMeta(s state, deaths int) error {
	x.meta.state, x.meta.deaths = s, deaths
	return vfs.WriteFileSync(vfs.OS(), filepath.Join(x.dir, metaName), x.meta.encode())
}

// tooFull tells whether badger could not open its files for writing: its logs would be written out as tables at once.
func (x *Index) tooFull() (bool, error) {
	need := int64(openNeeds)
	logs, err := filepath.Glob(filepath.Join(x.dir, dbDir, "*.mem"))
	if err != nil {
		return false, err
	}
	for _, name := range logs {
		if st, err := os.Stat(name); err == nil {
			need += min(st.Size(), x.meta.memtable)
		}
	}
	free, err := x.opts.Free(x.dir)
	return free < need, err
}

func (x *Index) openDB(clean bool) error {
	dir := filepath.Join(x.dir, dbDir)
	if err := checkTables(dir, !clean); err != nil {
		return err
	}
	log := &badgerLog{log: x.opts.Logger}
	opts := badgerOptions(dir, x.meta.memtable).WithLogger(log).WithReadOnly(x.reading).WithMetricsEnabled(x.opts.Count)
	err := guard(func() (err error) {
		x.db, err = badger.Open(opts)
		return err
	})
	switch {
	case err != nil && x.reading:
		// Only badger's writing could have mended it.
		return &Error{Op: "open " + x.dir, Kind: KindNoSpace, Err: fmt.Errorf("%w: %w", syscall.ENOSPC, err)}
	case err != nil:
		return err
	case log.lostTable():
		_ = guard(x.db.Close)
		return fmt.Errorf("%w: badger left out a table", errDamage)
	}
	return nil
}

// filterError makes the tables' filters of 43 bits a key. A lookup asks up to ten tables; what they let pass by mistake is to
// stay below 0.1 %, and a miss is to read one block at most. badger computes from an error rate how often a key is hashed, and
// takes that for the bits of a key: 7 at its default of 1 %, which lets 5 % pass.
//
// With 24 bits a key, a third of what passes does not have the same 32 bits of hash as a key, which no filter can tell apart. That
// third is not by chance alone: a filter is asked at steps that follow from the hash, and there are hashes that every filter
// lets pass too often. Of 20 million misses 418 passed two of seven filters with 24 bits a key, 81 with 30, 45 with 36 and 4
// with 43, where chance would be 3, 2, 1 and 1. More bits do not help: badger asks at most 30 times.
const filterError = 1.0 / (1 << 43)

// badgerOptions are those that were measured: at 10^7 keys 0.20 GB of anonymous memory instead of 1.33, and 39 bytes a
// key on disk. Blocks are read through mmap (the page cache is the cache), and their checksums are tested, so that
// damage is an error and not a wrong answer.
func badgerOptions(dir string, memtable int64) badger.Options {
	return badger.DefaultOptions(dir).
		WithMemTableSize(memtable).
		WithNumMemtables(memtables).
		WithBaseTableSize(4 << 20).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithCompression(options.None).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithDetectConflicts(false).
		WithBloomFalsePositive(filterError).
		WithNumCompactors(2).
		WithValueThreshold(1 << 10). // all values lie in the tables
		WithValueLogFileSize(1 << 20).
		WithSyncWrites(false). // Sync is called where a batch ends
		WithBypassLockGuard(true)
}

// Remove removes the index in dir, which no process has open: KindLocked.
func Remove(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	op := "remove " + dir
	l, err := vfs.OS().Lock(filepath.Join(dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return &Error{Op: op, Kind: KindLocked, Err: err}
	}
	if err != nil {
		return classify(op, err)
	}
	// META goes last: until then what is left is not taken for an index that is whole.
	err = os.RemoveAll(filepath.Join(dir, dbDir))
	if err == nil {
		err = os.Remove(filepath.Join(dir, metaName))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return classify(op, errors.Join(err, l.Close()))
}

// CheckSpace returns a KindNoSpace error when less than the reserve is free, as every change does by itself.
func (x *Index) CheckSpace() error { return x.checkSpace(x.opts.Reserve) }

func (x *Index) checkSpace(reserve int64) error {
	free, err := x.opts.Free(x.dir)
	if err != nil {
		return classify("check space", err)
	}
	if x.reading || free < reserve {
		return &Error{Op: "check space", Kind: KindNoSpace,
			Err: fmt.Errorf("%d bytes are free, %d must stay free: %w", free, reserve, syscall.ENOSPC)}
	}
	return nil
}

// Close waits for the calls that run, writes what is in memory, and closes the index. Where the disk has no room for
// that, it leaves badger as it is (what was entered is in its log) and returns a KindNoSpace error; the index can then be
// opened again only by another process.
func (x *Index) Close() error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return nil
	}
	x.closed = true
	x.mu.Unlock()
	x.users.Wait()
	if x.reading {
		return classify("close", errors.Join(guard(x.db.Close), x.lock.Close()))
	}
	if free, err := x.opts.Free(x.dir); err == nil && free < memtables*x.meta.memtable/2 {
		return &Error{Op: "close", Kind: KindNoSpace,
			Err: errors.Join(fmt.Errorf("%d bytes are free: %w", free, syscall.ENOSPC), guard(x.db.Sync))}
	}
	err := guard(x.db.Close)
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.suspect:
		err = errors.Join(err, x.writeMeta(stateSuspect, 0))
	case err == nil:
		err = x.writeMeta(stateClosed, 0)
	}
	return classify("close", errors.Join(err, x.lock.Close()))
}

// badgerLog passes badger's log on, and listens for the one thing that badger says only there.
type badgerLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards lost
	lost bool
}

func (l *badgerLog) lostTable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *badgerLog) Errorf(format string, a ...any) {
	if strings.HasPrefix(format, "Ignoring table") {
		l.mu.Lock()
		l.lost = true
		l.mu.Unlock()
	}
	l.log.Error(logLine(format, a))
}

func (l *badgerLog) Warningf(format string, a ...any) { l.log.Warn(logLine(format, a)) }
func (l *badgerLog) Infof(format string, a ...any)    { l.log.Debug(logLine(format, a)) }
func (l *badgerLog) Debugf(string, ...any)            {}

func logLine(format string, a []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(format, a...))
}
