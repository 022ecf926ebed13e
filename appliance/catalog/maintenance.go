package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"time"
)

// Triggers of maintenance jobs.
const (
	TriggerManual = "manual"
	TriggerDaily  = "daily"
	TriggerSpace  = "watermark"
)

// Maintenance is one maintenance job of the store. Its states are those of runs; Options, Progress and Report are not
// read here.
type Maintenance struct {
	ID                        string
	Kind                      string
	State                     RunState
	Trigger, User             string
	Options, Progress, Report json.RawMessage
	Queued, Started, Ended    time.Time // zero: not yet
	Reason, Hint              string
}

const maintenanceColumns = `id, kind, state, trigger, user, options, queued_at, started_at, ended_at, reason, hint, progress, report`

func scanMaintenance(row scanner) (Maintenance, error) {
	var m Maintenance
	var options, progress, report string
	err := row.Scan(&m.ID, &m.Kind, &m.State, &m.Trigger, &m.User, &options, when{&m.Queued}, when{&m.Started}, when{&m.Ended},
		&m.Reason, &m.Hint, &progress, &report)
	m.Options, m.Progress, m.Report = json.RawMessage(options), json.RawMessage(progress), json.RawMessage(report)
	return m, err
}

// AddMaintenance makes a job, queued: its id and time of queueing are set here. Ids are like those of runs, with an "m"
// before them.
func (c *Catalog) AddMaintenance(ctx context.Context, m Maintenance) (Maintenance, error) {
	now := c.opts.Now()
	m.State, m.Queued = RunQueued, fromMicros(micros(now))
	err := c.write(ctx, "add maintenance job", func(tx *sql.Tx) error {
		var last sql.NullString
		if err := tx.QueryRowContext(ctx, `SELECT max(id) FROM maintenance`).Scan(&last); err != nil {
			return err
		}
		id, err := nextRunID(strings.TrimPrefix(last.String, "m"), now)
		if err != nil {
			return err
		}
		m.ID = "m" + id
		_, err = tx.ExecContext(ctx, `INSERT INTO maintenance (id, kind, state, trigger, user, options, queued_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			m.ID, m.Kind, m.State, m.Trigger, m.User, orEmpty(m.Options), micros(m.Queued))
		return err
	})
	return m, err
}

// orEmpty is the text of a JSON document, an empty object where there is none.
func orEmpty(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "{}"
	}
	return string(raw)
}

// UpdateMaintenance keeps all that may change of a job. KindNotFound.
func (c *Catalog) UpdateMaintenance(ctx context.Context, m Maintenance) error {
	op := "update maintenance job " + m.ID
	return c.exec(ctx, op, failf(KindNotFound, "%s", op), `UPDATE maintenance SET state = ?, started_at = ?, ended_at = ?, reason = ?, hint = ?,
		progress = ?, report = ? WHERE id = ?`, m.State, microsOrNull(m.Started), microsOrNull(m.Ended), m.Reason, m.Hint,
		orEmpty(m.Progress), orEmpty(m.Report), m.ID)
}

// MaintenanceFilter selects maintenance jobs; zero fields select all.
type MaintenanceFilter struct {
	Kind   string
	States []RunState // empty: every state
	Before string     // jobs older than this id
	Limit  int        // 0: all
}

// MaintenanceJobs lists maintenance jobs, newest first.
func (c *Catalog) MaintenanceJobs(ctx context.Context, f MaintenanceFilter) ([]Maintenance, error) {
	var w where
	w.equal("kind", f.Kind)
	if len(f.States) > 0 {
		states := make([]string, len(f.States))
		for i, s := range f.States {
			states[i] = string(s)
		}
		w.in("state", states)
	}
	if f.Before != "" {
		w.add("id < ?", f.Before)
	}
	out, err := list(ctx, c.r, scanMaintenance, `SELECT `+maintenanceColumns+` FROM maintenance`+w.String()+` ORDER BY id DESC LIMIT ?`,
		append(w.args, limitOrAll(f.Limit))...)
	return out, c.fail("list maintenance jobs", err)
}

// MaintenanceJob returns one maintenance job; KindNotFound.
func (c *Catalog) MaintenanceJob(ctx context.Context, id string) (Maintenance, error) {
	out, err := one(ctx, c.r, scanMaintenance, `SELECT `+maintenanceColumns+` FROM maintenance WHERE id = ?`, id)
	return out, c.fail("maintenance job "+id, err)
}

// RunCounts returns how many runs there are of each kind and state: "backup success" and so on.
func (c *Catalog) RunCounts(ctx context.Context) (map[[2]string]int64, error) {
	return c.counts(ctx, "count runs", `SELECT kind, state, count(*) FROM runs GROUP BY kind, state`)
}

// MaintenanceCounts returns how many maintenance jobs there are of each kind and state.
func (c *Catalog) MaintenanceCounts(ctx context.Context) (map[[2]string]int64, error) {
	return c.counts(ctx, "count maintenance jobs", `SELECT kind, state, count(*) FROM maintenance GROUP BY kind, state`)
}

func (c *Catalog) counts(ctx context.Context, op, query string) (map[[2]string]int64, error) {
	type row struct {
		key [2]string
		n   int64
	}
	rows, err := list(ctx, c.r, func(s scanner) (r row, err error) { err = s.Scan(&r.key[0], &r.key[1], &r.n); return r, err }, query)
	out := make(map[[2]string]int64, len(rows))
	for _, r := range rows {
		out[r.key] = r.n
	}
	return out, c.fail(op, err)
}
