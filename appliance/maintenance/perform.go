package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"coffer/appliance/catalog"
	"coffer/dedup"
)

// saveEvery is how often the progress of a job is kept in the catalog.
const saveEvery = 30 * time.Second

// job is a job that this process works on.
type job struct {
	id   string
	ctx  context.Context // ends when the job is cancelled; its cause is a cancelled
	stop context.CancelCauseFunc
	done chan struct{} // closed when the job has ended and is forgotten

	mu    sync.Mutex // guards all below
	info  Info
	phase phase
	saved time.Time // when the progress was kept last
}

// phase is where and when a phase began.
type phase struct {
	name  string
	start time.Time
	from  int64
}

func (m *Manager) newJob(i Info) *job {
	j := &job{id: i.ID, info: i, done: make(chan struct{})}
	j.ctx, j.stop = context.WithCancelCause(m.ctx)
	return j
}

// cancelled is the cause of a cancelled job's context.
type cancelled struct{ reason string }

func (c cancelled) Error() string { return c.reason }

// cancelReason says why the job was cancelled, where it was.
func (j *job) cancelReason() (string, bool) {
	c, ok := errors.AsType[cancelled](context.Cause(j.ctx))
	return c.reason, ok
}

// snapshot returns the job as it is now.
func (j *job) snapshot() Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

// change edits the job, and returns it as it is then.
func (j *job) change(edit func(*Info)) Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	edit(&j.info)
	return j.info
}

// ending is how a job ended.
type ending struct {
	state        catalog.RunState
	reason, hint string
}

// perform is the life of a job from its turn to its record.
func (m *Manager) perform(j *job) {
	defer j.stop(nil)
	now := j.change(func(i *Info) { i.State, i.Started = catalog.RunActive, m.now() })
	m.keep(now)
	m.publish(EventState, now)
	m.log.Info("maintenance started", "job", j.id, "kind", now.Kind, "trigger", now.Trigger)
	end := m.do(j)
	if reason, ok := j.cancelReason(); ok {
		end = ending{state: catalog.RunCancelled, reason: reason}
	}
	if now.Kind == Usage || now.Kind == Purge {
		m.DamageMayHaveChanged()
	} else {
		m.syncDamage(atOnce)
	}
	m.finish(j, end)
}

// do does what the job is there for.
func (m *Manager) do(j *job) ending {
	kind := j.snapshot().Kind
	switch kind {
	case Reindex:
		return failed(m.opts.Reindex(j.ctx, m.progressOf(j)))
	case Purge:
		report, err := m.opts.Purge(j.ctx, m.progressOf(j))
		j.change(func(i *Info) { i.Report.Purge = &report })
		return failed(err)
	}
	store, err := m.opts.Store()
	if err != nil {
		return ending{state: catalog.RunError, reason: err.Error(), hint: "see: coffer store status"}
	}
	switch kind {
	case GC:
		return m.collect(j, store)
	case Check:
		return m.check(j, store)
	case Repair:
		return m.repair(j, store)
	}
	return m.usage(j, store)
}

// failed is the ending of a job whose error is err; success where there is none.
func failed(err error) ending {
	if err == nil {
		return ending{state: catalog.RunSuccess}
	}
	return ending{state: catalog.RunError, reason: err.Error(), hint: hintOf(err)}
}

// hintOf says what to do about an error.
func hintOf(err error) string {
	switch dedup.KindOf(err) {
	case dedup.NoSpace:
		return "make space on the disk of the store, or delete savesets: a garbage collection that needs no copying goes on without it"
	case dedup.Damaged:
		return "see: coffer store damage; then: coffer store repair"
	case dedup.InUse:
		return "start it again when the other operation has ended"
	case dedup.Closed:
		return "start it again when the store is open"
	}
	return ""
}

// progressOf takes the engine's progress into the job, and tells watchers.
func (m *Manager) progressOf(j *job) func(dedup.Progress) {
	return func(p dedup.Progress) {
		at := m.now()
		j.mu.Lock()
		j.progress(p, at)
		now, save := j.info, at.Sub(j.saved) >= saveEvery
		if save {
			j.saved = at
		}
		j.mu.Unlock()
		if save {
			m.keep(now)
		}
		m.publish(EventProgress, now)
	}
}

// progress completes the engine's progress by speed and time left; j.mu is held.
func (j *job) progress(p dedup.Progress, at time.Time) {
	if p.Phase != j.phase.name {
		j.phase = phase{name: p.Phase, start: at, from: p.Done}
	}
	n := Progress{Phase: p.Phase, Done: p.Done, Total: p.Total, Unit: p.Unit}
	if took := at.Sub(j.phase.start).Seconds(); took > 0 && p.Done > j.phase.from {
		n.Rate = float64(p.Done-j.phase.from) / took
		if p.Total > p.Done {
			n.Left = float64(p.Total-p.Done) / n.Rate
		}
	}
	j.info.Progress = n
}

// finish records how a job ended, and tells.
func (m *Manager) finish(j *job, e ending) {
	now := j.change(func(i *Info) {
		i.State, i.Reason, i.Hint, i.Ended = e.state, e.reason, e.hint, m.now()
		i.Progress.Rate, i.Progress.Left = 0, 0
	})
	level := slog.LevelInfo
	if e.state == catalog.RunError {
		level = slog.LevelError
	}
	m.log.Log(m.ctx, level, "maintenance ended", "job", now.ID, "kind", now.Kind, "state", now.State, "reason", now.Reason,
		"seconds", now.Ended.Sub(now.Queued).Seconds())
	m.count(now.Report)
	m.keep(now)
	m.publish(EventState, now)
}

// keep records a job as it is. What cannot be recorded is logged: the next start ends a job that is not recorded as ended.
func (m *Manager) keep(i Info) {
	rec, err := i.record()
	if err == nil {
		err = m.opts.Catalog.UpdateMaintenance(m.ctx, rec)
	}
	if err != nil {
		m.log.Error("maintenance job not recorded", "job", i.ID, "state", i.State, "error", err)
	}
}

// collect moves small objects to the current key, then collects. What another change of keys does need not be done here.
func (m *Manager) collect(j *job, store Store) ending {
	set, conf, progress := j.snapshot().Settings, m.opts.Config, m.progressOf(j)
	reseal := func() (dedup.ResealReport, error) {
		r, err := store.Reseal(j.ctx, progress)
		if dedup.KindOf(err) == dedup.InUse {
			err = nil
		}
		return r, err
	}
	sealed, sealErr := reseal()
	budget := conf.Budget
	if set.Budget > 0 {
		budget = time.Duration(set.Budget * float64(time.Second))
	}
	report, err := store.Collect(j.ctx, dedup.CollectOptions{Sparse: either(set.Sparse, conf.Sparse), Budget: budget,
		Rate: either(set.Rate, conf.GCRate), Progress: progress})
	j.change(func(i *Info) { i.Report.GC = gcReport(report, sealed) })
	if err == nil && sealErr == nil {
		_, sealErr = reseal() // a plain key that no container is under any more opens nothing from now on
	}
	if err = errors.Join(err, sealErr); err != nil {
		return failed(err)
	}
	e := ending{state: catalog.RunSuccess}
	switch {
	case len(sealed.Stuck) > 0:
		e = ending{state: catalog.RunWarning, reason: fmt.Sprintf("%d small objects do not open and keep their key, the first is %s", len(sealed.Stuck), sealed.Stuck[0]),
			hint: "see: coffer store damage"}
	case report.Damaged > 0:
		e = ending{state: catalog.RunWarning, reason: fmt.Sprintf("%d containers were left because they do not read", report.Damaged), hint: "see: coffer store damage"}
	case !report.Complete:
		e.reason = "its time was up: the next one goes on"
	}
	return e
}

func either[T int64 | float64](set, conf T) T {
	if set != 0 {
		return set
	}
	return conf
}

func (m *Manager) check(j *job, store Store) ending {
	set := j.snapshot().Settings
	pages := set.Half != ObjectsHalf
	report, err := store.Check(j.ctx, dedup.CheckOptions{Objects: set.Half != PagesHalf, Pages: pages, Deep: pages && !set.Shallow,
		Share: set.Share, Rate: either(set.Rate, m.opts.Config.CheckRate), Progress: m.progressOf(j)})
	j.change(func(i *Info) { i.Report.Check = checkReport(report) })
	if err != nil {
		return failed(err)
	}
	return damageLeft(len(store.Damage()), len(report.Found))
}

// damageLeft is the ending of a job after which damage is on the list.
func damageLeft(left, found int) ending {
	switch {
	case left == 0:
		return ending{state: catalog.RunSuccess}
	case found > 0:
		return ending{state: catalog.RunWarning, reason: fmt.Sprintf("%d damaged places found", found), hint: damageHint}
	}
	return ending{state: catalog.RunWarning, reason: fmt.Sprintf("%d damaged places are on the list", left), hint: damageHint}
}

const damageHint = "see: coffer store damage; coffer store repair mends what it can, and backups store anew what they meet"

func (m *Manager) repair(j *job, store Store) ending {
	sources, closeAll, err := m.openSources(j.ctx, j.snapshot().Settings.From)
	if err != nil {
		return failed(err)
	}
	defer closeAll()
	report, err := store.Heal(j.ctx, sources, m.progressOf(j))
	j.change(func(i *Info) { i.Report.Repair = repairReport(report) })
	if err != nil {
		return failed(err)
	}
	return damageLeft(len(store.Damage()), 0)
}

func (m *Manager) openSources(ctx context.Context, from []Source) (_ []dedup.ChunkSource, closeAll func(), err error) {
	var opened []ChunkSource
	closeAll = func() {
		for _, s := range opened {
			if err := s.Close(); err != nil {
				m.log.Warn("source of a repair not closed", "error", err)
			}
		}
	}
	var out []dedup.ChunkSource
	for _, f := range from {
		s, err := m.opts.OpenSource(ctx, f)
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("open the store %s: %w", f.Path, err)
		}
		opened, out = append(opened, s), append(out, s)
	}
	return out, closeAll, nil
}

func (m *Manager) usage(j *job, store Store) ending {
	u, err := store.Usage(j.ctx, m.progressOf(j))
	if err != nil {
		return failed(err)
	}
	j.change(func(i *Info) { i.Report.Usage = usageReport(u) })
	return failed(m.opts.Catalog.SetUsage(m.ctx, savesetUsage(u), clientUsage(u)))
}

func savesetUsage(u dedup.Usage) []catalog.SavesetUsage {
	out := make([]catalog.SavesetUsage, 0, len(u.Savesets))
	for id, s := range u.Savesets {
		out = append(out, catalog.SavesetUsage{Saveset: id.String(), Counted: u.At, Unique: int64(s.Unique), UniqueStored: int64(s.UniqueStored),
			Shared: int64(s.Shared)})
	}
	return out
}

func clientUsage(u dedup.Usage) []catalog.ClientUsage {
	out := make([]catalog.ClientUsage, 0, len(u.Clients))
	for name, c := range u.Clients {
		out = append(out, catalog.ClientUsage{Client: name, Counted: u.At, Savesets: int64(c.Savesets), Logical: int64(c.Logical),
			Unique: int64(c.Unique), UniqueStored: int64(c.UniqueStored)})
	}
	return out
}
