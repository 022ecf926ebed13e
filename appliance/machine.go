package appliance

import (
	"context"
	"encoding/hex"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/dedup"
)

// backend is the brain behind the REST API.
type backend struct {
	*accounts
	clients
	tasks
	runs
	savesets
	auditLog
	machine
}

var _ server.Backend = (*backend)(nil)

func newBackend(a *appliance) *backend {
	return &backend{newAccounts(a), clients{a}, tasks{a}, runs{a}, savesets{a}, auditLog{a}, machine{a}}
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

// Store implements server.Machine.
func (m machine) Store(ctx context.Context) (api.Store, error) {
	out := api.Store{Name: storeName, Path: m.conf.StoreDir(), ActiveRuns: int64(m.jobs.Active())}
	m.space(&out)
	pools, err := m.catalog.Pools(ctx)
	if err != nil {
		return out, apiError(err)
	}
	for _, p := range pools {
		out.LogicalBytes += p.Bytes
	}
	store, err := m.store.get()
	if err != nil {
		out.State, out.Reason = api.StoreLocked, err.Error()
		return out, nil
	}
	stats := store.Stats()
	domain := store.Domain()
	out.Domain, out.Encrypted = domain.ID.String(), true // it was opened with a key file: a plain store does not take one
	out.Savesets, out.Containers = int64(stats.Savesets), int64(stats.Containers)
	out.StoredBytes, out.DamagedObjects = int64(stats.StoredBytes), stats.Damaged
	out.ReserveBytes = reserve(int64(m.conf.Store.Reserve))
	out.State, out.Reason = storeState(stats)
	return out, nil
}

func reserve(configured int64) int64 {
	if configured == 0 {
		return dedup.DefaultReserve
	}
	return configured
}

// storeState is DOMAIN's "Store" rule 2, as far as this version can know: checks come later.
func storeState(s dedup.Stats) (api.StoreState, string) {
	switch {
	case s.Free == 0:
		return api.StoreUnwritable, "the disk is full up to the reserve"
	case s.Damaged > 0:
		return api.StoreRed, strconv.FormatInt(s.Damaged, 10) + " objects could not be read since the start"
	}
	return api.StoreGreen, ""
}

// space fills in what the store's file system has.
func (m machine) space(out *api.Store) {
	var st unix.Statfs_t
	if unix.Statfs(m.conf.StoreDir(), &st) == nil { // without it the numbers stay 0
		out.FreeBytes, out.CapacityBytes = int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	}
}

// Mount implements server.Machine.
func (m machine) Mount(context.Context) (api.Mount, error) { return m.mount.status(), nil }

// SetMount implements server.Machine.
func (m machine) SetMount(ctx context.Context, on bool) (api.Mount, error) {
	return m.mount.set(ctx, on)
}
