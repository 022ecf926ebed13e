package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/jobs"
	"coffer/appliance/maintenance"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/vfs"
)

// newUpkeep makes the maintenance of the store.
func (a *appliance) newUpkeep() *maintenance.Manager {
	c := a.conf.Maintenance
	return maintenance.New(maintenance.Options{
		Catalog: a.catalog, Logger: a.log, Now: a.opts.Now, OpenSource: a.openSource, Purge: a.purge, Reindex: a.reindex,
		Store: func() (maintenance.Store, error) {
			s, err := a.store.get()
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		Config: maintenance.Config{Start: maintenance.TimeOfDay(c.Start), Share: c.CheckShare, Overdue: time.Duration(c.CheckOverdue),
			Sparse: c.GCSparse, Budget: time.Duration(c.GCBudget), GCRate: int64(c.GCRate), CheckRate: int64(c.CheckRate)},
	})
}

// tellUpkeep tells the maintenance of every run that ended: it may have found damage, or healed it.
func (a *appliance) tellUpkeep(ctx context.Context) {
	for ctx.Err() == nil {
		for e := range a.jobs.Subscribe(ctx, "") {
			if e.Kind == jobs.EventState && e.Run.State.Final() {
				a.upkeep.DamageMayHaveChanged()
			}
		}
		select { // given up as too slow, or the appliance stops
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// source is another store that a repair reads.
type source struct {
	*dedup.Source
	dir *blob.Dir
}

var _ maintenance.ChunkSource = source{}

// Close closes the store and its directory.
func (s source) Close() error {
	err := s.Source.Close()
	if cerr := s.dir.Close(); err == nil {
		err = cerr
	}
	return err
}

// openSource opens another store for a repair.
func (a *appliance) openSource(ctx context.Context, s maintenance.Source) (maintenance.ChunkSource, error) {
	keyFile := s.KeyFile
	if keyFile == "" {
		keyFile = a.conf.KeyFile()
	}
	key, err := keySource(keyFile, true, a.log)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.Path); err != nil { // OpenDir would make it
		return nil, fmt.Errorf("there is no store: %w", err)
	}
	dir, err := blob.OpenDir(vfs.OS(), s.Path)
	if err != nil {
		return nil, err
	}
	src, err := dedup.OpenSource(ctx, dedup.Options{Blob: dir, FS: vfs.OS(), Key: key, Logger: a.log, LocalityMemory: int64(a.conf.Store.LocalityMemory)})
	if err != nil {
		_ = dir.Close() // the cause is what counts
		if dedup.KindOf(err) == dedup.NotFound {
			err = fmt.Errorf("there is no store in this directory; is its disk mounted? (%w)", err)
		}
		return nil, err
	}
	return source{src, dir}, nil
}

// storeDesk implements server.Store.
type storeDesk struct{ *appliance }

var _ server.Store = storeDesk{}

// StartMaintenance implements server.Store.
func (d storeDesk) StartMaintenance(ctx context.Context, r api.MaintenanceRequest) (api.Maintenance, error) {
	settings, err := recoded[maintenance.Settings](r.Options)
	if err != nil {
		return api.Maintenance{}, err
	}
	i, err := d.upkeep.Enqueue(ctx, maintenance.Request{Kind: maintenance.Kind(r.Kind), Settings: settings, User: userOf(ctx)})
	return apiMaintenance(i), apiError(err)
}

// MaintenanceJobs implements server.Store.
func (d storeDesk) MaintenanceJobs(ctx context.Context, f api.MaintenanceFilter) (api.Page[api.Maintenance], error) {
	q := catalog.MaintenanceFilter{Kind: string(f.Kind), Before: f.Before, Limit: f.Limit + 1}
	if f.State != "" {
		q.States = []catalog.RunState{catalog.RunState(f.State)}
	}
	list, err := d.upkeep.Jobs(ctx, q)
	if err != nil {
		return api.Page[api.Maintenance]{}, apiError(err)
	}
	return page(list, f.Limit, apiMaintenance, func(i maintenance.Info) string { return i.ID }), nil
}

// MaintenanceJob implements server.Store.
func (d storeDesk) MaintenanceJob(ctx context.Context, id string) (api.Maintenance, error) {
	i, err := d.upkeep.Job(ctx, id)
	return apiMaintenance(i), apiError(err)
}

// CancelMaintenance implements server.Store.
func (d storeDesk) CancelMaintenance(ctx context.Context, id string) (api.Maintenance, error) {
	i, err := d.upkeep.Cancel(ctx, id, userOf(ctx))
	return apiMaintenance(i), apiError(err)
}

func maintenanceEvent(e maintenance.Event) api.Event {
	job := apiMaintenance(e.Job)
	return api.Event{Type: api.EventMaintenance, Time: e.Time.UTC(), Maintenance: &job}
}

func apiMaintenance(i maintenance.Info) api.Maintenance {
	out := api.Maintenance{ID: i.ID, Kind: api.MaintenanceKind(i.Kind), State: api.RunState(i.State), Trigger: api.MaintenanceTrigger(i.Trigger),
		User: i.User, QueuedAt: i.Queued, StartedAt: at(i.Started), EndedAt: at(i.Ended), Reason: i.Reason, Hint: i.Hint,
		Progress: api.MaintenanceProgress{Phase: i.Progress.Phase, Done: i.Progress.Done, Total: i.Progress.Total, Unit: i.Progress.Unit,
			Rate: i.Progress.Rate, SecondsLeft: i.Progress.Left}}
	// The JSON forms are the same by contract, and a test holds them together.
	out.Options, _ = recoded[api.MaintenanceOptions](i.Settings)
	out.Report, _ = recoded[api.MaintenanceReport](i.Report)
	return out
}

// recoded converts between types of the same JSON form.
func recoded[T any](v any) (out T, err error) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		err = fmt.Errorf("convert %T: %w", v, err)
	}
	return out, err
}

// Dismiss implements server.Store.
func (d storeDesk) Dismiss(ctx context.Context, object string) error {
	store, err := d.store.get()
	if err != nil {
		return lockedError(err)
	}
	err = store.Dismiss(ctx, object, caller(ctx))
	d.upkeep.DamageMayHaveChanged()
	switch dedup.KindOf(err) {
	case dedup.NotFound:
		return api.Errorf(api.CodeNotFound, "%s is no damaged record of a saveset", object).WithHint("see: coffer store damage")
	case dedup.Immutable, dedup.Retained, dedup.InUse, dedup.Damaged:
		return api.Errorf(api.CodeConflict, "%s is not given up: %v", object, err)
	}
	return apiError(err)
}

// Damage implements server.Store.
func (d storeDesk) Damage(ctx context.Context) (api.DamageReport, error) {
	out := api.DamageReport{Savesets: []api.DamagedSaveset{}, Harms: api.HarmKnown}
	places, err := d.catalog.Damage(ctx)
	if err != nil {
		return out, apiError(err)
	}
	harmed, err := d.catalog.HarmedSavesets(ctx)
	if err != nil {
		return out, apiError(err)
	}
	out.Places = mapped(places, apiDamage)
	for _, h := range harmed {
		s, err := d.damagedSaveset(ctx, h)
		if err != nil {
			return out, apiError(err)
		}
		out.Savesets = append(out.Savesets, s)
	}
	if !d.upkeep.HarmsKnown() {
		out.Harms = api.HarmUnknown
	}
	if len(places) > 0 {
		out.Hint = "the next backup stores anew what it finds on its client; 'coffer store repair' salvages what it can, " +
			"with --from a replica also what is gone; what nothing heals leaves the list when its savesets are deleted and 'coffer store gc' has run"
	}
	return out, nil
}

func (d storeDesk) damagedSaveset(ctx context.Context, h catalog.HarmedSaveset) (api.DamagedSaveset, error) {
	out := api.DamagedSaveset{Saveset: h.Saveset, Object: h.Object, More: h.More, Files: []api.DamagedFile{}}
	s, err := d.catalog.Saveset(ctx, h.Saveset)
	if err != nil && catalog.KindOf(err) != catalog.KindNotFound {
		return out, err
	}
	out.Client, out.Task, out.Level, out.StartedAt = s.Client, s.Task, api.Level(s.Level), s.Started
	for _, p := range h.Paths {
		var f api.DamagedFile
		f.Path, f.PathRaw = api.Text("/" + strings.TrimPrefix(p, "/"))
		out.Files = append(out.Files, f)
	}
	return out, nil
}

func apiDamage(d catalog.Damage) api.Damage {
	out := api.Damage{Container: d.Container, Kind: d.Kind, Object: d.Object, Saveset: d.Saveset, Digests: d.Digests, Reason: d.Reason, FoundAt: d.Found}
	if d.Container == "" {
		out.Kind = ""
	}
	if d.Frame >= 0 {
		out.Frame = &d.Frame
	}
	return out
}

// Store implements server.Store.
func (d storeDesk) Store(ctx context.Context) (api.Store, error) {
	out := api.Store{Name: storeName, Path: d.conf.StoreDir(), ActiveRuns: int64(d.jobs.Active()), NextMaintenance: at(d.upkeep.Next()),
		ReserveBytes: reserve(int64(d.conf.Store.Reserve))}
	readOnly := d.space(&out)
	if use, err := diskUseOf(out.Path); err == nil { // without it nothing is said of what is in use
		out.Watermarks = api.Watermarks{High: int64(d.conf.Store.HighWatermark), Low: int64(d.conf.Store.LowWatermark), Used: use.percent()}
	}
	if err := d.recorded(ctx, &out); err != nil {
		return out, apiError(err)
	}
	store, err := d.store.get()
	if err != nil {
		err = d.locked(ctx, &out, err)
		return out, err
	}
	facts, err := d.facts(ctx, store)
	if err != nil {
		return out, apiError(err)
	}
	facts.ReadOnly, facts.Fault = readOnly, d.probe.err()
	describe(&out, store, facts)
	out.IndexBytes = d.indexBytes()
	return out, nil
}

// locked describes a store that is not open.
func (d storeDesk) locked(ctx context.Context, out *api.Store, why error) error {
	hint := "see the log of the appliance; when it is mended: coffer store unlock"
	if errors.Is(why, errNeedsSecret) || errors.Is(why, errByHand) {
		hint = "open it: coffer store unlock"
	}
	out.State, out.Reason = api.StoreLocked, why.Error()
	out.Reasons = []api.StoreReason{{State: api.StoreLocked, Message: out.Reason, Hint: hint}}
	was, err := d.catalog.Setting(ctx, encryptedSetting)
	out.Encrypted = was == "yes"
	return apiError(err)
}

// recorded fills in what the catalog knows, whether the store is open or not.
func (d storeDesk) recorded(ctx context.Context, out *api.Store) error {
	pools, err := d.catalog.Pools(ctx)
	if err != nil {
		return err
	}
	for _, p := range pools {
		out.LogicalBytes += p.Bytes
	}
	ended, good, err := d.upkeep.Last(ctx)
	if err != nil {
		return err
	}
	out.Last = mapped(ended, apiMaintenance)
	for _, m := range mapped(good, apiMaintenance) {
		switch m.Kind {
		case api.MaintenanceUsage:
			out.Usage = m.Report.Usage
		case api.MaintenanceGC:
			if m.Report.GC != nil {
				out.Chunks = m.Report.GC.MarkedChunks
			}
		}
	}
	if i, ok := d.upkeep.Active(); ok {
		job := apiMaintenance(i)
		out.Maintenance = &job
	}
	return nil
}

// facts are what the state of the open store follows from, its file system apart.
func (a *appliance) facts(ctx context.Context, store *dedup.Store) (maintenance.Facts, error) {
	sets, err := store.Savesets(ctx)
	if err != nil {
		return maintenance.Facts{}, err
	}
	f := maintenance.Facts{Damage: len(store.Damage()), Full: store.Stats().Free == 0, Check: store.CheckState(),
		Overdue: time.Duration(a.conf.Maintenance.CheckOverdue), Now: a.opts.Now()}
	for _, s := range sets {
		if f.Oldest.IsZero() || s.Committed.Before(f.Oldest) {
			f.Oldest = s.Committed
		}
	}
	return f, nil
}

// describe fills in what the open store says of itself.
func describe(out *api.Store, store *dedup.Store, f maintenance.Facts) {
	stats := store.Stats()
	out.Domain, out.Encrypted = store.Domain().ID.String(), store.Encrypted()
	out.Savesets, out.Containers = int64(stats.Savesets), int64(stats.Containers)
	out.StoredBytes, out.DamagedObjects = int64(stats.StoredBytes), int64(f.Damage)
	out.Check = api.StoreCheck{Objects: at(f.Check.Objects), Pages: at(latest(f.Check.Pages, f.Check.Deep)), DueAt: at(f.CheckDue())}
	if f.Check.Total > 0 {
		out.Check.RoundDone = float64(f.Check.Done) / float64(f.Check.Total)
	}
	state, reasons := maintenance.Judge(f)
	out.State = api.StoreState(state)
	for _, r := range reasons {
		out.Reasons = append(out.Reasons, api.StoreReason{State: api.StoreState(r.State), Message: r.Message, Hint: r.Hint})
	}
	if len(reasons) > 0 {
		out.Reason = reasons[0].Message
	}
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, time.Time.Compare)
}

func reserve(configured int64) int64 {
	if configured == 0 {
		return dedup.DefaultReserve
	}
	return configured
}

// space fills in what the store's file system has, and reports whether it takes no writes.
func (a *appliance) space(out *api.Store) (readOnly bool) {
	var st unix.Statfs_t
	if unix.Statfs(a.conf.StoreDir(), &st) == nil { // without it the numbers stay 0
		out.FreeBytes, out.CapacityBytes = int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
		readOnly = st.Flags&unix.ST_RDONLY != 0
	}
	if unix.Statfs(a.data.SpoolDir(), &st) == nil {
		readOnly = readOnly || st.Flags&unix.ST_RDONLY != 0
	}
	return readOnly
}
