package dedup

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"coffer/dedup/blob"
	"coffer/dedup/index"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// Store is an open store. All methods may be called from many goroutines.
type Store struct {
	opts   Options
	log    *slog.Logger
	blob   blob.Store
	fs     vfs.FS
	ring   *keys.Ring
	domain Domain // the primary one
	locks  []io.Closer

	epoch uint32
	seq   atomic.Uint32 // of the last container of this epoch

	index      *index.Index
	containers *containerSet
	dirs       *dirCache
	frames     *frameCache // of data containers
	huge       hugePages
	nodes      *frameCache // of node containers
	sets       *savesetTable
	readers    *readerPool
	ahead      *readAhead
	damaged    atomic.Int64 // rows that came to the damage list
	damage     *damageList
	damageSave sync.Mutex // held while the damage list is written
	keeper     *damageKeeper
	checks     checkRounds

	domains domainSet // all, the primary one too

	shutDown atomic.Bool // set once by Close, before the index goes

	maintenance maintenance // which long operations run
	pace        pace        // of those beside runs
	tombstones  tombstones  // dead nodes in live containers
	// renewing is held for reading while a container that proved to be readable is taken into use again, and for writing
	// while a collection runs.
	renewing sync.RWMutex
	// sealing is held for reading while an object is sealed and put, and for writing while one is deleted or sealed again.
	sealing    sync.RWMutex
	oldObjects atomic.Bool // an object was met, or must be expected, that names an old store key
	storeKeys  keyCensus

	thinking chan struct{} // holds one element while a saveset's frames are counted: one at a time, for the memory

	mu     sync.Mutex
	closed bool              // guarded by mu
	runs   map[*Run]struct{} // guarded by mu
	views  int               // guarded by mu
}

// Create makes a new store in empty places, with a new domain, and opens it. Kind Exists when there is one. A Create that
// was cut short may be repeated with the same key.
func Create(ctx context.Context, opts Options) (*Store, error) {
	return start(ctx, opts, (*Store).create)
}

// Open opens a store for writing; one process at a time (Kind Locked). It clears what broken runs left in the spool and
// brings the index level with the containers; a lost or damaged index is rebuilt.
func Open(ctx context.Context, opts Options) (*Store, error) {
	return start(ctx, opts, (*Store).load)
}

// start opens a store whose keyring and domain come from the given step.
func start(ctx context.Context, opts Options, keysAndDomain func(*Store, context.Context) error) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	s := &Store{
		opts: opts, log: opts.Logger, blob: opts.Blob, fs: opts.FS,
		containers: newContainerSet(), sets: newSavesetTable(), runs: make(map[*Run]struct{}),
		frames: newFrameCache(opts.FrameMemory), nodes: newFrameCache(opts.NodeMemory), damage: newDamageList(),
	}
	s.frames.grown = opts.FramesHeld
	s.thinking = make(chan struct{}, 1)
	steps := []func(context.Context) error{
		s.lock,
		func(ctx context.Context) error { return keysAndDomain(s, ctx) },
		s.prepareReading,
		s.listContainers,
		s.takeEpoch,
		s.loadTombstones,
		s.loadDamage,
		s.loadChecks,
		s.openIndex,
		s.loadSavesets,
		s.salvageSpool,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(wrap("open store", "", err), s.shut())
		}
	}
	s.ahead = startReadAhead(s)
	s.keeper = startDamageKeeper(s)
	return s, nil
}

// lock keeps a second process out, of the spool and of the blob store.
func (s *Store) lock(ctx context.Context) error {
	if err := s.prepareSpool(); err != nil {
		return err
	}
	c, err := s.fs.Lock(s.spoolPath("lock"))
	if err != nil {
		return wrap("lock spool", s.opts.SpoolDir, err)
	}
	s.locks = append(s.locks, c)
	if l, ok := s.blob.(blob.Locker); ok {
		c, err := l.Lock(ctx, s.opts.Owner)
		if err != nil {
			return wrap("lock store", "", err)
		}
		s.locks = append(s.locks, c)
	}
	return nil
}

// create makes keyring and domain. A keyring without a domain is what a Create leaves that was cut short.
func (s *Store) create(ctx context.Context) error {
	ring, err := keys.Load(ctx, s.blob, s.opts.Key)
	if errors.Is(err, blob.ErrNotExist) {
		if ring, err = keys.Create(ctx, rand.Reader, s.opts.Key); err == nil {
			err = keys.Save(ctx, s.blob, ring)
		}
	}
	if err != nil {
		return wrap("create store", "", err)
	}
	s.setRing(ring)
	if _, err = s.loadDomain(ctx); KindOf(err) != NotFound {
		return &Error{Kind: Exists, Op: "create store", Err: err}
	}
	if s.domain = s.opts.Join.derived(); s.domain.ID.IsZero() {
		if s.domain, err = newDomain(); err != nil {
			return err
		}
	}
	s.domains.add(s.domain)
	return s.putObject(ctx, domainKind, domainPrefix+s.domain.ID.String(), s.domain.object())
}

func (s *Store) load(ctx context.Context) error {
	ring, err := keys.Load(ctx, s.blob, s.opts.Key)
	if err != nil {
		return wrap("load keyring", "", err)
	}
	s.setRing(ring)
	if err := keys.Mend(ctx, s.blob, ring); err != nil {
		s.log.Warn("copies of the keyring are not as they should be", "err", err)
	}
	s.domain, err = s.loadDomain(ctx)
	return err
}

func (s *Store) setRing(r *keys.Ring) {
	s.ring = r
	s.dirs = newDirCache(s.blob, r, s.opts.LocalityMemory, s.canonical)
}

// Domain returns the domain that runs of this store write into which name no other.
func (s *Store) Domain() Domain { return s.domain }

// Close ends everything: runs still open are aborted, views become unusable. The store must not be used afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	runs := make([]*Run, 0, len(s.runs))
	for r := range s.runs {
		runs = append(runs, r)
	}
	s.mu.Unlock()
	s.maintenance.stop()
	var errs []error
	for _, r := range runs {
		errs = append(errs, r.Abort(context.Background(), "the store is closed"))
	}
	s.shutDown.Store(true)
	s.keeper.stop()
	s.ahead.stop()
	return errors.Join(append(errs, s.shut())...)
}

// shut gives back what lock and openIndex took.
func (s *Store) shut() error {
	var errs []error
	s.frames.clear()
	if s.index != nil {
		errs = append(errs, wrap("close index", "", s.index.Close()))
	}
	for i := len(s.locks) - 1; i >= 0; i-- {
		errs = append(errs, wrap("unlock store", "", s.locks[i].Close()))
	}
	return errors.Join(errs...)
}

func (s *Store) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return &Error{Kind: Closed, Op: "use store"}
	}
	return nil
}

// checkSpace refuses a write of need bytes that would touch the reserve.
func (s *Store) checkSpace(ctx context.Context, need int64) error {
	free, err := s.free(ctx)
	if err != nil {
		return err
	}
	if free >= 0 && free < need {
		return &Error{Kind: NoSpace, Op: "check free space", Err: errReserve}
	}
	return nil
}

var errReserve = errors.New("the reserve is reached")

// free returns the bytes that may still be written, the reserve left alone; -1 when that is not known.
func (s *Store) free(ctx context.Context) (int64, error) {
	free, err := s.fs.Free(s.opts.SpoolDir)
	if err != nil {
		return 0, wrap("ask for free space", s.opts.SpoolDir, err)
	}
	if f, ok := s.blob.(blob.FreeSpacer); ok {
		n, err := f.FreeSpace(ctx)
		if err != nil {
			return 0, wrap("ask for free space", "", err)
		}
		free = min(free, n)
	}
	return max(free-s.opts.Reserve, 0), nil
}

// Stats returns counters since Open and sizes of the moment.
func (s *Store) Stats() Stats {
	var st Stats
	s.mu.Lock()
	st.Runs, st.Views = len(s.runs), s.views
	s.mu.Unlock()
	st.Savesets = len(s.sets.list())
	st.Containers, st.StoredBytes = s.containers.totals()
	st.Damaged = s.damaged.Load()
	st.Free = -1
	if free, err := s.free(context.Background()); err == nil {
		st.Free = free
	}
	s.dirs.stats(&st)
	st.FrameHits, st.FrameMisses, st.FrameBytes = s.frames.stats()
	st.NodeHits, st.NodeMisses, st.NodeBytes = s.nodes.stats()
	return st
}

// Stats of a store.
type Stats struct {
	Containers, Savesets, Runs, Views int
	// StoredBytes is the size of all containers.
	StoredBytes uint64
	// Free is the free space in bytes, less the reserve; -1 when unknown.
	Free int64
	// Damaged counts the objects that could not be read since Open.
	Damaged int64
	// Locality: digests answered from loaded directories, digests that asked the index, directories loaded and dropped.
	LocalityHits, LocalityMisses, DirectoryLoads, DirectoryDrops uint64
	LocalityBytes                                                int64
	// Frame and node caches.
	FrameHits, FrameMisses, NodeHits, NodeMisses uint64
	FrameBytes, NodeBytes                        int64
}

func (c *dirCache) stats(st *Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st.LocalityHits, st.LocalityMisses = c.hits, c.misses
	st.DirectoryLoads, st.DirectoryDrops, st.LocalityBytes = c.loads, c.drops, c.bytes
}
