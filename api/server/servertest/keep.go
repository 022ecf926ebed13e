package servertest

import (
	"context"
	"slices"
	"time"

	"coffer/api"
)

// DeleteSaveset deletes a saveset that is not locked.
func (b *Backend) DeleteSaveset(_ context.Context, id string, force bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.savesets, func(s api.Saveset) bool { return s.ID == id })
	switch {
	case i < 0:
		return notFound("saveset", id)
	case b.savesets[i].Locked:
		return api.Errorf(api.CodeConflict, "saveset %s is locked", id).WithHint("coffer saveset unlock %s", id)
	case !force:
		return api.Errorf(api.CodeConflict, "the end of life of saveset %s has not come", id).WithHint("--force deletes it all the same")
	}
	b.savesets = slices.Delete(b.savesets, i, i+1)
	return b.Fail
}

// LockSaveset locks.
func (b *Backend) LockSaveset(ctx context.Context, id string, locked bool) (api.Saveset, error) {
	return b.change(id, func(s *api.Saveset) { s.Locked = locked })
}

// MakeImmutable sets the time.
func (b *Backend) MakeImmutable(ctx context.Context, id string, until time.Time) (api.Saveset, error) {
	return b.change(id, func(s *api.Saveset) { s.ImmutableUntil = &until })
}

func (b *Backend) change(id string, edit func(*api.Saveset)) (api.Saveset, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.savesets, func(s api.Saveset) bool { return s.ID == id })
	if i < 0 {
		return api.Saveset{}, notFound("saveset", id)
	}
	edit(&b.savesets[i])
	return b.savesets[i], b.Fail
}
