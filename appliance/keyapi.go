package appliance

import (
	"context"
	"slices"
	"unicode/utf8"

	"coffer/api"
	"coffer/api/server"
	"coffer/dedup"
	"coffer/dedup/keys"
)

// keyDesk implements server.StoreKeys.
type keyDesk struct{ *appliance }

var _ server.StoreKeys = keyDesk{}

// checkStorePassword holds the rules: length counts, nothing else does.
func checkStorePassword(password string) error {
	if utf8.RuneCountInString(password) < api.MinPassword {
		return api.Errorf(api.CodeWeakPassword, "a password of the store has at least %d characters", api.MinPassword).WithHint("several words make a good one")
	}
	return nil
}

// UnlockStore implements server.StoreKeys.
func (d keyDesk) UnlockStore(ctx context.Context, u api.StoreUnlock) (api.Store, error) {
	if err := d.store.unlock(ctx, u); err != nil {
		return api.Store{}, err
	}
	d.mount.restore(ctx)
	return storeDesk(d).Store(ctx)
}

// LockStore implements server.StoreKeys. The mount comes back with the next unlock.
func (d keyDesk) LockStore(ctx context.Context) (api.Store, error) {
	err := d.store.lock(func(s *dedup.Store) error {
		if job, ok := d.upkeep.Active(); ok {
			return api.Errorf(api.CodeInUse, "maintenance is active: %s", job.Kind).WithHint("wait for it, or cancel it")
		}
		return d.makeIdle(ctx, s)
	}, userOf(ctx))
	if err != nil {
		return api.Store{}, apiError(err)
	}
	return storeDesk(d).Store(ctx)
}

// makeIdle takes the mount away, and refuses where anybody else uses the store.
func (a *appliance) makeIdle(ctx context.Context, s *dedup.Store) error {
	if n := a.jobs.Active(); n > 0 {
		return api.Errorf(api.CodeInUse, "%d runs are active", n).WithHint("wait for them, or cancel them: coffer run list")
	}
	if err := a.exports.Detach(); err != nil {
		return exportError(err)
	}
	a.mount.stop()
	if st := s.Stats(); st.Runs+st.Views > 0 {
		a.mount.restore(ctx)
		a.exports.Attach(ctx, exportStore{a, s})
		return api.Errorf(api.CodeInUse, "savesets are being read").WithHint("wait for downloads to end")
	}
	return nil
}

// StoreKeys implements server.StoreKeys.
func (d keyDesk) StoreKeys(ctx context.Context) (api.StoreKeys, error) {
	store, err := d.store.get()
	if err != nil {
		return api.StoreKeys{}, told(api.CodeStoreLocked, err.Error(), "coffer store unlock")
	}
	return d.keysOf(ctx, store)
}

func (d keyDesk) keysOf(ctx context.Context, store *dedup.Store) (api.StoreKeys, error) {
	info, err := store.Keys(ctx)
	if err != nil {
		return api.StoreKeys{}, apiError(err)
	}
	out := api.StoreKeys{Encrypted: info.Encrypted, Openers: []api.Opener{}, Keys: make([]api.StoreKey, len(info.Keys))}
	for _, kind := range info.Openers {
		if name, ok := openerNames[kind]; ok {
			out.Openers = append(out.Openers, name)
		}
	}
	if slices.Contains(out.Openers, api.OpenerKeyFile) {
		out.KeyFile = d.conf.KeyFile()
	}
	for i, key := range info.Keys {
		out.Keys[i] = api.StoreKey{Number: key.Number, Current: key.Current, Encrypted: key.Encrypted,
			Containers: int64(key.Containers), Objects: int64(key.Objects)}
	}
	return out, nil
}

var openerNames = map[keys.Kind]api.Opener{
	keys.KindKeyFile: api.OpenerKeyFile, keys.KindPassword: api.OpenerPassword, keys.KindRecoveryKey: api.OpenerRecoveryKey,
}

// change does something to the keys of the open store and returns what they are then.
func (d keyDesk) change(ctx context.Context, do func(*dedup.Store) error) (out api.StoreKeys, err error) {
	err = d.store.withStore(func(s *dedup.Store) error {
		if err := do(s); err != nil {
			return keyError(err)
		}
		out, err = d.keysOf(ctx, s)
		return err
	})
	return out, err
}

// keyError is what the caller of a change of keys is told.
func keyError(err error) error {
	switch dedup.KindOf(err) {
	case dedup.Invalid:
		return told(api.CodeConflict, err.Error(), "see: coffer store key list")
	case dedup.InUse:
		return told(api.CodeInUse, err.Error(), "see: coffer store key list")
	}
	return apiError(err)
}

// withOpeners calls do with the sources of a request; a new key file takes its place when do has made it open the store.
func (d keyDesk) withOpeners(o api.StoreOpeners, do func(...keys.Source) error) error {
	var set []keys.Source
	if o.Password != "" {
		if err := checkStorePassword(o.Password); err != nil {
			return err
		}
		set = append(set, keys.Password([]byte(o.Password), keys.PasswordOptions{}))
	}
	if !o.KeyFile {
		return do(set...)
	}
	return replaceKeyFile(d.conf.KeyFile(), func(file keys.Source) error { return do(append(set, file)...) })
}

// SetStoreOpeners implements server.StoreKeys.
func (d keyDesk) SetStoreOpeners(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error) {
	return d.change(ctx, func(s *dedup.Store) error {
		return d.withOpeners(o, func(set ...keys.Source) error {
			c := dedup.OpenerChange{Set: set}
			for kind, name := range openerNames {
				if slices.Contains(o.Remove, name) {
					c.Remove = append(c.Remove, kind)
				}
			}
			return s.ChangeOpeners(ctx, c)
		})
	})
}

// NewRecoveryKey implements server.StoreKeys.
func (d keyDesk) NewRecoveryKey(ctx context.Context) (out api.RecoveryKey, err error) {
	_, err = d.change(ctx, func(s *dedup.Store) error {
		key, err := keys.NewRecoveryKey(nil)
		if err != nil {
			return err
		}
		out.RecoveryKey = key.Text()
		return s.ChangeOpeners(ctx, dedup.OpenerChange{Set: []keys.Source{key.Source()}})
	})
	if err != nil {
		return api.RecoveryKey{}, err
	}
	return out, nil
}

// RotateStoreKey implements server.StoreKeys. Small objects are sealed again in the background.
func (d keyDesk) RotateStoreKey(ctx context.Context) (api.StoreKeys, error) {
	return d.change(ctx, func(s *dedup.Store) error {
		_, err := s.RotateKey(ctx)
		if err == nil {
			d.store.settleKeys()
		}
		return err
	})
}

// EncryptStore implements server.StoreKeys.
func (d keyDesk) EncryptStore(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error) {
	return d.change(ctx, func(s *dedup.Store) error {
		if s.Encrypted() {
			return api.Errorf(api.CodeConflict, "the store is encrypted already")
		}
		err := d.withOpeners(o, func(set ...keys.Source) error {
			_, err := s.Encrypt(ctx, set...)
			return err
		})
		if err != nil {
			return err
		}
		d.store.settleKeys()
		return d.catalog.SetSetting(ctx, encryptedSetting, "yes")
	})
}

// DestroyStoreKey implements server.StoreKeys.
func (d keyDesk) DestroyStoreKey(ctx context.Context, number uint32) (api.StoreKeys, error) {
	return d.change(ctx, func(s *dedup.Store) error { return s.DestroyKey(ctx, number) })
}
