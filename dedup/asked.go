package dedup

import (
	"context"
	"sync"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// askedKept is how many places a view remembers of what it brought in ahead.
const askedKept = 512

// askedPlaces are the places of chunks that a view brought in ahead, so that who reads them need not look them up again: in
// aged data that is a tenth of what a mount costs. They are where the chunks were. The zero value is ready. Safe for
// concurrent use.
type askedPlaces struct {
	mu   sync.Mutex
	at   map[digest.Digest]askedPlace // guarded by mu
	ring [askedKept]digest.Digest     // guarded by mu: what is in at, the oldest at next
	next int                          // guarded by mu
}

type askedPlace struct {
	id   container.ID
	slot uint32
}

func (a *askedPlaces) add(ds []digest.Digest, places []found) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = make(map[digest.Digest]askedPlace, askedKept)
	}
	for i, d := range ds {
		if places[i].dir == nil {
			continue
		}
		if _, ok := a.at[d]; !ok {
			delete(a.at, a.ring[a.next])
			a.ring[a.next] = d
			a.next = (a.next + 1) % askedKept
		}
		a.at[d] = askedPlace{places[i].dir.ID(), places[i].slot}
	}
}

func (a *askedPlaces) find(d digest.Digest) (askedPlace, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.at[d]
	return at, ok
}

// recall reads a chunk where it was when it was brought in ahead; not ok when it was not, or does not read there any more.
func (v *View) recall(ctx context.Context, d digest.Digest, kind container.Kind) (b []byte, ok bool) {
	was, ok := v.asked.find(d)
	if !ok {
		return nil, false
	}
	dir, err := v.s.directory(ctx, was.id)
	if err != nil || dir == nil || int64(was.slot) >= int64(dir.Rows()) || dir.Digest(was.slot) != d {
		return nil, false
	}
	at := found{dir: dir, slot: was.slot}
	if !v.mayRead(at, kind) || v.s.damage.badPlace(at.loc()) {
		return nil, false
	}
	b, err = v.s.read(ctx, at)
	return b, err == nil
}
