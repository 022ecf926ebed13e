package servertest

import (
	"context"
	"slices"

	"coffer/api"
)

// StorePassword opens the store of a Backend that is locked.
const StorePassword = "open sesame, please"

// sampleRecoveryKey is what every call makes.
const sampleRecoveryKey = "0123S-4567T-89ABV-CDEFW-GHJKX-MNPQY-RSTVZ-WXYZ0"

func sampleKeys() api.StoreKeys {
	return api.StoreKeys{Encrypted: true, Openers: []api.Opener{api.OpenerKeyFile}, KeyFile: "/var/lib/coffer/keys/store.key",
		Keys: []api.StoreKey{{Number: 1, Current: true, Encrypted: true, Containers: 12, Objects: 9}}}
}

// UnlockStore opens the store with StorePassword.
func (b *Backend) UnlockStore(ctx context.Context, u api.StoreUnlock) (api.Store, error) {
	b.mu.Lock()
	fail := b.Fail
	b.mu.Unlock()
	switch {
	case fail != nil:
		return api.Store{}, fail
	case u.Password != StorePassword:
		return api.Store{}, api.Errorf(api.CodeWrongStoreKey, "wrong password of the store")
	}
	return b.Store(ctx)
}

// LockStore says that the store is locked.
func (b *Backend) LockStore(ctx context.Context) (api.Store, error) {
	s, err := b.Store(ctx)
	s.State, s.Reason = api.StoreLocked, "it was locked"
	return s, err
}

// StoreKeys returns the sample's keys as they were changed.
func (b *Backend) StoreKeys(context.Context) (api.StoreKeys, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys, nil
}

func (b *Backend) changeKeys(change func(*api.StoreKeys)) (api.StoreKeys, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.Fail != nil {
		return api.StoreKeys{}, b.Fail
	}
	b.keys.Openers, b.keys.Keys = slices.Clone(b.keys.Openers), slices.Clone(b.keys.Keys)
	change(&b.keys)
	return b.keys, nil
}

// SetStoreOpeners changes the sample's openers.
func (b *Backend) SetStoreOpeners(_ context.Context, o api.StoreOpeners) (api.StoreKeys, error) {
	return b.changeKeys(func(k *api.StoreKeys) {
		add := func(set bool, opener api.Opener) {
			if set && !slices.Contains(k.Openers, opener) {
				k.Openers = append(k.Openers, opener)
			}
		}
		add(o.Password != "", api.OpenerPassword)
		add(o.KeyFile, api.OpenerKeyFile)
		k.Openers = slices.DeleteFunc(k.Openers, func(x api.Opener) bool { return slices.Contains(o.Remove, x) })
		k.KeyFile = ""
		if slices.Contains(k.Openers, api.OpenerKeyFile) {
			k.KeyFile = sampleKeys().KeyFile
		}
	})
}

// NewRecoveryKey returns always the same.
func (b *Backend) NewRecoveryKey(context.Context) (api.RecoveryKey, error) {
	_, err := b.changeKeys(func(k *api.StoreKeys) {
		if !slices.Contains(k.Openers, api.OpenerRecoveryKey) {
			k.Openers = append(k.Openers, api.OpenerRecoveryKey)
		}
	})
	return api.RecoveryKey{RecoveryKey: sampleRecoveryKey}, err
}

// RotateStoreKey adds a key.
func (b *Backend) RotateStoreKey(context.Context) (api.StoreKeys, error) {
	return b.changeKeys(func(k *api.StoreKeys) {
		last := &k.Keys[len(k.Keys)-1]
		objects := last.Objects
		last.Current, last.Objects = false, 0
		k.Keys = append(k.Keys, api.StoreKey{Number: last.Number + 1, Current: true, Encrypted: true, Objects: objects})
	})
}

// EncryptStore refuses: the sample is encrypted.
func (b *Backend) EncryptStore(context.Context, api.StoreOpeners) (api.StoreKeys, error) {
	return api.StoreKeys{}, api.Errorf(api.CodeConflict, "the store is encrypted already")
}

// DestroyStoreKey destroys a key that nothing is under.
func (b *Backend) DestroyStoreKey(_ context.Context, number uint32) (out api.StoreKeys, err error) {
	at := -1
	var key api.StoreKey
	b.mu.Lock()
	for i, k := range b.keys.Keys {
		if k.Number == number {
			at, key = i, k
		}
	}
	b.mu.Unlock()
	switch {
	case at < 0:
		return out, api.Errorf(api.CodeNotFound, "there is no store key %d", number)
	case key.Current || key.Containers > 0:
		return out, api.Errorf(api.CodeInUse, "%d containers are under store key %d", key.Containers, number)
	}
	return b.changeKeys(func(k *api.StoreKeys) { k.Keys = slices.Delete(k.Keys, at, at+1) })
}
