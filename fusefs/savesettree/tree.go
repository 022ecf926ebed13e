package savesettree

import (
	"context"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// Saveset is what the tree needs to know of a saveset.
type Saveset struct {
	ID           dedup.SavesetID
	Client, Task string
	Level        string // FULL, DIFF, INCR, COPY
	Started      time.Time
	Root         digest.Digest // of the root directory's node
}

// Source lists and opens savesets. Its methods may be called from many goroutines.
type Source interface {
	// Savesets lists all that can be read, in any order. It is called once a second at most.
	Savesets(ctx context.Context) ([]Saveset, error)
	// Open leases a saveset for reading.
	Open(ctx context.Context, id dedup.SavesetID) (View, error)
}

// View reads one saveset, as *dedup.View does.
type View interface {
	recipe.Source
	// Chunk returns a chunk's bytes, shared and read only, also after Close.
	Chunk(ctx context.Context, d digest.Digest) ([]byte, error)
	// ReadAhead brings what will be read next into the store's cache, if it can.
	ReadAhead(ds []digest.Digest)
	Close() error
}

// Options of a tree. The zero value works.
type Options struct {
	// IdleRelease is how long the lease on a saveset outlives the last request; 0 = 5 minutes.
	IdleRelease time.Duration
	// Accessed is called when a saveset is opened, before anything of it is shown: access counts as a restore.
	Accessed func(Saveset)
	// Logger takes what has no caller to be told to; nil = slog.Default().
	Logger *slog.Logger
}

// listEvery is how old the list of savesets may be.
const listEvery = time.Second

// Tree shows savesets. Its methods may be called from many goroutines.
type Tree struct {
	src  Source
	o    Options
	stop context.CancelFunc // ends the goroutines
	wg   sync.WaitGroup

	cache  atomic.Pointer[fusefs.Cache] // of the mount; nil without one
	sweeps chan *saveset                // whose sweeps shall be looked at

	listMu sync.Mutex // guards what follows; held while the list is fetched
	list   *listing
	listed time.Time

	mu    sync.Mutex // guards what follows
	sets  map[dedup.SavesetID]*saveset
	bases map[uint64]dedup.SavesetID // never given to another one: the kernel may know the old one's files
}

// New returns the tree of a source's savesets. Close ends it.
func New(src Source, o Options) *Tree {
	if o.IdleRelease == 0 {
		o.IdleRelease = 5 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &Tree{src: src, o: o, stop: stop, sweeps: make(chan *saveset, 4),
		sets: map[dedup.SavesetID]*saveset{}, bases: map[uint64]dedup.SavesetID{}}
	t.wg.Go(func() { t.releaseIdle(ctx) })
	t.wg.Go(func() { t.advanceSweeps(ctx) })
	return t
}

// Root returns the directory of clients.
func (t *Tree) Root() fusefs.Dir { return &listDir{tree: t, level: clients} }

// Close gives all leases back. The tree must not be mounted any more; reads that still come fail.
func (t *Tree) Close() error {
	t.stop()
	t.wg.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sets {
		s.close(t.o.Logger)
	}
	return nil
}

// releaseIdle gives back the leases of savesets that nobody reads.
func (t *Tree) releaseIdle(ctx context.Context) {
	tick := time.NewTicker(max(t.o.IdleRelease/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			t.mu.Lock()
			for _, s := range t.sets {
				s.release(now.Add(-t.o.IdleRelease), t.o.Logger)
			}
			t.mu.Unlock()
		}
	}
}

// current returns the list of savesets, fetching it when it is old.
func (t *Tree) current(ctx context.Context) (*listing, error) {
	t.listMu.Lock()
	defer t.listMu.Unlock()
	if t.list != nil && time.Since(t.listed) < listEvery {
		return t.list, nil
	}
	all, err := t.src.Savesets(ctx)
	if err != nil {
		return nil, err
	}
	next := newListing(all)
	next.keepTimes(t.list, time.Now())
	t.list, t.listed = next, time.Now()
	t.forget(next)
	return next, nil
}

// saveset returns the one object for a saveset, which has its number and its lease.
func (t *Tree) saveset(info Saveset) *saveset {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sets[info.ID]; s != nil {
		return s
	}
	s := &saveset{tree: t, info: info, base: baseOf(info.ID)}
	for owner, taken := t.bases[s.base]; taken && owner != info.ID; owner, taken = t.bases[s.base] {
		s.base = s.base%maxBase + 1 // two of the same number: the later one moves on
	}
	t.sets[info.ID], t.bases[s.base] = s, info.ID
	return s
}

// forget drops savesets that are gone and not in use. Those in use keep their lease.
func (t *Tree) forget(l *listing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, s := range t.sets {
		if _, ok := l.ids[id]; !ok && s.idle() {
			delete(t.sets, id)
		}
	}
}

// notExist is the error for names that are not there.
func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }
