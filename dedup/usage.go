package dedup

import (
	"context"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// Usage is what savesets take, by one mark over all of them. Plain bytes are those of chunks and nodes as they were
// before compression, each once; stored bytes are their share of the frames that hold them.
type Usage struct {
	// At is when the mark began.
	At time.Time
	// Savesets, those that are not deleted, and Clients, by name.
	Savesets map[SavesetID]SavesetUsage
	Clients  map[string]ClientUsage
	// Logical is the sum of all savesets' logical bytes.
	Logical uint64
	// Plain and Stored bytes that savesets reach, and Shared (plain), those of them that several savesets reach.
	Plain, Stored, Shared uint64
	// Garbage is the stored bytes that no saveset reaches, Containers the size of all containers.
	Garbage, Containers uint64
}

// SavesetUsage of one saveset.
type SavesetUsage struct {
	// Logical bytes, as its manifest says.
	Logical uint64
	// Unique (plain) and UniqueStored bytes that this saveset alone reaches: what its deletion frees.
	Unique, UniqueStored uint64
	// Shared is the logical bytes that other savesets hold as well, or the saveset itself a second time.
	Shared uint64
}

// ClientUsage sums up the savesets of a client.
type ClientUsage struct {
	Savesets int
	Logical  uint64
	// Unique (plain) and UniqueStored bytes that only savesets of this client reach.
	Unique, UniqueStored uint64
}

// DedupRatio is logical bytes for each plain byte kept: what deduplication (and what holes) save. 0 when nothing is kept.
func (u Usage) DedupRatio() float64 { return ratio(u.Logical, u.Plain) }

// CompressionRatio is plain bytes for each stored byte. 0 when nothing is kept.
func (u Usage) CompressionRatio() float64 { return ratio(u.Plain, u.Stored) }

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// Usage computes the figures by a mark of its own, with four bytes of memory for each chunk. Kind InUse while a collection
// runs. Runs and readers go on; savesets that come meanwhile are not in it. What cannot be read is left out.
func (s *Store) Usage(ctx context.Context, progress func(Progress)) (Usage, error) {
	ctx, end, err := s.maintain(ctx, collecting)
	if err != nil {
		return Usage{}, err
	}
	defer end()
	u := newUsageMark(s, progress)
	if err := u.mark(ctx); err != nil {
		return Usage{}, wrap("mark usage", "", err)
	}
	if err := u.sum(ctx); err != nil {
		return Usage{}, wrap("sum usage", "", err)
	}
	return u.usage(), nil
}

// owner says who reaches a slot: nobody, one saveset (its number plus one), several savesets of one client (its number with
// the highest bit), or savesets of several clients. It only moves on in this order, so that a walk enters a node three times
// at most.
type owner uint32

const (
	nobody     owner = 0
	clientBit  owner = 1 << 31
	severalAll owner = 1<<32 - 1
)

// usageMark is the owners of all slots.
type usageMark struct {
	s        *Store
	meter    *meter
	find     *placeFinder
	at       time.Time
	savesets []Manifest
	client   []uint32 // of each saveset
	clients  []string
	owners   map[container.ID][]owner
	sets     []uniqueBytes // of each saveset
	groups   []uniqueBytes // of each client
	total    Usage
}

type uniqueBytes struct{ plain, stored uint64 }

func newUsageMark(s *Store, progress func(Progress)) *usageMark {
	u := &usageMark{s: s, meter: newMeter(progress), find: newPlaceFinder(s), at: s.opts.Now().UTC(),
		owners: make(map[container.ID][]owner)}
	u.savesets, _ = s.sets.all()
	numbers := make(map[string]uint32)
	for _, m := range u.savesets {
		n, ok := numbers[m.Client]
		if !ok {
			n = uint32(len(u.clients))
			numbers[m.Client] = n
			u.clients = append(u.clients, m.Client)
		}
		u.client = append(u.client, n)
	}
	u.sets, u.groups = make([]uniqueBytes, len(u.savesets)), make([]uniqueBytes, len(u.clients))
	return u
}

// mark walks one saveset after the other.
func (u *usageMark) mark(ctx context.Context) error {
	u.meter.phase("mark", "savesets", int64(len(u.savesets)))
	w := &walk{find: u.find, lost: func(digest.Digest, bool, error) error { return nil }}
	for i, m := range u.savesets {
		w.reach = func(p place, _ *digest.Digest) bool { return u.reach(p, uint32(i)) }
		roots := []digest.Digest{m.Root.Digest}
		if !m.Side.Digest.IsZero() {
			roots = append(roots, m.Side.Digest)
		}
		if err := w.from(ctx, roots); err != nil {
			return err
		}
		if err := w.run(ctx); err != nil {
			return err
		}
		u.meter.add(1)
	}
	return nil
}

// reach notes that a saveset reaches a slot, and reports whether that is news for what lies below it.
func (u *usageMark) reach(p place, saveset uint32) bool {
	slots := u.owners[p.id]
	if int(p.slot) >= len(slots) {
		slots = append(slots, make([]owner, int(p.slot)+1-len(slots))...)
		u.owners[p.id] = slots
	}
	old := slots[p.slot]
	slots[p.slot] = u.next(old, saveset)
	return slots[p.slot] != old
}

// next is the owner of a slot that one more saveset reaches.
func (u *usageMark) next(now owner, saveset uint32) owner {
	client := u.client[saveset]
	switch {
	case now == nobody:
		return owner(saveset) + 1
	case now == severalAll || now == owner(saveset)+1 || now == clientBit|owner(client):
		return now
	case now&clientBit == 0 && u.client[now-1] == client:
		return clientBit | owner(client)
	}
	return severalAll
}

// sum adds up rows by their owners.
func (u *usageMark) sum(ctx context.Context) error {
	ids := u.s.containers.without(nil)
	u.meter.phase("sum", "containers", int64(len(ids)))
	for _, id := range ids {
		if err := stopped(ctx); err != nil {
			return err
		}
		err := u.s.givingWay(ctx, func() error {
			dir, err := u.find.directory(ctx, id)
			if dir != nil {
				u.sumContainer(dir)
			}
			return err
		})
		if err != nil {
			return err
		}
		u.total.Containers += uint64(u.s.containers.size(id))
		u.meter.add(1)
	}
	return nil
}

func (u *usageMark) sumContainer(dir *container.Directory) {
	slots := u.owners[dir.ID()]
	for slot := range uint32(dir.Rows()) {
		who := nobody
		if int(slot) < len(slots) {
			who = slots[slot]
		}
		row := dir.Row(slot)
		f := dir.Frame(row.Frame)
		b := uniqueBytes{uint64(row.Length), uint64(f.Size) * uint64(row.Length) / uint64(f.Plain)}
		u.add(who, b)
	}
}

func (u *usageMark) add(who owner, b uniqueBytes) {
	if who == nobody {
		u.total.Garbage += b.stored
		return
	}
	u.total.Plain += b.plain
	u.total.Stored += b.stored
	switch {
	case who == severalAll:
		u.total.Shared += b.plain
	case who&clientBit != 0:
		u.total.Shared += b.plain
		u.groups[who&^clientBit].add(b)
	default:
		u.sets[who-1].add(b)
		u.groups[u.client[who-1]].add(b)
	}
}

func (a *uniqueBytes) add(b uniqueBytes) {
	a.plain += b.plain
	a.stored += b.stored
}

// usage puts the figures together.
func (u *usageMark) usage() Usage {
	out := u.total
	out.At = u.at
	out.Savesets = make(map[SavesetID]SavesetUsage, len(u.savesets))
	out.Clients = make(map[string]ClientUsage, len(u.clients))
	for i, m := range u.savesets {
		own := u.sets[i]
		out.Savesets[m.ID] = SavesetUsage{Logical: m.Logical, Unique: own.plain, UniqueStored: own.stored,
			Shared: m.Logical - min(m.Logical, own.plain)}
		out.Logical += m.Logical
		c := out.Clients[m.Client]
		c.Savesets++
		c.Logical += m.Logical
		out.Clients[m.Client] = c
	}
	for i, name := range u.clients {
		c := out.Clients[name]
		c.Unique, c.UniqueStored = u.groups[i].plain, u.groups[i].stored
		out.Clients[name] = c
	}
	return out
}
