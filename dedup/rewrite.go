package dedup

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// rewriteShare: one part in so many of what a run has may be stored anew, and only where a container gives less than that
// to a window. At 5 %, data that ages by 5 % a generation lies in half as many containers after 50 generations.
const rewriteShare = 20

// maxMoves is how many chunks may wait for being stored anew: the bound of the memory that an agent can take which asks and
// never sends.
const maxMoves = 1 << 16

// layoutScale is what layout goes by, in bytes.
type layoutScale struct {
	// window is how much of a saveset a reader is taken to read in the order in which it is stored.
	window uint64
	// step is the grain in which the window moves on.
	step uint64
	// doubt is for how long nothing is said against a container that a run met: it reads on, and cannot know how much of
	// the container follows.
	doubt uint64
	// calm is how many containers a window may lie in without anything being done about it.
	calm int
}

// meeting is when a run met a container, and how much it has of it.
type meeting struct {
	since uint64 // value of layout.bytes before
	given uint64
}

// defaultLayout has the window that the cache of decoded frames holds. To go to another container costs a disk about as much
// as to read a MiB on: what lies calm is read back in five quarters of the time that it would take out of one container, at
// the most, and to store it anew would buy too little. Calm are 0.25 switches a MiB, half of what aged data is held to.
func defaultLayout() layoutScale {
	return layoutScale{window: 64 << 20, step: 4 << 20, doubt: 4 << 20, calm: 16}
}

// layout follows where the data lies that a run has, in the order in which the run asks for it, and picks what is stored
// anew: what lies in thin frames (thin.go), as soon as those are known, and what lies scattered.
//
// The gain is counted before anything is spent: what a container gives to the window that was read last, stored anew, saves
// a reader one switch there. So of the containers that the window lies in beyond the calm number, those that give least to
// it, up to 5 % of it together, are thin. A chunk that lies in one is stored anew, as long as that is at most 5 % of all that
// the run has. The answer depends on nothing but the questions before it, their order, where the chunks lie, and the thin
// frames.
type layout struct {
	scale   layoutScale
	rewrite bool

	mu        sync.Mutex // guards all below
	bytes     uint64     // that the run has: had, and stored
	rewritten uint64
	frames    thinFrames                     // nil: not known yet
	coming    uint64                         // of rewritten, what was not stored yet
	own       map[container.ID]struct{}      // written by the run: what lies there is not stored anew
	moves     map[digest.Digest]container.ID // answered "missing" though there, not sealed yet, and where they lie
	steps     []map[container.ID]uint64      // the window: bytes of each container; the last step is open
	shares    map[container.ID]uint64        // the window summed up
	met       map[container.ID]meeting       // what was met of each container
	thin      uint64                         // the most bytes that a thin container gives to the window, as of the last full step
	open      uint64                         // bytes of the open step
	window    uint64                         // bytes of all steps
	reading   map[container.ID]struct{}      // of the window that is counted for switches
	read      uint64                         // bytes of it
	switches  uint64                         // of the windows before it
}

func newLayout(rewrite bool) *layout {
	return &layout{scale: defaultLayout(), rewrite: rewrite, own: make(map[container.ID]struct{}), moves: make(map[digest.Digest]container.ID),
		steps: []map[container.ID]uint64{{}}, shares: make(map[container.ID]uint64), met: make(map[container.ID]meeting),
		reading: make(map[container.ID]struct{})}
}

// had takes note of chunks that are present and pinned, in their order, and answers for each: false where the run is to
// store it anew. What has no place, or is a node, keeps its answer or has it.
func (l *layout) had(ds []digest.Digest, at []found, out []bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range at {
		switch dir := at[i].dir; {
		case dir == nil:
		case dir.Kind() != container.Data:
			out[i] = true
		default:
			out[i] = !l.asked(ds[i], at[i].loc(), uint64(dir.Row(at[i].slot).Length))
		}
	}
}

// asked takes note of a chunk of n bytes in a frame, and reports whether the run is to store it anew. It needs mu held.
func (l *layout) asked(d digest.Digest, at Loc, n uint64) (anew bool) {
	id := at.Container
	anew = l.worth(d, at, n)
	l.age(id, n)
	if anew {
		l.moves[d] = id
		l.rewritten += n
		l.coming += n
	} else {
		l.count(id, n) // else it counts where it is stored
	}
	return anew
}

// worth needs mu held.
func (l *layout) worth(d digest.Digest, at Loc, n uint64) bool {
	if !l.rewrite || (l.rewritten+n)*rewriteShare > l.bytes || len(l.moves) >= maxMoves {
		return false
	}
	if _, thin := l.frames[at]; !thin && !l.scattered(at.Container) {
		return false
	}
	_, own := l.own[at.Container]
	_, moving := l.moves[d]
	return !own && !moving
}

// scattered reports whether a container gives too little to the window. It needs mu held.
func (l *layout) scattered(id container.ID) bool {
	m, seen := l.met[id]
	return l.thin > 0 && seen && l.bytes-m.since >= l.scale.doubt && l.gives(id) <= l.thin
}

func (l *layout) setThin(frames thinFrames) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frames = frames
}

// stored takes note of chunks that the run put into a container of its own.
func (l *layout) stored(id container.ID, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own[id] = struct{}{}
	l.count(id, n)
	again := min(l.coming, n) // counted when it was asked for
	l.coming -= again
	l.age(id, n-again)
}

// count adds to what is told of the saveset. It needs mu held.
func (l *layout) count(id container.ID, n uint64) {
	l.reading[id] = struct{}{}
	if l.read += n; l.read >= l.scale.window {
		l.switches += uint64(len(l.reading))
		l.read = 0
		clear(l.reading)
	}
}

// age moves the window on. It needs mu held.
func (l *layout) age(id container.ID, n uint64) {
	since := l.bytes
	l.bytes += n
	if !l.rewrite {
		return
	}
	m, seen := l.met[id]
	if !seen {
		m.since = since
	}
	m.given += n
	l.met[id] = m
	l.shares[id] += n
	l.steps[len(l.steps)-1][id] += n
	l.window += n
	if l.open += n; l.open >= l.scale.step {
		l.endStep()
	}
}

// endStep needs mu held.
func (l *layout) endStep() {
	l.open = 0
	for l.window > l.scale.window && len(l.steps) > 1 {
		for id, n := range l.steps[0] {
			l.window -= n
			if l.shares[id] -= n; l.shares[id] == 0 {
				delete(l.shares, id)
			}
		}
		l.steps = slices.Delete(l.steps, 0, 1)
	}
	l.thin = l.thinnest()
	l.steps = append(l.steps, make(map[container.ID]uint64))
}

// gives returns what a container gives to a whole window, to judge by as much as was seen since it was met: by this window
// or by all, whichever says more. One that gave much before, and is met again, may go on. It needs mu held.
func (l *layout) gives(id container.ID) uint64 {
	m := l.met[id]
	seen := max(l.bytes-m.since, 1)
	now := l.shares[id] * l.scale.window / min(seen, l.scale.window)
	return max(now, uint64(float64(m.given)*float64(l.scale.window)/float64(seen)))
}

// thinnest returns what those containers give at most that give least, are too many, and make 5 % of the window. It needs mu
// held.
func (l *layout) thinnest() (thin uint64) {
	tooMany := len(l.shares) - l.scale.calm
	if tooMany <= 0 {
		return 0
	}
	type one struct{ gives, bytes uint64 }
	all := make([]one, 0, len(l.shares))
	for id, n := range l.shares {
		if _, own := l.own[id]; !own {
			all = append(all, one{l.gives(id), n})
		}
	}
	slices.SortFunc(all, func(a, b one) int { return cmp.Or(cmp.Compare(a.gives, b.gives), cmp.Compare(a.bytes, b.bytes)) })
	sum, room := uint64(0), (l.window+l.bytes)/rewriteShare-l.rewritten // what was not used by now may be used now
	for _, c := range all[:min(tooMany, len(all))] {
		if c.gives > l.scale.window/rewriteShare || sum > room {
			break
		}
		sum += c.bytes
		thin = c.gives
	}
	return thin
}

// total returns the switches of a saveset of so many bytes. What the run did not ask for lies as rate, in switches a MiB,
// says; a rate of 0: as all else.
func (l *layout) total(logical uint64, rate float64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.switches + uint64(len(l.reading))
	if logical <= l.bytes {
		return n
	}
	if rate == 0 && l.bytes > 0 {
		rate = float64(n) * (1 << 20) / float64(l.bytes)
	}
	return n + uint64(rate*float64(logical-l.bytes)/(1<<20))
}

// sealed returns the slots of a container of the run whose chunks are there to replace copies elsewhere, and where those
// are.
func (l *layout) sealed(dir *container.Directory) (slots []uint32, from map[container.ID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.moves) == 0 {
		return nil, nil
	}
	from = make(map[container.ID]bool)
	for slot := range uint32(dir.Rows()) {
		d := dir.Digest(slot)
		if id, ok := l.moves[d]; ok {
			slots = append(slots, slot)
			from[id] = false
			delete(l.moves, d)
		}
	}
	return slots, from
}

// takeOver gives the chunks of a container of the run that were stored anew the entries of their old copies, which nothing
// needs from then on. The container is in the index.
//
// INVARIANT: an entry is taken over only while no other run pins the container that it names, and none can pin that
// container until the index, and the locality cache, name the new copy. Who pins it later finds it overtaken, and asks the
// index again. So whoever relies on a chunk has the copy pinned that the index names.
func (r *Run) takeOver(ctx context.Context, dir *container.Directory) error {
	s := r.s
	slots, from := r.layout.sealed(dir)
	if len(slots) == 0 {
		return nil
	}
	for id := range from {
		from[id] = s.containers.beginMove(id)
	}
	defer s.containers.endMove(from)
	taken, err := s.index.Overtake(ctx, dir, slots, func(id container.ID) bool { return from[id] })
	if err != nil {
		return wrap("rewrite into", dir.ID().String(), err)
	}
	s.dirs.take(dir.ID(), taken)
	return nil
}

// beginMove keeps everybody from pinning a container whose entries are about to be taken over; false when anybody but the
// one run that asks has it pinned.
func (s *containerSet) beginMove(id container.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.m[id]
	if !ok || c.condemned || c.pins != 1 {
		return false
	}
	c.moving++
	c.was = true
	return true
}

// endMove lets containers be pinned again.
func (s *containerSet) endMove(ids map[container.ID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, moved := range ids {
		if c, ok := s.m[id]; ok && moved {
			c.moving--
		}
	}
	s.wakeLocked()
}

// take lets rows of a loaded directory answer for their chunks, whatever other containers have them.
func (c *dirCache) take(id container.ID, slots []uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.dirs[id]
	if !ok || e.elem == nil {
		return
	}
	for _, slot := range slots {
		d := e.dir.Digest(slot)
		c.byRow[rowKey(&d)] = rowRef{e.handle, slot}
	}
}

// switchRate returns the container switches a MiB of a saveset; 0 when they are not known.
func (s *Store) switchRate(id SavesetID) float64 {
	e, ok := s.sets.get(id)
	if !ok {
		return 0
	}
	return e.manifest.SwitchesPerMiB()
}
