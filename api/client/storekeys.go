package client

import (
	"context"
	"strconv"

	"coffer/api"
)

// UnlockStore opens a store that is locked. It may take long where the index has to be made anew.
func (c *Client) UnlockStore(ctx context.Context, u api.StoreUnlock) (api.Store, error) {
	return send[api.Store](ctx, c, post, "/store/unlock", u)
}

// LockStore closes the store.
func (c *Client) LockStore(ctx context.Context) (api.Store, error) {
	return send[api.Store](ctx, c, post, "/store/lock", nil)
}

// StoreKeys says what opens the store, and what is under which key.
func (c *Client) StoreKeys(ctx context.Context) (api.StoreKeys, error) {
	return fetch[api.StoreKeys](ctx, c, "/store/keys", nil)
}

// SetStoreOpeners changes what opens the store.
func (c *Client) SetStoreOpeners(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error) {
	return send[api.StoreKeys](ctx, c, put, "/store/openers", o)
}

// NewRecoveryKey makes a recovery key, in the place of the one there was.
func (c *Client) NewRecoveryKey(ctx context.Context) (api.RecoveryKey, error) {
	return send[api.RecoveryKey](ctx, c, post, "/store/recovery-key", nil)
}

// RotateStoreKey makes a new current store key.
func (c *Client) RotateStoreKey(ctx context.Context) (api.StoreKeys, error) {
	return send[api.StoreKeys](ctx, c, post, "/store/keys", nil)
}

// EncryptStore switches encryption on.
func (c *Client) EncryptStore(ctx context.Context, o api.StoreOpeners) (api.StoreKeys, error) {
	return send[api.StoreKeys](ctx, c, post, "/store/encryption", o)
}

// DestroyStoreKey destroys an old store key.
func (c *Client) DestroyStoreKey(ctx context.Context, number uint32) (api.StoreKeys, error) {
	return send[api.StoreKeys](ctx, c, del, "/store/keys/"+strconv.FormatUint(uint64(number), 10), nil)
}
