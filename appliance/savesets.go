package appliance

import (
	"context"
	"errors"
	"strings"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/dedup"
)

// savesets implements server.Savesets.
type savesets struct{ *appliance }

var _ server.Savesets = savesets{}

const (
	idLength  = 32 // hex digits of a saveset's id
	minPrefix = 6
)

// Savesets implements server.Savesets.
func (s savesets) Savesets(ctx context.Context, f api.SavesetFilter) (api.Page[api.Saveset], error) {
	list, err := s.catalog.Savesets(ctx, catalog.SavesetFilter{Client: f.Client, Task: f.Task, Clients: f.Clients, Before: f.Before, Limit: f.Limit + 1})
	if err != nil {
		return api.Page[api.Saveset]{}, apiError(err)
	}
	return page(list, f.Limit, apiSaveset, func(v catalog.Saveset) string { return v.ID }), nil
}

// Saveset implements server.Savesets.
func (s savesets) Saveset(ctx context.Context, id string) (api.Saveset, error) {
	prefix := strings.ToLower(id)
	if len(prefix) < minPrefix || len(prefix) > idLength || strings.Trim(prefix, "0123456789abcdef") != "" {
		return api.Saveset{}, api.Errorf(api.CodeNotFound, "there is no saveset %q", id).
			WithHint("an id has %d hex digits, of which the first %d may do; see: coffer saveset list", idLength, minPrefix)
	}
	found, err := s.catalog.SavesetsByPrefix(ctx, prefix)
	switch {
	case err != nil:
		return api.Saveset{}, apiError(err)
	case len(found) == 0:
		return api.Saveset{}, api.Errorf(api.CodeNotFound, "there is no saveset %q", id).WithHint("see: coffer saveset list")
	case len(found) > 1:
		return api.Saveset{}, api.Errorf(api.CodeConflict, "more than one saveset has an id that starts with %q", id).WithHint("give more digits")
	}
	v, err := s.verdict(ctx, found[0].ID)
	if err != nil {
		return api.Saveset{}, apiError(err)
	}
	out := apiSaveset(v.Saveset)
	out.Kept = mapped(v.Kept, apiKept)
	out.SealedBy = s.sealer(ctx, out.ID)
	return out, nil
}

// OpenTree implements server.Savesets.
func (s savesets) OpenTree(ctx context.Context, id string) (server.Tree, error) {
	store, err := s.store.get()
	if err != nil {
		return nil, lockedError(err)
	}
	sid, err := dedup.ParseSavesetID(id)
	if err != nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no saveset %q", id)
	}
	view, err := s.taskKeys.view(ctx, store, sid)
	if err != nil {
		return nil, apiError(err)
	}
	if sealed, ok := view.(sealedView); ok && s.taskKeys.get(sealed.by) == nil {
		return nil, errors.Join(keyNeeded(id), view.Close())
	}
	return &tree{view: view}, nil
}

func lockedError(err error) error {
	return api.Errorf(api.CodeStoreLocked, "%v", err).WithHint("see: coffer store status, and the log of the appliance")
}
