package appliance

import (
	"context"
	"errors"
	"fmt"

	"coffer/api"
	"coffer/dedup"
	"coffer/dedup/keys"
)

// reindex closes the store while nobody uses it, and opens it with an index made anew.
func (a *appliance) reindex(ctx context.Context, progress func(dedup.Progress)) error {
	// Not the caller's context: the mount comes back, too, when the work was cancelled.
	after := context.WithoutCancel(ctx)
	return a.store.reindex(ctx, progress, func(s *dedup.Store) error { return a.makeIdle(after, s) }, func() { a.mount.restore(after) })
}

// reindex closes the store and opens it with an index made anew; idle says whether that harms nobody, opened is called when
// the store is open again. When ctx ends before, the store is opened in the background: what the index lacks is entered then,
// as after every start.
func (k *storeKeeper) reindex(ctx context.Context, progress func(dedup.Progress), idle func(*dedup.Store) error, opened func()) error {
	if !k.changing.TryLock() {
		return errBusy
	}
	keep := false // the lock, for a goroutine
	defer func() {
		if !keep {
			k.changing.Unlock()
		}
	}()
	was := k.now.Load()
	if was.reason != nil {
		return was.reason
	}
	by, err := k.again(ctx, was)
	if err != nil {
		return err
	}
	if err := idle(was.store); err != nil {
		return err
	}
	k.now.Store(&kept{reason: fmt.Errorf("%w: its index is being made anew", errStoreLocked)})
	k.opts.Logger.Info("index is made anew: the store is closed until it is done", "store", k.conf.StoreDir())
	if err := was.close(); err != nil {
		k.opts.Logger.Warn("store not closed cleanly", "error", err) // opening it tells whether that matters
	}
	err = k.open(ctx, by, func(o *dedup.Options) { o.Reindex, o.ReindexProgress = true, progress })
	switch {
	case err == nil:
		opened()
		return nil
	case ctx.Err() == nil:
		k.shut(err)
		return err
	}
	keep = true
	k.tasks.Go(func() {
		defer k.changing.Unlock()
		if err := k.open(k.life, by); err != nil {
			k.shut(err)
			return
		}
		opened()
	})
	return err
}

// again returns what opens an open store once more. Its openers may have changed since: then what opened it does not do it
// again.
func (k *storeKeeper) again(ctx context.Context, was *kept) (opener, error) {
	for _, by := range []opener{func(place) (keys.Source, error) { return was.key, nil }, k.ownKey} {
		found, err := k.look(ctx, was.dir)
		if err != nil {
			return nil, err
		}
		key, err := by(found)
		if errors.Is(err, errNeedsSecret) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch _, err := keys.Load(ctx, was.dir, key); {
		case err == nil:
			return func(place) (keys.Source, error) { return key, nil }, nil
		case !errors.Is(err, keys.ErrWrongKey):
			return nil, err
		}
	}
	return nil, api.Errorf(api.CodeConflict, "the store's password was changed since it was opened").
		WithHint("lock the store and unlock it with the new one before: coffer store lock, coffer store unlock")
}
