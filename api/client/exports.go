package client

import (
	"context"

	"coffer/api"
)

// Exports lists all exports, the oldest first.
func (c *Client) Exports(ctx context.Context) ([]api.Export, error) {
	p, err := fetch[api.Page[api.Export]](ctx, c, "/exports", nil)
	return p.Items, err
}

// Export returns an export.
func (c *Client) Export(ctx context.Context, id string) (api.Export, error) {
	return fetch[api.Export](ctx, c, "/exports"+seg(id), nil)
}

// AddExport serves a disk of a saveset.
func (c *Client) AddExport(ctx context.Context, s api.ExportSpec) (api.Export, error) {
	return send[api.Export](ctx, c, post, "/exports", s)
}

// DropExport ends an export and removes what was written to it; force cuts connections off.
func (c *Client) DropExport(ctx context.Context, id string, force bool) error {
	r := request{method: del, path: "/exports" + seg(id)}
	if force {
		r.query = values("force", "true")
	}
	return c.call(ctx, r, nil)
}

// CommitExport starts to make a saveset of what was written to an export, and returns the run.
func (c *Client) CommitExport(ctx context.Context, id string) (api.Run, error) {
	return send[api.Run](ctx, c, post, "/exports"+seg(id)+"/commit", nil)
}
