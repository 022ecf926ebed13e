package client

import (
	"context"
	"net/url"

	"coffer/api"
)

// Store returns the state of the store.
func (c *Client) Store(ctx context.Context) (api.Store, error) {
	return fetch[api.Store](ctx, c, "/store", nil)
}

// Dismiss gives up a damaged record of a saveset.
func (c *Client) Dismiss(ctx context.Context, object string) error {
	return c.call(ctx, request{method: post, path: "/store/damage/dismiss", body: api.DismissRequest{Object: object}}, nil)
}

// Damage returns the damage list with whom it harms.
func (c *Client) Damage(ctx context.Context) (api.DamageReport, error) {
	return fetch[api.DamageReport](ctx, c, "/store/damage", nil)
}

// StartMaintenance queues a maintenance job.
func (c *Client) StartMaintenance(ctx context.Context, r api.MaintenanceRequest) (api.Maintenance, error) {
	return send[api.Maintenance](ctx, c, post, "/store/maintenance", r)
}

// MaintenanceJobs lists a page of maintenance jobs, newest first.
func (c *Client) MaintenanceJobs(ctx context.Context, f api.MaintenanceFilter) (api.Page[api.Maintenance], error) {
	return fetch[api.Page[api.Maintenance]](ctx, c, "/store/maintenance", values("kind", string(f.Kind), "state", string(f.State),
		"before", f.Before, "limit", number(f.Limit)))
}

// MaintenanceJob returns a maintenance job.
func (c *Client) MaintenanceJob(ctx context.Context, id string) (api.Maintenance, error) {
	return fetch[api.Maintenance](ctx, c, "/store/maintenance"+seg(id), nil)
}

// CancelMaintenance asks a maintenance job to stop.
func (c *Client) CancelMaintenance(ctx context.Context, id string) (api.Maintenance, error) {
	return send[api.Maintenance](ctx, c, post, "/store/maintenance"+seg(id)+"/cancel", nil)
}

// WatchMaintenance calls f for every event of a maintenance job, from its present state on, until it has ended, and
// returns it as it ended. Lost connections are opened anew; the error is f's, or says why it could not go on.
func (c *Client) WatchMaintenance(ctx context.Context, id string, f func(api.Event) error) (api.Maintenance, error) {
	var last api.Maintenance
	err := c.follow(ctx, func() (string, url.Values) { return "/store/maintenance" + seg(id) + "/events", nil },
		func(e api.Event) (done bool, err error) {
			if e.Maintenance != nil {
				last = *e.Maintenance
			}
			return last.State.Final(), f(e)
		})
	return last, err
}
