package client

import (
	"context"

	"coffer/api"
)

// Guests lists the virtual machines that run from savesets or are being restored, the oldest first.
func (c *Client) Guests(ctx context.Context) ([]api.Guest, error) {
	p, err := fetch[api.Page[api.Guest]](ctx, c, "/machines", nil)
	return p.Items, err
}

// Guest returns one, by its id or the name that it alone has.
func (c *Client) Guest(ctx context.Context, key string) (api.Guest, error) {
	return fetch[api.Guest](ctx, c, "/machines"+seg(key), nil)
}

// BootGuest has a host start a machine on a saveset; Guest tells when it runs.
func (c *Client) BootGuest(ctx context.Context, b api.GuestBoot) (api.Guest, error) {
	return send[api.Guest](ctx, c, post, "/machines/boot", b)
}

// RestoreGuest has a host make a machine in a storage pool; Guest tells how far it is.
func (c *Client) RestoreGuest(ctx context.Context, r api.GuestRestore) (api.Guest, error) {
	return send[api.Guest](ctx, c, post, "/machines/restore", r)
}

// MoveGuest has the host copy a guest's disks to a storage pool; Guest tells how far it is.
func (c *Client) MoveGuest(ctx context.Context, key string, m api.GuestMove) (api.Guest, error) {
	return send[api.Guest](ctx, c, post, "/machines"+seg(key)+"/move", m)
}

// ResetGuest ends a guest and boots it again on its overlays as they are.
func (c *Client) ResetGuest(ctx context.Context, key string) (api.Guest, error) {
	return send[api.Guest](ctx, c, post, "/machines"+seg(key)+"/reset", nil)
}

// DropGuest ends a guest and removes what it wrote; force does so whatever the host says.
func (c *Client) DropGuest(ctx context.Context, key string, force bool) error {
	r := request{method: del, path: "/machines" + seg(key)}
	if force {
		r.query = values("force", "true")
	}
	return c.call(ctx, r, nil)
}
