package dedup

import (
	"context"
	"sync"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
	"coffer/dedup/recipe"
)

// damageRetry is when the keeper of the damage list tries again what failed: a full disk, mostly.
const damageRetry = time.Minute

// damageKeeper writes the damage list and finds the nodes above it, in a goroutine of the store.
type damageKeeper struct {
	wake   chan struct{}
	over   <-chan struct{} // closed when it ends
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startDamageKeeper(s *Store) *damageKeeper {
	ctx, cancel := context.WithCancel(context.Background())
	k := &damageKeeper{wake: make(chan struct{}, 1), over: ctx.Done(), cancel: cancel}
	k.wg.Go(func() { s.keepDamage(ctx, k.wake) })
	k.kick()
	return k
}

// kick has the list written, and above made anew where it must be. A nil keeper is one that has not begun.
func (k *damageKeeper) kick() {
	if k == nil {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *damageKeeper) stop() {
	if k == nil {
		return
	}
	k.cancel()
	k.wg.Wait()
}

func (s *Store) keepDamage(ctx context.Context, wake <-chan struct{}) {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			if err := s.saveDamage(context.Background()); err != nil {
				s.log.Warn("the damage list could not be written: the next check will find it again", "err", err)
			}
			return
		case <-wake:
		case <-again:
		}
		again = nil
		err := s.saveDamage(ctx)
		if err == nil {
			err = s.settleDamage(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("damage list", "err", err)
			again = time.After(damageRetry)
		}
	}
}

// settleDamage finds the nodes above damage, if they are not known, and what containers held that cannot be read.
func (s *Store) settleDamage(ctx context.Context) error {
	for s.damage.needsWalk(s.idle()) {
		if err := s.findAbove(ctx); err != nil {
			return err
		}
		if err := s.saveDamage(ctx); err != nil {
			return err
		}
	}
	return nil
}

// idle reports whether no run is open.
func (s *Store) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs) == 0
}

// needsWalk reports whether above is out of date, or too large while nobody is in a hurry.
func (l *damageList) needsWalk(idle bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fresh != l.version || l.unsure() || l.loose && idle
}

// waitSettled waits until the nodes above damage are known.
func (s *Store) waitSettled(ctx context.Context) error {
	for {
		ok, changed := s.damage.settled()
		if ok {
			return nil
		}
		s.keeper.kick()
		select {
		case <-changed:
		case <-s.keeper.over:
			return &Error{Kind: Closed, Op: "use store"}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// findAbove walks all nodes of the store, those that broken runs left too.
//
// INVARIANT: a node container that comes meanwhile is walked, or cover looks at it when the walk is over.
func (s *Store) findAbove(ctx context.Context) error {
	l := s.damage
	version, unsure := l.beginWalk()
	a := &aboveWalk{s: s, walk: s.newTreeWalk(), above: make(map[digest.Digest]struct{}), known: make(map[container.ID]bool)}
	a.walk.resolve = unsure
	if unsure {
		a.walk.lost = a.lost
	}
	for {
		ids := s.containers.without(nil)
		for _, id := range ids {
			if err := a.container(ctx, id); err != nil {
				l.endWalk()
				return err
			}
		}
		if s.finishAbove(a, version, unsure) {
			return nil
		}
	}
}

func (l *damageList) beginWalk() (version uint64, unsure bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fixed = make(map[digest.Digest]struct{})
	return l.version, l.unsure()
}

func (l *damageList) endWalk() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fixed = nil
}

// finishAbove takes the result over, unless containers came that were not walked.
func (s *Store) finishAbove(a *aboveWalk, version uint64, unsure bool) bool {
	l := s.damage
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range s.containers.without(nil) {
		if _, ok := a.known[id]; !ok {
			return false
		}
	}
	l.setAbove(a.above, len(a.above) > maxAbove, version)
	l.fixed = nil
	if unsure {
		l.nameLost(a.missing, version)
	}
	return true
}

// nameLost says of the containers that cannot be read what of them is missed; of one that came onto the list later than
// version the walk need not have seen it. It needs mu held.
func (l *damageList) nameLost(missing map[container.ID][]lostRow, version uint64) {
	for _, r := range append([]*damageRow(nil), l.rows...) {
		if !r.unknown || r.version > version {
			continue
		}
		r.unknown, r.stale = false, true
		l.attach(r, missing[r.Container])
	}
}

// attach enters digests that a container held and that are missed. What a row does not hold goes into more of them. It
// needs mu held.
func (l *damageList) attach(r *damageRow, lost []lostRow) {
	for _, x := range lost {
		if _, ok := l.missed[x.digest]; ok {
			continue
		}
		if len(r.Digests) == maxRowDigests {
			next := &damageRow{sort: damagedReference, stale: true, version: r.version, Damage: r.Damage}
			next.Digests = nil
			l.rows = append(l.rows, next)
			r = next
		}
		r.Kind = x.kind
		r.Digests = append(r.Digests, x.digest)
		l.missed[x.digest] = r.version
	}
}

type lostRow struct {
	digest digest.Digest
	kind   container.Kind
}

// aboveWalk is one search for the nodes above damage.
type aboveWalk struct {
	s       *Store
	walk    *treeWalk
	above   map[digest.Digest]struct{}
	known   map[container.ID]bool // containers that were looked at
	missing map[container.ID][]lostRow
}

// container walks the nodes of a container, those that the index names.
func (a *aboveWalk) container(ctx context.Context, id container.ID) error {
	if _, ok := a.known[id]; ok {
		return nil
	}
	kind, err := container.Peek(ctx, a.s.blob, id)
	a.known[id] = true
	if k := kindFromBelow(err); k == Damaged || k == NotFound {
		return nil // on the list, or gone
	}
	if err != nil || kind != container.Node {
		return wrap("open container", id.String(), err)
	}
	dir, err := a.s.directory(ctx, id)
	if err != nil || dir == nil {
		return err
	}
	named, err := a.s.namedRows(ctx, dir)
	if err != nil {
		return err
	}
	for slot := range uint32(dir.Rows()) {
		if !named(slot) {
			continue
		}
		if err := a.node(ctx, found{dir: dir, slot: slot}); err != nil {
			return err
		}
	}
	return nil
}

func (a *aboveWalk) node(ctx context.Context, at found) error {
	d := at.digest()
	harmed, err := a.walk.from(ctx, recipe.Child{Digest: d, Node: true}, at)
	if err == nil && harmed && len(a.above) <= maxAbove {
		a.above[d] = struct{}{}
	}
	return err
}

// namedRows tells which rows of a container the index names: a node that it does not name is dead. Before the container is
// entered, all of them count.
func (s *Store) namedRows(ctx context.Context, dir *container.Directory) (func(slot uint32) bool, error) {
	entered, err := s.index.HasContainer(dir.ID())
	if err != nil {
		return nil, wrap("look up index", dir.ID().String(), err)
	}
	if !entered {
		return func(uint32) bool { return true }, nil
	}
	ds := make([]digest.Digest, dir.Rows())
	for slot := range ds {
		ds[slot] = dir.Digest(uint32(slot))
	}
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return nil, wrap("look up index", dir.ID().String(), err)
	}
	return func(slot uint32) bool { return ok[slot] && locs[slot].Container == dir.ID() && locs[slot].Slot == slot }, nil
}

// lost notes what cannot be read any more, for the container that held it. A dead node may refer to what is gone.
func (a *aboveWalk) lost(ctx context.Context, from found, c recipe.Child, _ error) error {
	locs, ok := make([]index.Loc, 2), make([]bool, 2)
	ds := []digest.Digest{c.Digest, c.Digest}
	if from.dir != nil {
		ds[1] = from.digest()
	}
	if err := a.s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return wrap("look up index", c.Digest.String(), err)
	}
	if !ok[0] || !ok[1] {
		return nil
	}
	if a.missing == nil {
		a.missing = make(map[container.ID][]lostRow)
	}
	kind := container.Data
	if c.Node {
		kind = container.Node
	}
	a.missing[locs[0].Container] = append(a.missing[locs[0].Container], lostRow{c.Digest, kind})
	return nil
}

// cover brings the nodes above damage level with a node container that is about to be entered: its nodes are above damage
// exactly if a child is. What is below them went all the way into the index before, or was just read from this container.
func (s *Store) cover(ctx context.Context, dir *container.Directory) error {
	if dir.Kind() != container.Node || !s.damage.any.Load() {
		return nil
	}
	here := make(map[digest.Digest]struct{})
	return s.eachChildren(ctx, dir, func(d digest.Digest, kids []recipe.Child) {
		s.damage.judge(d, kids, here)
		here[d] = struct{}{}
	})
}

// eachChildren tells of the children of each node of a container, in their order. Damaged frames are left out: they are on the
// list, and not had.
func (s *Store) eachChildren(ctx context.Context, dir *container.Directory, tell func(d digest.Digest, kids []recipe.Child)) error {
	for i := range uint32(dir.Frames()) {
		plain, err := s.plain(ctx, dir, i)
		if KindOf(err) == Damaged {
			continue
		}
		if err != nil {
			return err
		}
		f := dir.Frame(i)
		for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
			row := dir.Row(slot)
			node, err := recipe.ParseClear(plain[row.Offset : row.Offset+row.Length])
			if err != nil {
				return wrap("read node", row.Digest.String(), err)
			}
			tell(row.Digest, node.Children)
		}
	}
	return nil
}

// judge decides whether a node is above damage by its children, which were judged before. Those that are here have a
// healthy copy now.
func (l *damageList) judge(d digest.Digest, kids []recipe.Child, here map[digest.Digest]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range kids {
		_, missed := l.missed[c.Digest]
		if _, ok := here[c.Digest]; ok {
			missed = false
		}
		_, above := l.above[c.Digest]
		if !missed && !above {
			continue
		}
		if _, ok := l.above[d]; !ok {
			l.above[d] = l.version
			l.all = l.all || len(l.above) > maxAbove
		}
		return
	}
	delete(l.above, d)
	if l.fixed != nil {
		l.fixed[d] = struct{}{}
	}
}
