package client

import (
	"context"

	"coffer/api"
)

// VMs lists the virtual machines of a libvirtd that a client's agent reaches; an empty URI is its own machine's.
func (c *Client) VMs(ctx context.Context, host, uri string) (api.VMList, error) {
	return fetch[api.VMList](ctx, c, "/clients"+seg(host)+"/vms", values("uri", uri))
}

// SyncVMs makes tasks for all virtual machines of a host, and keeps them in step.
func (c *Client) SyncVMs(ctx context.Context, host string, s api.VMSync) (api.VMSyncReport, error) {
	return send[api.VMSyncReport](ctx, c, post, "/clients"+seg(host)+"/vms/tasks", s)
}
