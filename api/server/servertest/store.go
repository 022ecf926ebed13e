package servertest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"coffer/api"
)

// sampleMaintenance is a daily maintenance that went well.
func sampleMaintenance() []api.Maintenance {
	var out []api.Maintenance
	at := Epoch.Add(6 * time.Hour)
	for i, k := range []api.MaintenanceKind{api.MaintenanceGC, api.MaintenanceCheck, api.MaintenanceUsage} {
		start, end := at.Add(time.Duration(i)*time.Minute), at.Add(time.Duration(i)*time.Minute+40*time.Second)
		out = append(out, api.Maintenance{ID: fmt.Sprintf("m-%04d", i+1), Kind: k, State: api.RunSuccess, Trigger: api.TriggerDaily,
			QueuedAt: start, StartedAt: &start, EndedAt: &end})
	}
	out[0].Report.GC = &api.GCReport{Savesets: 3, MarkedChunks: 4321, DeadChunks: 100, Deleted: 2, Copied: 1, Kept: 12, FreedBytes: 64 << 20,
		CopiedBytes: 5 << 20, MemoryBytes: 1 << 20, MarkSeconds: 1.5, SweepSeconds: 30, Complete: true}
	out[1].Options.Share = 0.05
	out[1].Report.Check = &api.CheckReport{Containers: 1, Frames: 130, Bytes: 32 << 20, Objects: 9, Savesets: 3, References: 4321, Seconds: 12.5}
	usage := sampleUsage
	out[2].Report.Usage = &usage
	return out
}

var sampleUsage = api.StoreUsage{At: Epoch.Add(6*time.Hour + 2*time.Minute), LogicalBytes: 156 << 20, PlainBytes: 78 << 20, StoredBytes: 37 << 20,
	SharedBytes: 40 << 20, GarbageBytes: 2 << 20, ContainerBytes: 39 << 20, DedupRatio: 2, CompressionRatio: 2.108}

// Store is the state of a store that does not exist.
func (b *Backend) Store(context.Context) (api.Store, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	checked, due, next := Epoch.Add(6*time.Hour+100*time.Second), Epoch.AddDate(0, 0, 35), Epoch.AddDate(0, 0, 1).Add(345*time.Minute)
	usage := sampleUsage
	s := api.Store{Name: "default", State: api.StoreGreen, Path: "/var/lib/coffer/store", Domain: "0102030405060708", Encrypted: true, Savesets: 3, Containers: 12, Chunks: 4321,
		LogicalBytes: 156 << 20, StoredBytes: 39 << 20, FreeBytes: 800 << 30, CapacityBytes: 1 << 40, ReserveBytes: 1 << 30, Watermarks: api.Watermarks{High: 90, Low: 80, Used: 22},
		Usage: &usage, Check: api.StoreCheck{Objects: &checked, RoundDone: 0.25, DueAt: &due}, Last: slices.Clone(b.maintenance[:3]), NextMaintenance: &next}
	if n := int64(len(b.Damaged.Places)); n > 0 {
		s.State, s.DamagedObjects = api.StoreRed, n
		s.Reasons = []api.StoreReason{{State: api.StoreRed, Message: fmt.Sprintf("%d damaged places", n), Hint: "see: coffer store damage"}}
		s.Reason = s.Reasons[0].Message
	}
	for _, m := range b.maintenance {
		if !m.State.Final() {
			s.Maintenance = &m
			break
		}
	}
	return s, nil
}

// Dismiss takes a record off the damage list of the field.
func (b *Backend) Dismiss(_ context.Context, object string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.Damaged.Places)
	b.Damaged.Places = slices.DeleteFunc(b.Damaged.Places, func(d api.Damage) bool { return d.Object == object })
	if len(b.Damaged.Places) == n {
		return notFound("damaged record", object)
	}
	return b.Fail
}

// Damage returns the damage list of the field.
func (b *Backend) Damage(context.Context) (api.DamageReport, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.Damaged
	if r.Places == nil {
		r.Places, r.Savesets, r.Harms = []api.Damage{}, []api.DamagedSaveset{}, api.HarmKnown
	}
	return r, nil
}

// StartMaintenance starts a job that a test ends; a second one of a kind is refused, and so is reindex.
func (b *Backend) StartMaintenance(ctx context.Context, r api.MaintenanceRequest) (api.Maintenance, error) {
	if r.Kind == api.MaintenanceReindex {
		return api.Maintenance{}, api.Errorf(api.CodeNotSupported, "this appliance has no maintenance of kind %s", r.Kind)
	}
	caller, _ := api.CallerFrom(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.maintenance {
		if m.Kind == r.Kind && !m.State.Final() {
			return api.Maintenance{}, api.Errorf(api.CodeConflict, "a job of kind %s waits already: %s", r.Kind, m.ID)
		}
	}
	at := Epoch.Add(48 * time.Hour)
	m := api.Maintenance{ID: fmt.Sprintf("m-%04d", len(b.maintenance)+1), Kind: r.Kind, State: api.RunActive, Trigger: api.TriggerManual,
		User: caller.User.Name, Options: r.Options, QueuedAt: at, StartedAt: &at}
	b.maintenance = append(b.maintenance, m)
	b.publish(api.Event{Type: api.EventMaintenance, Maintenance: &m})
	return m, b.Fail
}

// UpdateMaintenance changes a maintenance job and tells the watchers.
func (b *Backend) UpdateMaintenance(id string, change func(*api.Maintenance)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.maintenance {
		if b.maintenance[i].ID == id {
			change(&b.maintenance[i])
			m := b.maintenance[i]
			b.publish(api.Event{Type: api.EventMaintenance, Maintenance: &m})
		}
	}
}

// EndMaintenance ends a maintenance job in a state, 10 seconds after its start.
func (b *Backend) EndMaintenance(id string, s api.RunState, reason string) {
	b.UpdateMaintenance(id, func(m *api.Maintenance) {
		end := m.StartedAt.Add(10 * time.Second)
		m.State, m.Reason, m.EndedAt = s, reason, &end
	})
}

// MaintenanceJobs lists maintenance jobs.
func (b *Backend) MaintenanceJobs(_ context.Context, f api.MaintenanceFilter) (p api.Page[api.Maintenance], _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range slices.Backward(b.maintenance) {
		if (f.Kind == "" || m.Kind == f.Kind) && (f.State == "" || m.State == f.State) && (f.Before == "" || m.ID < f.Before) {
			p.Items = append(p.Items, m)
		}
	}
	return cut(p, f.Limit, func(m api.Maintenance) string { return m.ID }), nil
}

// MaintenanceJob returns a maintenance job.
func (b *Backend) MaintenanceJob(_ context.Context, id string) (api.Maintenance, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.maintenance {
		if m.ID == id {
			return m, nil
		}
	}
	return api.Maintenance{}, notFound("maintenance job", id)
}

// CancelMaintenance ends a maintenance job at once.
func (b *Backend) CancelMaintenance(ctx context.Context, id string) (api.Maintenance, error) {
	m, err := b.MaintenanceJob(ctx, id)
	if err != nil {
		return m, err
	}
	if m.State.Final() {
		return m, api.Errorf(api.CodeConflict, "maintenance job %s has ended %s already", id, m.State)
	}
	b.EndMaintenance(id, api.RunCancelled, "cancelled by a user")
	return b.MaintenanceJob(ctx, id)
}

// Metrics serves one sample.
func (b *Backend) Metrics() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, "# TYPE coffer_store_savesets gauge\ncoffer_store_savesets 3\n")
	})
}
