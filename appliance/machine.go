package appliance

import (
	"context"
	"encoding/hex"
	"os"
	"strconv"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
)

// backend is the brain behind the REST API.
type backend struct {
	*accounts
	clients
	tasks
	vms
	runs
	savesets
	exportDesk
	guests
	auditLog
	machine
	storeDesk
	keyDesk
}

var _ server.Backend = (*backend)(nil)

func newBackend(a *appliance) *backend {
	return &backend{newAccounts(a), clients{a}, tasks{a}, vms{a}, runs{a}, savesets{a}, exportDesk{a}, guests{a}, auditLog{a}, machine{a}, storeDesk{a}, keyDesk{a}}
}

// auditLog implements server.Audit.
type auditLog struct{ *appliance }

var _ server.Audit = auditLog{}

// Record implements server.Audit.
func (l auditLog) Record(ctx context.Context, e api.AuditEntry) error {
	return apiError(l.catalog.AddAudit(ctx, catalog.AuditEntry{Time: e.Time, User: e.User, Remote: e.Remote, Action: e.Action, Object: e.Object,
		OK: e.OK, Detail: e.Detail}))
}

// AuditLog implements server.Audit.
func (l auditLog) AuditLog(ctx context.Context, f api.AuditFilter) (api.Page[api.AuditEntry], error) {
	q := catalog.AuditFilter{User: f.User, Action: f.Action, Since: f.Since, Limit: f.Limit + 1}
	if f.Before != "" {
		n, err := strconv.ParseInt(f.Before, 10, 64)
		if err != nil || n <= 0 {
			return api.Page[api.AuditEntry]{}, api.Errorf(api.CodeBadRequest, "%q is not a cursor of the audit log", f.Before)
		}
		q.Before = n
	}
	list, err := l.catalog.Audit(ctx, q)
	if err != nil {
		return api.Page[api.AuditEntry]{}, apiError(err)
	}
	return page(list, f.Limit, apiAudit, func(e catalog.AuditEntry) string { return strconv.FormatInt(e.ID, 10) }), nil
}

// machine implements server.Machine.
type machine struct{ *appliance }

var _ server.Machine = machine{}

// System implements server.Machine.
func (m machine) System(context.Context) (api.System, error) {
	host, err := os.Hostname()
	fp := m.authority.Fingerprint()
	return api.System{Name: host, Version: api.Version, API: api.APIVersion, StartedAt: m.started.UTC(), Time: m.opts.Now().UTC(),
		CASHA256: hex.EncodeToString(fp[:]), SMS: m.smsAddress()}, err
}

// Mount implements server.Machine.
func (m machine) Mount(context.Context) (api.Mount, error) { return m.mount.status(), nil }

// SetMount implements server.Machine.
func (m machine) SetMount(ctx context.Context, on bool) (api.Mount, error) {
	return m.mount.set(ctx, on)
}
