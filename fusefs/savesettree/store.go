package savesettree

import (
	"context"

	"coffer/dedup"
)

// FromStore is the source of all savesets of a store.
func FromStore(s *dedup.Store) Source { return storeSource{s} }

type storeSource struct{ store *dedup.Store }

func (s storeSource) Savesets(ctx context.Context) ([]Saveset, error) {
	all, err := s.store.Savesets(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Saveset, len(all))
	for i := range all {
		m := &all[i]
		out[i] = Saveset{ID: m.ID, Client: m.Client, Task: m.Task, Level: m.Level, Started: m.Started, Root: m.Root.Digest}
	}
	return out, nil
}

func (s storeSource) Open(ctx context.Context, id dedup.SavesetID) (View, error) {
	return s.store.View(ctx, id)
}
