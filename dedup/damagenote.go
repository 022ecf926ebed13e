package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// noteFrame puts a damaged frame on the damage list: its chunks are not had any more, so that they are stored again.
func (s *Store) noteFrame(ctx context.Context, dir *container.Directory, i uint32, cause error) bool {
	loc := Loc{dir.ID(), i}
	if s.damage.badPlace(loc) {
		return false
	}
	ctx = context.WithoutCancel(ctx) // whoever met it, all have to know
	r := damageRow{sort: damagedFrame, Damage: Damage{Container: dir.ID(), Kind: dir.Kind(), Frame: int32(i), Reason: reason(cause)}}
	f := dir.Frame(i)
	for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
		r.Digests = append(r.Digests, dir.Digest(slot))
	}
	r.Digests = s.withoutCopy(ctx, dir, i, r.Digests)
	s.disown(ctx, dir.ID())
	return s.note(r)
}

// withoutCopy leaves out the chunks of a frame that the index has elsewhere, in a container that counts.
func (s *Store) withoutCopy(ctx context.Context, dir *container.Directory, i uint32, ds []digest.Digest) []digest.Digest {
	places, err := s.indexed(ctx, ds)
	if err != nil {
		return ds
	}
	out := ds[:0:0]
	for j, at := range places {
		if at.dir == nil || at.loc() == (Loc{dir.ID(), i}) || s.damage.badPlace(at.loc()) {
			out = append(out, ds[j])
		}
	}
	return out
}

// disown lets other containers take over the chunks of one that holds damage: see the invariant of damageList.
func (s *Store) disown(ctx context.Context, id container.ID) {
	if err := s.index.ForgetContainer(ctx, id); err != nil {
		s.log.Warn("mark of a damaged container stays", "container", id.String(), "err", err)
	}
	s.containers.overtake(id)
}

// spoil puts a container whose directory is damaged on the damage list: nothing of it can be read, and what it held is
// stored again. What that was, the keeper of the list finds out.
func (s *Store) spoil(ctx context.Context, id container.ID, cause error) {
	s.disown(context.WithoutCancel(ctx), id)
	s.containers.spoil(id)
	s.dirs.forget(id)
	s.note(damageRow{sort: damagedContainer, unknown: true,
		Damage: Damage{Container: id, Frame: WholeContainer, Reason: reason(cause)}})
}

// noteShell puts a container on the list whose chunks can all be read, but which is not as it was written.
func (s *Store) noteShell(id container.ID, kind container.Kind, cause error) bool {
	return s.note(damageRow{sort: damagedShell, Damage: Damage{Container: id, Kind: kind, Frame: WholeContainer, Reason: reason(cause)}})
}

// noteLost puts chunks or nodes on the list that are referred to and that are not there.
func (s *Store) noteLost(ctx context.Context, kind container.Kind, ds []digest.Digest, cause error) bool {
	r := damageRow{sort: damagedReference, Damage: Damage{Kind: kind, Frame: WholeContainer, Digests: ds, Reason: reason(cause)}}
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := s.index.Lookup(ctx, ds, locs, ok); err == nil && ok[0] {
		r.Container = locs[0].Container
	}
	return s.note(r)
}

// noteObject puts a small object that does not open on the list.
func (s *Store) noteObject(name string, saveset SavesetID, cause error) bool {
	return s.note(damageRow{sort: damagedObject, Damage: Damage{Frame: WholeContainer, Object: name, Saveset: saveset, Reason: reason(cause)}})
}

// note adds a row, tells of it and has it written. It reports whether the row was new.
func (s *Store) note(r damageRow) bool {
	r.Found = s.opts.Now().UTC().Round(0)
	if !s.damage.add(r) {
		return false
	}
	s.damaged.Add(1)
	s.log.Error("damage", "container", r.Container.String(), "frame", r.Frame, "object", r.Object,
		"digests", len(r.Digests), "err", r.Reason)
	s.keeper.kick()
	return true
}

// maxReason bounds what a row says of its cause.
const maxReason = 500

func reason(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	return text[:min(len(text), maxReason)]
}

// overtake says that other containers may take over the chunks of one.
func (s *containerSet) overtake(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.was = true
	}
}
