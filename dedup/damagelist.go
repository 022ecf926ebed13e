package dedup

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// maxAbove bounds the nodes above damage that are kept in memory, at about 70 bytes each. Beyond it every node counts as
// one of them: runs send all nodes again.
const maxAbove = 256 << 10

// damageSort is what a row of the list is about. Part of the format.
type damageSort string

const (
	damagedFrame     damageSort = "frame"     // one frame of a container whose directory is whole
	damagedContainer damageSort = "container" // the directory cannot be read
	damagedShell     damageSort = "shell"     // header, footer or hash: all that is in the container can be read
	damagedReference damageSort = "reference" // chunks or nodes that are nowhere
	damagedObject    damageSort = "object"    // a small object
)

// damageRow is one row of the list, and one object of the store while it is durable.
type damageRow struct {
	number  uint64 // of its object; 0: not written yet
	stale   bool   // the object does not say what the row says
	version uint64 // of the list when the row came
	sort    damageSort
	// Damage.Digests are those that are missed. dormant ones have no healthy copy either, but no saveset refers to them;
	// nodes that broken runs left may.
	Damage
	dormant []digest.Digest
	unknown bool // what the container held is not known yet
}

// open reports whether the row is damage that somebody should care for. One that is not keeps a bad place from being had.
func (r *damageRow) open() bool {
	return r.sort == damagedShell || r.sort == damagedObject || r.unknown || len(r.Digests) > 0
}

// spoils reports whether the row's container as a whole must not be relied on.
func (r *damageRow) spoils() bool { return r.sort == damagedContainer }

// damageList is what is known to be damaged, and which nodes stand above it.
//
// Each addition raises the version. A run is told what stands on the list at the moment (Have), and held to what stood on
// it when the run began (what it refers to): an answer stays good until its run ends.
//
// INVARIANT: a bad place gets onto the list only after the index has durably lost its container's mark and the container
// counts as overtaken, as in Condemn: others may take its chunks over.
type damageList struct {
	any atomic.Bool // false: there is nothing at all, and nobody need take the lock

	mu      sync.Mutex
	rows    []*damageRow             // guarded by mu, as is all below
	bad     map[Loc]uint64           // frames that nobody may rely on, by the version that they came with
	missed  map[digest.Digest]uint64 // digests without a healthy copy, dormant ones too
	above   map[digest.Digest]uint64 // nodes above them
	all     bool                     // above would be too large: every node counts
	version uint64
	fresh   uint64                     // the version that above was made for
	changed chan struct{}              // closed, and made anew, whenever fresh changes
	loose   bool                       // above may hold nodes that are not above damage any more
	fixed   map[digest.Digest]struct{} // nodes that proved to be above no damage while it is being made
	gone    []uint64                   // objects of rows that are no more
	next    uint64                     // last number given to an object
}

func newDamageList() *damageList {
	return &damageList{bad: make(map[Loc]uint64), missed: make(map[digest.Digest]uint64),
		above: make(map[digest.Digest]uint64), changed: make(chan struct{})}
}

// add puts a row on the list; false when it says nothing new. Digests that are missed already are left out of it.
func (l *damageList) add(r damageRow) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.knows(&r) {
		return false
	}
	r.Digests = slices.DeleteFunc(slices.Clone(r.Digests), func(d digest.Digest) bool {
		_, ok := l.missed[d]
		return ok && !l.wake(d)
	})
	if r.sort == damagedReference && len(r.Digests) == 0 {
		return false
	}
	l.version++
	r.version, r.stale = l.version, true
	l.enter(&r)
	return true
}

// knows reports whether a row about the same place is there. It needs mu held.
func (l *damageList) knows(r *damageRow) bool {
	switch r.sort {
	case damagedFrame:
		_, ok := l.bad[r.loc()]
		return ok
	case damagedReference:
		return false
	}
	return slices.ContainsFunc(l.rows, func(o *damageRow) bool {
		return o.sort == r.sort && o.Container == r.Container && o.Object == r.Object
	})
}

func (r *damageRow) loc() Loc { return Loc{r.Container, uint32(r.Frame)} }

// wake makes a dormant digest missed in its own row; true when it was dormant. It needs mu held. Either way the digest
// stands in one row only.
func (l *damageList) wake(d digest.Digest) bool {
	for _, r := range l.rows {
		if i := slices.Index(r.dormant, d); i >= 0 {
			r.dormant = slices.Delete(r.dormant, i, i+1)
			delete(l.missed, d)
			r.stale = true
			return true
		}
	}
	return false
}

// enter needs mu held.
func (l *damageList) enter(r *damageRow) {
	l.rows = append(l.rows, r)
	if r.sort == damagedFrame {
		l.bad[r.loc()] = r.version
	}
	for _, ds := range [][]digest.Digest{r.Digests, r.dormant} {
		for _, d := range ds {
			l.missed[d] = r.version
		}
	}
	l.any.Store(true)
}

// heal takes digests that have a healthy copy, and which the index names, off the list; it returns how many were on it.
func (l *damageList) heal(healthy func(digest.Digest) bool) int {
	return l.sift(func(r *damageRow) (n int) {
		n = len(r.Digests)
		r.Digests = slices.DeleteFunc(r.Digests, healthy)
		n -= len(r.Digests)
		r.dormant = slices.DeleteFunc(r.dormant, healthy)
		return n
	})
}

// rest puts digests that no saveset refers to to sleep; it returns how many.
func (l *damageList) rest(unused func(*damageRow, digest.Digest) bool) int {
	return l.sift(func(r *damageRow) (n int) {
		r.Digests = slices.DeleteFunc(r.Digests, func(d digest.Digest) bool {
			if !unused(r, d) {
				return false
			}
			r.dormant = append(r.dormant, d)
			n++
			return true
		})
		return n
	})
}

// drop takes rows off the list as a whole: their places are as they should be, or gone.
func (l *damageList) drop(which func(*damageRow) bool) int {
	n := 0
	l.sift(func(r *damageRow) int {
		if which(r) {
			n++
			r.Digests, r.dormant, r.unknown, r.sort = nil, nil, false, ""
		}
		return 0
	})
	return n
}

// sift changes rows, and brings the rest of the list level with them.
func (l *damageList) sift(change func(*damageRow) int) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.missed)
	for _, r := range l.rows {
		digests, dormant, sort := len(r.Digests), len(r.dormant), r.sort
		n += change(r)
		r.stale = r.stale || digests != len(r.Digests) || dormant != len(r.dormant) || sort != r.sort
	}
	l.rows = slices.DeleteFunc(l.rows, func(r *damageRow) bool {
		empty := r.sort == "" || r.sort == damagedReference && len(r.Digests)+len(r.dormant) == 0
		if empty && r.number != 0 {
			l.gone = append(l.gone, r.number)
		}
		return empty
	})
	l.recount(before)
	return n
}

// recount makes bad and missed anew from the rows. It needs mu held.
func (l *damageList) recount(missedBefore int) {
	clear(l.bad)
	clear(l.missed)
	rows := l.rows
	l.rows = nil
	for _, r := range rows {
		l.enter(r)
	}
	if len(l.missed) == 0 && !l.unsure() {
		l.setAbove(nil, false, l.version)
	} else if len(l.missed) < missedBefore {
		l.loose = true
	}
	l.any.Store(len(l.rows) > 0)
}

// unsure reports whether a row does not know yet what it harms. It needs mu held.
func (l *damageList) unsure() bool {
	return slices.ContainsFunc(l.rows, func(r *damageRow) bool { return r.unknown })
}

// setAbove replaces the nodes above damage. Those that were above already keep their version. It needs mu held.
func (l *damageList) setAbove(nodes map[digest.Digest]struct{}, all bool, version uint64) {
	above := make(map[digest.Digest]uint64, len(nodes))
	for d := range nodes {
		if _, ok := l.fixed[d]; ok {
			continue
		}
		above[d] = version
		if v, ok := l.above[d]; ok {
			above[d] = v
		}
	}
	l.above, l.all, l.fresh, l.loose = above, all, version, false
	close(l.changed)
	l.changed = make(chan struct{})
}

// settled reports whether above is that of the list as it is, and how to wait for a change.
func (l *damageList) settled() (ok bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fresh == l.version, l.changed
}

// badPlace reports whether nobody may rely on a frame.
func (l *damageList) badPlace(loc Loc) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.bad[loc]
	return ok
}

// has reports whether a digest has no healthy copy.
func (l *damageList) has(d digest.Digest) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.missed[d]
	return ok
}

// bars reports whether what is at a place may not be had: it, or something below it, is damaged. While that is not known,
// no node may.
func (l *damageList) bars(at found) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.bad[at.loc()]; ok {
		return true
	}
	if at.dir.Kind() != container.Node {
		return false
	}
	_, ok := l.above[at.digest()]
	return ok || l.all || l.fresh != l.version
}

// barred is bars as of an earlier version of the list.
func (l *damageList) barred(at found, version uint64) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.bad[at.loc()]; ok && v <= version {
		return true
	}
	v, ok := l.above[at.digest()]
	return ok && v <= version
}

func (at found) digest() digest.Digest { return at.dir.Digest(at.slot) }

// now returns the version of the list.
func (l *damageList) now() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

// list returns the rows that are open, by place.
func (l *damageList) list() []Damage {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Damage
	for _, r := range l.rows {
		if r.open() {
			out = append(out, r.copy())
		}
	}
	slices.SortStableFunc(out, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Frame, b.Frame))
	})
	return out
}

func (r *damageRow) copy() Damage {
	d := r.Damage
	d.Digests = slices.Clone(d.Digests)
	return d
}

// places returns the containers that have rows of a sort.
func (l *damageList) places(sorts ...damageSort) []container.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []container.ID
	for _, r := range l.rows {
		if r.Container != 0 && slices.Contains(sorts, r.sort) {
			out = append(out, r.Container)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// wanted returns the digests that are missed and their kinds, dormant ones left out.
func (l *damageList) wanted() map[digest.Digest]container.Kind {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[digest.Digest]container.Kind)
	for _, r := range l.rows {
		for _, d := range r.Digests {
			out[d] = r.Kind
		}
	}
	return out
}
