package dedup

import (
	"context"
	"errors"
	"fmt"
)

// Dismiss gives up a small object of a saveset that is damaged and cannot be healed, by its name on the damage list: an act
// of somebody who answers for it.
//
// Of a state that cannot be read, the one before it counts from then on, but for a lock: what the lost one said of deletion
// or terms is not known, so that nothing goes until somebody takes the lock off. With its manifest a saveset is given up;
// that is refused (Immutable, Retained) while a state of it that can be read says that it must stay, and (Damaged) while its
// newest state cannot be read. Kind NotFound: it is not on the list.
func (s *Store) Dismiss(ctx context.Context, name, cause string) error {
	if err := s.alive(); err != nil {
		return err
	}
	row, ok := s.damage.object(name)
	if !ok || row.Saveset.IsZero() {
		return &Error{Kind: NotFound, Op: "dismiss", Object: name}
	}
	give := s.dismissManifest
	if familyOf(parseForm(name)).kind == stateKind {
		give = s.dismissState
	}
	if err := give(ctx, row, cause); err != nil {
		return err
	}
	s.damage.drop(func(r *damageRow) bool { return r.sort == damagedObject && r.Object == name })
	s.log.Warn("a damaged object was given up", "object", name, "saveset", row.Saveset.String(), "cause", cause)
	return s.saveDamage(ctx)
}

// object returns the row of a small object.
func (l *damageList) object(name string) (Damage, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.rows {
		if r.sort == damagedObject && r.Object == name {
			return r.copy(), true
		}
	}
	return Damage{}, false
}

// dismissState writes a state behind the one that cannot be read. That one stays: its number is used.
func (s *Store) dismissState(ctx context.Context, row Damage, cause string) error {
	e, ok := s.sets.get(row.Saveset)
	if !ok {
		return &Error{Kind: NotFound, Op: "dismiss", Object: row.Object, Err: errors.New("its manifest cannot be read either")}
	}
	e.change.Lock()
	defer e.change.Unlock()
	old := s.sets.state(e)
	switch name := parseForm(row.Object); {
	case s.superseded(name):
		return s.deleteObject(ctx, name)
	case old.Doubt == "":
		return &Error{Kind: InUse, Op: "dismiss", Object: row.Object, Err: errors.New("what it says is known: heal it")}
	}
	next := old
	next.Doubt, next.Locked, next.Cause, next.Time = "", true, cause, s.opts.Now()
	if _, err := s.writeState(ctx, e, old, next.normal()); err != nil {
		return err
	}
	return s.deleteObject(ctx, parseForm(row.Object))
}

// dismissManifest removes a manifest, after the states of its saveset were asked.
func (s *Store) dismissManifest(ctx context.Context, row Damage, _ string) error {
	if _, ok := s.sets.get(row.Saveset); ok {
		return &Error{Kind: InUse, Op: "dismiss", Object: row.Object, Err: errors.New("its saveset is open: it was read before it was damaged")}
	}
	var newest stateObject
	for o, err := range s.objects(ctx, statePrefix+row.Saveset.String()+"/") {
		if err != nil {
			return wrap("list states", "", err)
		}
		var st stateObject // a member that is left out is zero, and not what the state before said
		if err := s.readObject(ctx, stateKind, o, &st); err != nil {
			return err
		}
		newest = st
	}
	switch now := s.opts.Now(); {
	case newest.Deleted:
	case now.Before(newest.ImmutableUntil):
		return &Error{Kind: Immutable, Op: "dismiss", Object: row.Object, Err: fmt.Errorf("until %v", newest.ImmutableUntil)}
	case newest.Locked:
		return &Error{Kind: Retained, Op: "dismiss", Object: row.Object}
	}
	return s.deleteObject(ctx, parseForm(row.Object))
}
