package dedup

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/keys"
)

// ChunkSource gives chunks and nodes from elsewhere: another store of the same dedup domain, a tape.
type ChunkSource interface {
	Domain() digest.DomainID
	// Chunk returns the plain bytes of a chunk or node; the caller verifies them. Kind NotFound.
	Chunk(ctx context.Context, kind container.Kind, d digest.Digest) ([]byte, error)
}

// ChunkFinder is the optional ability of a ChunkSource to find many chunks at once, before they are asked for.
type ChunkFinder interface {
	Find(ctx context.Context, ds []digest.Digest) error
}

// HealReport is what one Heal did.
type HealReport struct {
	// Again are digests that proved healthy when their place was read again, Local those that have a second copy in the
	// store, which counts now. Salvaged were in containers that are damaged as a whole, Fetched came from a source.
	Again, Local, Salvaged, Fetched int
	FetchedBytes                    int64
	// Unreferenced digests left the list because no saveset refers to them any more.
	Unreferenced int
	// Containers were damaged as a whole, were written anew as far as they could be read, and are gone.
	Containers int
	// Objects are small objects that were healed or were not needed any more.
	Objects int
	// Left are the rows that stay on the list.
	Left int
	Took time.Duration
}

// Heal takes off the damage list what it can, cheapest first: places that prove healthy when they are read again and
// digests that nothing refers to, second copies within the store, whole records of containers that are damaged as a whole,
// then the sources in order. Runs, views and deletions go on beside it. Kind InUse when another maintenance operation runs.
// It may be ended at any time: what is healed is healed.
func (s *Store) Heal(ctx context.Context, from []ChunkSource, progress func(Progress)) (HealReport, error) {
	ctx, end, err := s.maintain(ctx, healing)
	if err != nil {
		return HealReport{}, err
	}
	defer end()
	h := &heal{s: s, from: from, meter: newMeter(progress)}
	start := time.Now()
	err = stoppedOr(ctx, h.run(ctx))
	if e := s.saveDamage(context.WithoutCancel(ctx)); err == nil {
		err = e
	}
	s.keeper.kick()
	h.rep.Left = len(s.damage.list())
	h.rep.Took = time.Since(start)
	return h.rep, wrap("heal store", "", err)
}

// heal is one Heal.
type heal struct {
	s     *Store
	from  []ChunkSource
	meter *meter
	rep   HealReport
}

func (h *heal) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{h.objects, h.readAgain, h.second, h.salvage, h.fetch} {
		if err := stopped(ctx); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// left returns how many digests are missed.
func (h *heal) left() int { return len(h.s.damage.wanted()) }

// objects heals the keyring's copies, and small objects that can be made anew or are not needed.
func (h *heal) objects(ctx context.Context) error {
	s := h.s
	h.rep.Objects += s.forgetObjects(ctx)
	for _, d := range s.damage.list() {
		if d.Object == "" {
			continue
		}
		err := s.healObject(ctx, d.Object)
		if err == nil {
			s.damage.drop(func(r *damageRow) bool { return r.sort == damagedObject && r.Object == d.Object })
			h.rep.Objects++
		} else if k := KindOf(err); k != Damaged && k != InUse && k != NotFound {
			return err
		}
	}
	return nil
}

// healObject heals one small object, by the name of its blob. Kind Damaged: it cannot be.
func (s *Store) healObject(ctx context.Context, form string) error {
	name := parseForm(form)
	family := familyOf(name)
	if strings.HasPrefix(name, keys.Prefix) {
		return wrap("mend keyring", name, keys.Mend(ctx, s.blob, s.ring))
	}
	if strings.HasPrefix(name, copyPrefix) {
		return s.healCopy(ctx, name)
	}
	if _, err := s.openForm(ctx, family.kind, name, form); err == nil && s.known(name) {
		return nil
	}
	if err := s.dropForm(ctx, family.kind, name, form); KindOf(err) != Damaged {
		return err
	}
	if copyName(name) != "" {
		switch err := s.healFromCopy(ctx, family.kind, name, form); {
		case err == nil && !s.known(name):
			return &Error{Kind: Damaged, Op: "heal object", Object: name, Err: errTakenIn}
		case KindOf(err) != Damaged:
			return err
		}
	}
	return s.makeAnew(ctx, family.kind, name, form)
}

var errTakenIn = errors.New("it is whole again; the store takes it in when it opens anew")

// makeAnew writes a small object anew that is known, or is not needed. Kind Damaged: it is needed, and not known.
func (s *Store) makeAnew(ctx context.Context, kind, name, bad string) error {
	switch kind {
	case damageKind, checkKind:
		return s.deleteObject(ctx, name) // what they said is found again
	case epochKind:
		if name != epochName(s.epoch) {
			return s.deleteObject(ctx, name)
		}
		return s.rewriteEpoch(ctx)
	case tombstoneKind, tombstonePartKind:
		return s.rebury(ctx, name)
	case domainKind:
		return s.rewriteDomain(ctx, name, bad)
	case stateKind:
		return s.rewriteState(ctx, name, bad)
	}
	return &Error{Kind: Damaged, Op: "heal object", Object: name}
}

// formsThere returns the forms of an object that exist, whatever key they name.
func (s *Store) formsThere(ctx context.Context, name string) object {
	for o, err := range s.objects(ctx, name) {
		if err == nil && o.name == name {
			return o
		}
	}
	return object{name: name}
}

// dropForm removes a damaged form of an object that has a whole one. Kind Damaged: it has none.
func (s *Store) dropForm(ctx context.Context, kind, name, bad string) error {
	s.sealing.Lock()
	defer s.sealing.Unlock()
	whole := false
	for _, form := range s.formsThere(ctx, name).blobs {
		if form != bad {
			_, err := s.openForm(ctx, kind, name, form)
			whole = whole || err == nil
		}
	}
	if !whole {
		return &Error{Kind: Damaged, Op: "heal object", Object: name}
	}
	return s.deleteForms(ctx, []string{bad})
}

// rewriteDomain puts a domain as it is in memory in place of the object that is damaged.
func (s *Store) rewriteDomain(ctx context.Context, name, bad string) error {
	id, err := digest.ParseDomainID(strings.TrimPrefix(name, domainPrefix))
	d, known := s.domains.get(id)
	if err != nil || !known {
		return &Error{Kind: Damaged, Op: "heal object", Object: name}
	}
	o := d.object()
	o.Primary = id == s.domain.ID
	return s.rewriteObject(ctx, domainKind, name, bad, o)
}

// rewriteState puts the newest state of a saveset as it is in memory in place of the object that is damaged, and removes one
// that has a later one.
func (s *Store) rewriteState(ctx context.Context, name, bad string) error {
	if s.superseded(name) {
		return s.deleteObject(ctx, name)
	}
	e, known := s.sets.get(savesetOf(name))
	if !known {
		return &Error{Kind: Damaged, Op: "heal object", Object: name}
	}
	e.change.Lock()
	defer e.change.Unlock()
	st := s.sets.state(e)
	if st.Doubt != "" || stateName(e.manifest.ID, st.Number) != name {
		return &Error{Kind: Damaged, Op: "heal object", Object: name}
	}
	return s.rewriteObject(ctx, stateKind, name, bad, st.object(e.manifest.ID))
}

// rewriteEpoch takes the epoch again that this writer has: the names of containers are what fences, until it is there.
func (s *Store) rewriteEpoch(ctx context.Context) error {
	name := epochName(s.epoch)
	if err := s.deleteObject(ctx, name); err != nil {
		return err
	}
	return s.putObject(ctx, epochKind, name, epochObject{objectVersion, s.epoch, s.opts.Owner, s.opts.Now().UTC()})
}

// superseded reports whether a state has a later one that counts.
func (s *Store) superseded(name string) bool {
	_, hexNumber, _ := strings.Cut(strings.TrimPrefix(name, statePrefix), "/")
	n, ok := parseNumber(hexNumber)
	e, known := s.sets.get(savesetOf(name))
	if !ok || !known {
		return false
	}
	st := s.sets.state(e)
	return st.Doubt == "" && st.Number > n
}

// readAgain looks once more at all that is on the list, and at what refers to it.
func (h *heal) readAgain(ctx context.Context) error {
	s := h.s
	ids := s.damage.places(damagedFrame, damagedContainer, damagedShell, damagedReference)
	if len(ids) == 0 && h.left() == 0 {
		return nil
	}
	before := h.left()
	h.meter.phase("read again", "containers", int64(len(ids)))
	c := &check{s: s, o: CheckOptions{Deep: true}, meter: newMeter(nil), pace: new(pacer)}
	for _, id := range ids {
		if s.containers.has(id) {
			if err := c.container(ctx, id); err != nil {
				return err
			}
		}
		h.meter.add(1)
	}
	if err := s.settleDamage(ctx); err != nil {
		return err
	}
	h.rep.Again = before - h.left()
	before = h.left()
	c.meter = h.meter
	if err := c.objects(ctx); err != nil {
		return err
	}
	h.rep.Unreferenced = max(0, before-h.left())
	return nil
}

// second looks through the directories of all containers for other copies. A container that has one is entered into the
// index again: what lies in a bad place gives way.
func (h *heal) second(ctx context.Context) error {
	s := h.s
	before := h.left()
	if before == 0 {
		return nil
	}
	ids := s.containers.without(nil)
	h.meter.phase("second copies", "containers", int64(len(ids)))
	for _, id := range ids {
		if err := stopped(ctx); err != nil {
			return err
		}
		h.meter.add(1)
		if !s.containers.usable(id) {
			continue
		}
		dir, err := container.OpenDirectory(ctx, s.blob, id, s.ring)
		if err != nil {
			continue // a check tells
		}
		if s.hasHealthy(dir, s.damage.wanted()) {
			if err := s.enterAgain(ctx, dir); err != nil {
				return err
			}
		}
	}
	h.rep.Local = before - h.left()
	return nil
}

// hasHealthy reports whether a container has one of the digests in a place that is not known to be bad.
func (s *Store) hasHealthy(dir *container.Directory, wanted map[digest.Digest]container.Kind) bool {
	for d := range wanted {
		if slot, ok := dir.Lookup(d); ok && !s.damage.badPlace(Loc{dir.ID(), dir.Row(slot).Frame}) {
			return true
		}
	}
	return false
}

// fetch asks the sources for what is left.
func (h *heal) fetch(ctx context.Context) error {
	for _, src := range h.from {
		if src.Domain() != h.s.domain.ID {
			return &Error{Kind: WrongDomain, Op: "heal store", Object: src.Domain().String(),
				Err: errors.New("the source is of another dedup domain")}
		}
		wanted := h.s.damage.wanted()
		if len(wanted) == 0 {
			return nil
		}
		if err := h.fetchFrom(ctx, src, wanted); err != nil {
			return err
		}
	}
	return nil
}

func (h *heal) fetchFrom(ctx context.Context, src ChunkSource, wanted map[digest.Digest]container.Kind) error {
	ds := slices.SortedFunc(maps.Keys(wanted), digest.Digest.Compare)
	h.meter.phase("fetch", "chunks", int64(len(ds)))
	if f, ok := src.(ChunkFinder); ok {
		if err := f.Find(ctx, ds); err != nil {
			return wrap("find chunks in source", "", err)
		}
	}
	before := h.left()
	m := newMender(h.s, h.s.domain)
	defer m.abandon()
	for _, d := range ds {
		if err := stopped(ctx); err != nil {
			return err
		}
		h.meter.add(1)
		b, err := src.Chunk(ctx, wanted[d], d)
		if err != nil || !m.is(wanted[d], d, b) {
			if ctx.Err() == nil {
				h.s.log.Info("a source has no healthy copy", "chunk", d.String(), "err", err)
			}
			continue
		}
		if err := m.add(ctx, wanted[d], d, b); err != nil {
			return err
		}
		h.rep.FetchedBytes += int64(len(b))
	}
	err := m.finish(ctx)
	h.rep.Fetched += before - h.left()
	return err
}
