package dedup

import (
	"context"
	"errors"
)

// Delete deletes a saveset: a state that says so, durable when it returns; from then on nobody reads it. Its space comes
// back with the next Collect. Kinds NotFound (also when it is deleted already), Retained (it is locked), Immutable, InUse
// (a run or a reader leases it).
func (s *Store) Delete(ctx context.Context, id SavesetID, cause string) error {
	return s.deleteIf(ctx, id, cause, func(Manifest) error { return nil })
}

// deleteIf deletes a saveset if may allows it: asked under the lock of its states, so that what may saw is still so.
func (s *Store) deleteIf(ctx context.Context, id SavesetID, cause string, may func(Manifest) error) error {
	if err := s.alive(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e, ok := s.sets.get(id)
	if !ok {
		return &Error{Kind: NotFound, Op: "delete saveset", Object: id.String()}
	}
	e.change.Lock()
	defer e.change.Unlock()
	m := s.sets.manifest(e)
	switch {
	case m.State.Deleted:
		return &Error{Kind: NotFound, Op: "delete saveset", Object: id.String(), Err: errors.New("it is deleted")}
	case m.State.Locked:
		return &Error{Kind: Retained, Op: "delete saveset", Object: id.String()}
	}
	if err := may(m); err != nil {
		return err
	}
	_, err := s.changeState(ctx, e, func(st State) State {
		st.Deleted, st.Cause = true, cause
		return st
	})
	return err
}

// PurgeOptions say what to purge.
type PurgeOptions struct {
	// IDs are the savesets, in the order in which they go.
	IDs []SavesetID
	// May is asked for each right before it is deleted, with the manifest of that moment, while no state of it can
	// change; an error keeps it and is reported. nil allows all. It must not call the store.
	May func(Manifest) error
	// Enough is asked before each deletion: true ends the purge. nil: never enough.
	Enough func() bool
	// Cause is noted in each state.
	Cause string
}

// PurgeReport tells what a purge did.
type PurgeReport struct {
	Deleted []SavesetID
	// Kept are the savesets that were not deleted, and why: May's error, or one of Kind NotFound, Retained, Immutable, InUse.
	Kept map[SavesetID]error
	// Enough is true when Enough ended the purge.
	Enough bool
}

// Purge deletes savesets of a list, in its order, each only if it may go at that moment. One that may not is left and
// reported; any other error ends the purge, and the report tells what was deleted until then. Their space comes back with
// the next Collect.
func (s *Store) Purge(ctx context.Context, o PurgeOptions) (PurgeReport, error) {
	r := PurgeReport{Kept: make(map[SavesetID]error)}
	for _, id := range o.IDs {
		if o.Enough != nil && o.Enough() {
			r.Enough = true
			return r, nil
		}
		var refused error
		err := s.deleteIf(ctx, id, o.Cause, func(m Manifest) error {
			if o.May != nil {
				refused = o.May(m)
			}
			return refused
		})
		switch k := KindOf(err); {
		case err == nil:
			r.Deleted = append(r.Deleted, id)
		case refused != nil || k == NotFound || k == Retained || k == Immutable || k == InUse:
			r.Kept[id] = err
		default:
			return r, err
		}
	}
	return r, nil
}
