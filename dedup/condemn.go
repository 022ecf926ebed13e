package dedup

import (
	"context"

	"coffer/dedup/container"
)

// Condemn marks a container for removal: no run can pin it any more, and Have answers "missing" for its chunks. Readers go
// on. Kinds InUse when a run has it pinned or it is condemned already, NotFound when it is not there.
//
// From now on other containers may take over its chunks' entries in the index. INVARIANT: before that can be, the index
// has durably lost the mark that says that the container's rows are the ones that count.
func (s *Store) Condemn(ctx context.Context, id container.ID) error {
	refuse := func(k Kind) error { return &Error{Kind: k, Op: "condemn container", Object: id.String()} }
	switch found, free := s.containers.mayCondemn(id); {
	case !found:
		return refuse(NotFound)
	case !free:
		return refuse(InUse)
	}
	if err := s.index.ForgetContainer(ctx, id); err != nil {
		return wrap("condemn container", id.String(), err)
	}
	if !s.containers.condemn(id) {
		return refuse(InUse)
	}
	return nil
}

// condemnAll condemns those of the containers that may be, with one sync, and returns them.
func (s *Store) condemnAll(ctx context.Context, ids []container.ID) (condemned []container.ID, err error) {
	free := make([]container.ID, 0, len(ids))
	for _, id := range ids {
		if _, ok := s.containers.mayCondemn(id); ok {
			free = append(free, id)
		}
	}
	if len(free) == 0 {
		return nil, nil
	}
	if err := s.index.ForgetContainer(ctx, free...); err != nil {
		return nil, wrap("condemn containers", "", err)
	}
	for _, id := range free {
		if s.containers.condemn(id) {
			condemned = append(condemned, id)
		}
	}
	return condemned, nil
}

// Reprieve takes a Condemn back.
func (s *Store) Reprieve(id container.ID) { s.containers.reprieve(id) }

// canonical reports whether every row of a container is the place that the index names. An error means no: then the
// index is asked for each.
func (s *Store) canonical(id container.ID) bool {
	yes, err := s.index.Canonical(id)
	return err == nil && yes && !s.containers.overtaken(id)
}
