package appliance

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"coffer/api"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

const (
	// unsealFor is how long a task key is held when nobody says otherwise, and maxUnseal the most that may be said.
	unsealFor = 8 * time.Hour
	maxUnseal = 7 * 24 * time.Hour
	// openedBytes bounds the opened chunks and nodes that are kept for each key: a mount reads a chunk in many pieces.
	openedBytes = 32 << 20
)

// errNeedsKey is what a sealed saveset answers to readers while nobody gave its key.
var errNeedsKey = errors.New("its task is encrypted, and its key is not here")

// taskKeys holds the keys of encrypted tasks that somebody gave for reading: in memory alone, each for a time.
type taskKeys struct {
	mu   sync.Mutex
	held map[seal.ID]*heldKey // guarded by mu
}

// heldKey is a key with what was opened by it lately.
type heldKey struct {
	key    seal.Key
	opener *seal.Opener
	until  time.Time
	timer  *time.Timer

	mu     sync.Mutex // guards all below
	opened map[digest.Digest]*list.Element
	lru    *list.List // of openedThing
	bytes  int
}

type openedThing struct {
	d     digest.Digest
	plain []byte
}

func newTaskKeys() *taskKeys { return &taskKeys{held: make(map[seal.ID]*heldKey)} }

// give holds a key for a time. One that is held already is held for the new time.
func (k *taskKeys) give(key seal.Key, now time.Time, d time.Duration) (until time.Time) {
	id := key.ID()
	h := &heldKey{key: key, opener: seal.NewOpener(key), until: now.Add(d), opened: make(map[digest.Digest]*list.Element), lru: list.New()}
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.held[id]; old != nil {
		old.timer.Stop()
	}
	k.held[id] = h
	h.timer = time.AfterFunc(d, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.held[id] == h {
			delete(k.held, id)
		}
	})
	return h.until
}

// take forgets a key. It reports whether it was held.
func (k *taskKeys) take(id seal.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.held[id]
	if h == nil {
		return false
	}
	h.timer.Stop()
	delete(k.held, id)
	return true
}

func (k *taskKeys) get(id seal.ID) *heldKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held[id]
}

// open returns what read and unbox make of a digest, through the cache.
func (h *heldKey) open(d digest.Digest, read func() ([]byte, error), unbox func([]byte) ([]byte, error)) ([]byte, error) {
	h.mu.Lock()
	if e := h.opened[d]; e != nil {
		h.lru.MoveToFront(e)
		h.mu.Unlock()
		return e.Value.(openedThing).plain, nil
	}
	h.mu.Unlock()
	box, err := read()
	if err != nil {
		return nil, err
	}
	plain, err := unbox(box)
	if err != nil {
		return nil, err
	}
	h.keep(d, plain)
	return plain, nil
}

func (h *heldKey) keep(d digest.Digest, plain []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opened[d] != nil {
		return
	}
	h.opened[d] = h.lru.PushFront(openedThing{d, plain})
	h.bytes += len(plain)
	for h.bytes > openedBytes && h.lru.Len() > 1 {
		old := h.lru.Remove(h.lru.Back()).(openedThing)
		delete(h.opened, old.d)
		h.bytes -= len(old.plain)
	}
}

// reading is a saveset that is read: a *dedup.View, or a sealed one with its key.
type reading interface {
	recipe.Source
	Chunk(ctx context.Context, d digest.Digest) ([]byte, error)
	ReadAhead(ds []digest.Digest)
	Manifest() dedup.Manifest
	Close() error
}

// sealedView reads a sealed saveset while its key is held; without it every read answers errNeedsKey.
type sealedView struct {
	*dedup.View
	keys *taskKeys
	by   seal.ID
}

var _ reading = sealedView{}

// Node implements recipe.Source.
func (v sealedView) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	h := v.keys.get(v.by)
	if h == nil {
		return nil, errNeedsKey
	}
	return h.open(d, func() ([]byte, error) { return v.View.Node(ctx, d) }, h.opener.Node)
}

// Chunk returns the plain bytes of a chunk.
func (v sealedView) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) {
	h := v.keys.get(v.by)
	if h == nil {
		return nil, errNeedsKey
	}
	return h.open(d, func() ([]byte, error) { return v.View.Chunk(ctx, d) }, func(box []byte) ([]byte, error) { return h.opener.Chunk(nil, box) })
}

// view opens a saveset for reading.
func (k *taskKeys) view(ctx context.Context, store *dedup.Store, id dedup.SavesetID) (reading, error) {
	v, err := store.View(ctx, id)
	if err != nil {
		return nil, err
	}
	if by := v.Manifest().SealedBy; !by.IsZero() {
		return sealedView{v, k, by}, nil
	}
	return v, nil
}

// keyNeeded tells how a sealed saveset is read.
func keyNeeded(id string) error {
	return api.Errorf(api.CodeKeyNeeded, "saveset %s is of an encrypted task, and its key is not here", id).
		WithHint("coffer saveset unseal %s --key-file FILE, or restore to a client that has the key", id)
}

// sealedBy returns the key that a saveset needs. CodeConflict for one that is not sealed.
func (s savesets) sealedBy(ctx context.Context, id string) (by seal.ID, err error) {
	store, err := s.store.get()
	if err != nil {
		return by, lockedError(err)
	}
	sid, err := dedup.ParseSavesetID(id)
	if err != nil {
		return by, apiError(err)
	}
	m, err := store.Saveset(ctx, sid)
	if err != nil {
		return by, apiError(err)
	}
	if m.SealedBy.IsZero() {
		return by, api.Errorf(api.CodeConflict, "saveset %s is not of an encrypted task: everybody who may can read it", id)
	}
	return m.SealedBy, nil
}

// sealer returns the id of the key that seals a saveset; "" where none does, or the store cannot be asked.
func (s savesets) sealer(ctx context.Context, id string) string {
	if by, err := s.sealedBy(ctx, id); err == nil {
		return by.String()
	}
	return ""
}

// UnsealSaveset implements server.Savesets.
func (s savesets) UnsealSaveset(ctx context.Context, id string, u api.Unseal) (api.Unsealed, error) {
	by, err := s.sealedBy(ctx, id)
	if err != nil {
		return api.Unsealed{}, err
	}
	key, err := seal.ParseFile([]byte(u.Key))
	if err != nil {
		return api.Unsealed{}, api.Errorf(api.CodeBadRequest, "%v", err).WithHint("give the file that 'coffer-agent task-key new' made")
	}
	if key.ID() != by {
		return api.Unsealed{}, api.Errorf(api.CodeWrongTaskKey, "this is the key %v, and saveset %s is sealed by %v", key.ID(), id, by)
	}
	d := unsealFor
	if u.Minutes > 0 {
		d = min(time.Duration(u.Minutes)*time.Minute, maxUnseal)
	}
	until := s.taskKeys.give(key, s.opts.Now(), d)
	s.log.Info("task key is held", "key", by, "until", until)
	return api.Unsealed{KeyID: by.String(), Until: until}, nil
}

// SealSaveset implements server.Savesets.
func (s savesets) SealSaveset(ctx context.Context, id string) error {
	by, err := s.sealedBy(ctx, id)
	if err != nil {
		return err
	}
	if s.taskKeys.take(by) {
		s.log.Info("task key is forgotten", "key", by)
	}
	return nil
}
