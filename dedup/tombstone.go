package dedup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coffer/dedup/container"
)

// Tombstones are one small object of the store; FORMAT.md explains the fields.
const (
	tombstonePrefix = "tombstones/"
	tombstoneKind   = "tombstones"
)

func tombstoneName(n uint32) string { return fmt.Sprintf("%s%08x", tombstonePrefix, n) }

// tombstonesObject names the slots of all dead nodes in containers that still exist. A new object replaces the one before
// it as a whole: dead nodes leave all together.
type tombstonesObject struct {
	Version    int              `json:"version"`
	Number     uint32           `json:"number"`
	Time       time.Time        `json:"time"`
	Containers []tombstoneEntry `json:"containers"`
}

// tombstoneEntry is the dead slots of one container.
type tombstoneEntry struct {
	Container string `json:"container"`
	// Dead has a bit for each slot, the lowest bit of the first byte for slot 0, without zero bytes at its end.
	Dead []byte `json:"dead"`
}

// tombstones are the dead slots by container, as the newest object says.
type tombstones struct {
	mu     sync.Mutex
	number uint32                    // guarded by mu: highest in use
	dead   map[container.ID]slotBits // guarded by mu; the sets are never changed
	lost   bool                      // guarded by mu: the newest object cannot be read
	names  []string                  // guarded by mu: objects that are there
}

func (o *tombstonesObject) decode() (map[container.ID]slotBits, error) {
	dead := make(map[container.ID]slotBits, len(o.Containers))
	last := container.ID(0)
	for i, e := range o.Containers {
		n, err := strconv.ParseUint(e.Container, 16, 64)
		id := container.ID(n)
		if err != nil || id.String() != e.Container || (i > 0 && id <= last) {
			return nil, fmt.Errorf("container %q", e.Container)
		}
		if len(e.Dead) == 0 || e.Dead[len(e.Dead)-1] == 0 || len(e.Dead) > container.MaxSize/minRow/8+1 {
			return nil, fmt.Errorf("container %v: %d bytes of slots", id, len(e.Dead))
		}
		last, dead[id] = id, bitsOf(e.Dead)
	}
	return dead, nil
}

func newTombstonesObject(number uint32, now time.Time, dead map[container.ID]slotBits) tombstonesObject {
	o := tombstonesObject{Version: objectVersion, Number: number, Time: now.UTC().Round(0), Containers: []tombstoneEntry{}}
	for _, id := range slices.Sorted(maps.Keys(dead)) {
		if b := dead[id].bytes(); len(b) > 0 {
			o.Containers = append(o.Containers, tombstoneEntry{id.String(), b})
		}
	}
	return o
}

func bitsOf(b []byte) slotBits {
	bits := make(slotBits, (len(b)+7)/8)
	for i, x := range b {
		bits[i/8] |= uint64(x) << (i % 8 * 8)
	}
	return bits
}

// bytes is the stored form of a set.
func (b slotBits) bytes() []byte {
	out := make([]byte, 0, len(b)*8)
	for _, w := range b {
		for i := range 8 {
			out = append(out, byte(w>>(8*i)))
		}
	}
	for len(out) > 0 && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	return out
}

// loadTombstones reads the newest object. One that is damaged makes the dead nodes unknown: see lostTombstones.
func (s *Store) loadTombstones(ctx context.Context) error {
	t := &s.tombstones
	t.mu.Lock()
	defer t.mu.Unlock()
	for o, err := range s.objects(ctx, tombstonePrefix) {
		if err != nil {
			return wrap("list tombstones", "", err)
		}
		if n, ok := parseNumber(strings.TrimPrefix(o.name, tombstonePrefix)); ok {
			t.number = max(t.number, n)
			t.names = append(t.names, o.name)
		}
	}
	if len(t.names) == 0 {
		return nil
	}
	var o tombstonesObject
	name := tombstoneName(t.number)
	err := s.getObject(ctx, tombstoneKind, name, &o)
	if err == nil && o.Number != t.number {
		err = &Error{Kind: Damaged, Op: "read tombstones", Object: name, Err: errors.New("it is another one's")}
	}
	if err == nil {
		if t.dead, err = o.decode(); err != nil {
			err = &Error{Kind: Damaged, Op: "read tombstones", Object: name, Err: err}
		}
	}
	if KindOf(err) == Damaged {
		s.log.Error("tombstones are damaged: no node is had from a container that has to be indexed anew", "object", name, "err", err)
		s.damaged.Add(1)
		t.lost, t.dead = true, nil
		return nil
	}
	return err
}

// buried returns the dead slots of a container, nil for none. lost: nobody knows which they are.
func (t *tombstones) buried(id container.ID) (dead slotBits, lost bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dead[id], t.lost
}

// all returns the dead slots of all containers; the sets must not be changed.
func (t *tombstones) all() map[container.ID]slotBits {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.dead)
}

// bury makes the dead slots of all containers durable, in place of what was known before. It may use the reserve: it is what
// makes space.
func (s *Store) bury(ctx context.Context, dead map[container.ID]slotBits) error {
	t := &s.tombstones
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.number + 1
	name := tombstoneName(n)
	t.number = n // a number is never used twice, whatever comes of it
	if err := s.putObject(ctx, tombstoneKind, name, newTombstonesObject(n, s.opts.Now(), dead)); err != nil {
		return err
	}
	old := t.names
	t.names, t.dead, t.lost = []string{name}, dead, false
	for _, o := range old {
		if err := s.deleteObject(ctx, o); err != nil {
			s.log.Warn("old tombstones stay", "object", o, "err", err)
			t.names = append(t.names, o)
		}
	}
	return nil
}

// forgetTombstones drops what is said of containers that are gone.
func (s *Store) forgetTombstones(ctx context.Context) error {
	dead := s.tombstones.all()
	n := len(dead)
	maps.DeleteFunc(dead, func(id container.ID, _ slotBits) bool { return !s.containers.has(id) })
	if len(dead) == n {
		return nil
	}
	return s.bury(ctx, dead)
}
