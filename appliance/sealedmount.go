package appliance

import (
	"context"
	"errors"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
)

// mountSource shows a store's savesets below the mount, sealed ones while their key is held.
type mountSource struct {
	savesettree.Source
	a     *appliance
	store *dedup.Store
}

// Open implements savesettree.Source.
func (m mountSource) Open(ctx context.Context, id dedup.SavesetID) (savesettree.View, error) {
	v, err := m.a.taskKeys.view(ctx, m.store, id)
	if err != nil {
		return nil, err
	}
	if sealed, ok := v.(sealedView); ok {
		if m.a.taskKeys.get(sealed.by) == nil {
			m.a.log.Warn("a sealed saveset was asked for below the mount, and its key is not here", "saveset", id, "key", sealed.by)
		}
		return mountView{sealed}, nil
	}
	return v, nil
}

// mountView tells the kernel of a missing key in its own words.
type mountView struct{ sealedView }

// Node implements savesettree.View.
func (v mountView) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := v.sealedView.Node(ctx, d)
	return b, noKey(err)
}

// Chunk implements savesettree.View.
func (v mountView) Chunk(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := v.sealedView.Chunk(ctx, d)
	return b, noKey(err)
}

func noKey(err error) error {
	if errors.Is(err, errNeedsKey) {
		return fusefs.ErrNoKey
	}
	return err
}
