package dedup

import (
	"context"
	"slices"
	"strings"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// objects walks all savesets. What a saveset that is deleted meanwhile lacks is no damage.
func (c *check) objects(ctx context.Context) error {
	s := c.s
	w := s.newTreeWalk()
	w.resolve = true
	met := make(map[digest.Digest]struct{})
	w.met = func(d digest.Digest) { met[d] = struct{}{} }
	var lost []lostReference
	w.lost = func(_ context.Context, _ found, child recipe.Child, why error) error {
		lost = append(lost, lostReference{child, why})
		return nil
	}
	start := s.damage.now()
	c.meter.phase("objects", "savesets", 0)
	seen := make(map[SavesetID]bool)
	for todo := s.sets.list(); len(todo) > 0; todo = s.unseen(seen) {
		for _, m := range todo {
			seen[m.ID] = true
			lost = lost[:0]
			for _, root := range []digest.Digest{m.Root.Digest, m.Side.Digest} {
				if _, err := w.root(ctx, root); err != nil {
					return stoppedOr(ctx, err)
				}
			}
			if err := c.savesetLost(ctx, m.ID, lost); err != nil {
				return err
			}
			c.rep.Savesets++
			c.meter.add(1)
		}
	}
	c.rep.References = w.references
	if c.blind = w.blind; !w.blind {
		c.rep.Healthy += s.rest(met, start)
	}
	now := s.opts.Now().UTC().Round(0)
	return s.saveChecks(ctx, func(o *checkObject) { o.Objects = now })
}

func stoppedOr(ctx context.Context, err error) error {
	if e := stopped(ctx); e != nil {
		return e
	}
	return err
}

// unseen returns the savesets that came since the walk began.
func (s *Store) unseen(seen map[SavesetID]bool) []Manifest {
	return slices.DeleteFunc(s.sets.list(), func(m Manifest) bool { return seen[m.ID] })
}

// lostReference is a reference that leads nowhere.
type lostReference struct {
	child recipe.Child
	why   error
}

// savesetLost puts what a saveset lacks on the list, after a second look.
func (c *check) savesetLost(ctx context.Context, id SavesetID, lost []lostReference) error {
	s := c.s
	for _, kind := range []container.Kind{container.Data, container.Node} {
		var ds []digest.Digest
		var why error
		for _, l := range lost {
			if l.child.Node == (kind == container.Node) && !s.damage.has(l.child.Digest) {
				ds, why = append(ds, l.child.Digest), l.why
			}
		}
		for part := range slices.Chunk(ds, maxRowDigests) {
			e, ok := s.sets.get(id)
			if !ok || s.sets.state(e).Deleted {
				return nil
			}
			s.noteLost(ctx, kind, part, why)
		}
	}
	return nil
}

// rest puts digests to sleep that no saveset refers to: they are damage that harms nobody. A run that is open since before
// they came onto the list may still refer to them.
func (s *Store) rest(met map[digest.Digest]struct{}, start uint64) int {
	s.mu.Lock()
	oldest := start
	for r := range s.runs {
		oldest = min(oldest, r.damage)
	}
	s.mu.Unlock()
	return s.damage.rest(func(r *damageRow, d digest.Digest) bool {
		_, ok := met[d]
		return !ok && r.version <= oldest
	})
}

// savesetOf returns whose manifest or state an object is, by its name.
func savesetOf(name string) SavesetID {
	for _, prefix := range []string{manifestPrefix, statePrefix} {
		if rest, ok := strings.CutPrefix(parseForm(name), prefix); ok {
			hexID, _, _ := strings.Cut(rest, "/")
			id, _ := ParseSavesetID(hexID)
			return id
		}
	}
	return SavesetID{}
}

// known reports whether the store took an object in when it was opened, as far as that matters for reading savesets.
func (s *Store) known(name string) bool {
	id := savesetOf(name)
	if id.IsZero() {
		return true
	}
	e, ok := s.sets.get(id)
	return ok && s.sets.state(e).Doubt == ""
}
