package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// RunKind is what a run does; part of the database's format.
type RunKind string

// Kinds of runs.
const (
	RunBackup  RunKind = "backup"
	RunRestore RunKind = "restore"
)

// RunState is the state of a run; part of the database's format.
type RunState string

// States of a run.
const (
	RunQueued     RunState = "queued"
	RunActive     RunState = "active"
	RunSuccess    RunState = "success"
	RunWarning    RunState = "warning"
	RunError      RunState = "error"
	RunCancelled  RunState = "cancelled"
	RunMissed     RunState = "missed"
	RunSuppressed RunState = "suppressed"
)

// Final says that a run in this state has ended.
func (s RunState) Final() bool { return s != RunQueued && s != RunActive }

// Stages is the time that a run spent per stage, summed over all workers.
type Stages struct{ Source, Hashing, Compress, Network, Store time.Duration }

// Run is one execution of a task, or one restore.
type Run struct {
	ID                     string
	Kind                   RunKind
	State                  RunState
	Client, Task, User     string
	LevelRequested, Level  string
	LevelReason            string
	Parent, Saveset        string
	Request                json.RawMessage // restores: what was asked; the catalog does not read it
	Queued, Started, Ended time.Time       // zero: not yet
	Reason, Hint           string
	Warnings               int64
	Counters               json.RawMessage // the catalog does not read it
	Stages                 Stages
}

// Notice is one line of a run's log.
type Notice struct {
	Seq                  int64
	Time                 time.Time
	Severity, Code, Path string
	Message              string
}

const runColumns = `id, kind, state, client, task, user, level_requested, level, level_reason, parent, saveset, request, queued_at,
	started_at, ended_at, reason, hint, warnings, counters, source_us, hashing_us, compress_us, network_us, store_us`

func scanRun(row scanner) (Run, error) {
	var r Run
	var us [5]int64
	var request, counters string
	err := row.Scan(&r.ID, &r.Kind, &r.State, &r.Client, &r.Task, &r.User, &r.LevelRequested, &r.Level, &r.LevelReason, &r.Parent,
		&r.Saveset, &request, when{&r.Queued}, when{&r.Started}, when{&r.Ended}, &r.Reason, &r.Hint, &r.Warnings, &counters,
		&us[0], &us[1], &us[2], &us[3], &us[4])
	if request != "" {
		r.Request = json.RawMessage(request)
	}
	r.Counters = json.RawMessage(counters)
	for i, d := range []*time.Duration{&r.Stages.Source, &r.Stages.Hashing, &r.Stages.Compress, &r.Stages.Network, &r.Stages.Store} {
		*d = time.Duration(us[i]) * time.Microsecond
	}
	return r, err
}

// AddRun makes a run: its id and time of queueing are set here. Ids sort by the order of their making:
// 20261122-021500-001 is the first run of that second, in UTC. A backup cannot draw on the ballast.
func (c *Catalog) AddRun(ctx context.Context, r Run) (Run, error) {
	now := c.opts.Now()
	r.Queued = fromMicros(micros(now))
	cl := essential
	if r.Kind == RunBackup {
		cl = ordinary
	}
	err := c.writeAs(ctx, cl, "add run", func(tx *sql.Tx) error {
		var last sql.NullString
		if err := tx.QueryRowContext(ctx, `SELECT max(id) FROM runs`).Scan(&last); err != nil {
			return err
		}
		id, err := nextRunID(last.String, now)
		if err != nil {
			return err
		}
		r.ID = id
		_, err = tx.ExecContext(ctx, `INSERT INTO runs (id, kind, state, client, task, user, level_requested, saveset, request, queued_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.ID, r.Kind, r.State, r.Client, r.Task, r.User, r.LevelRequested, r.Saveset,
			string(r.Request), micros(r.Queued))
		return err
	})
	return r, err
}

const runIDTime = "20060102-150405"

// nextRunID returns an id above last, whatever the clock did since.
func nextRunID(last string, now time.Time) (string, error) {
	second := now.UTC().Format(runIDTime)
	if id := second + "-001"; id > last {
		return id, nil
	}
	i := strings.LastIndexByte(last, '-')
	if i < 0 {
		return "", fmt.Errorf("run id %q has no number", last)
	}
	n, err := strconv.Atoi(last[i+1:])
	if err != nil {
		return "", fmt.Errorf("run id %q: %w", last, err)
	}
	if n < 999 {
		return fmt.Sprintf("%s-%03d", last[:i], n+1), nil
	}
	t, err := time.Parse(runIDTime, last[:i])
	if err != nil {
		return "", fmt.Errorf("run id %q: %w", last, err)
	}
	return t.Add(time.Second).Format(runIDTime) + "-001", nil
}

// UpdateRun keeps all that may change of a run. KindNotFound.
func (c *Catalog) UpdateRun(ctx context.Context, r Run) error {
	op := "update run " + r.ID
	return c.write(ctx, op, func(tx *sql.Tx) error { return updateRun(ctx, tx, op, r) })
}

func updateRun(ctx context.Context, tx *sql.Tx, op string, r Run) error {
	counters := string(r.Counters)
	if counters == "" {
		counters = "{}"
	}
	return execOne(ctx, tx, failf(KindNotFound, "%s", op), `UPDATE runs SET state = ?, level_requested = ?, level = ?, level_reason = ?,
		parent = ?, saveset = ?, started_at = ?, ended_at = ?, reason = ?, hint = ?, warnings = ?, counters = ?, source_us = ?,
		hashing_us = ?, compress_us = ?, network_us = ?, store_us = ? WHERE id = ?`,
		r.State, r.LevelRequested, r.Level, r.LevelReason, r.Parent, r.Saveset, microsOrNull(r.Started), microsOrNull(r.Ended),
		r.Reason, r.Hint, r.Warnings, counters, r.Stages.Source.Microseconds(), r.Stages.Hashing.Microseconds(),
		r.Stages.Compress.Microseconds(), r.Stages.Network.Microseconds(), r.Stages.Store.Microseconds(), r.ID)
}

// RunFilter selects runs; zero fields select all.
type RunFilter struct {
	Task, Client string
	Clients      []string // nil: every client
	Kind         RunKind
	States       []RunState // empty: every state
	Before       string     // runs older than this id
	Limit        int        // 0: all
}

// Runs lists runs, newest first.
func (c *Catalog) Runs(ctx context.Context, f RunFilter) ([]Run, error) {
	var w where
	w.equal("task", f.Task)
	w.equal("client", f.Client)
	w.equal("kind", string(f.Kind))
	if f.Clients != nil {
		w.in("client", f.Clients)
	}
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
	out, err := list(ctx, c.r, scanRun, `SELECT `+runColumns+` FROM runs`+w.String()+` ORDER BY id DESC LIMIT ?`,
		append(w.args, limitOrAll(f.Limit))...)
	return out, c.fail("list runs", err)
}

// Run returns one run; KindNotFound.
func (c *Catalog) Run(ctx context.Context, id string) (Run, error) {
	out, err := one(ctx, c.r, scanRun, `SELECT `+runColumns+` FROM runs WHERE id = ?`, id)
	return out, c.fail("run "+id, err)
}

// AddNotices appends notices to a run's log; their Seq and Time are set by the caller, ascending.
func (c *Catalog) AddNotices(ctx context.Context, run string, notices []Notice) error {
	if len(notices) == 0 {
		return nil
	}
	return c.writeAs(ctx, ordinary, "add notices of run "+run, func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT OR REPLACE INTO notices (run, seq, time, severity, code, path, message) VALUES (?, ?, ?, ?, ?, ?, ?)`)
		if err != nil {
			return err
		}
		var errs []error
		for _, n := range notices {
			if _, err := stmt.ExecContext(ctx, run, n.Seq, micros(n.Time), n.Severity, n.Code, []byte(n.Path), n.Message); err != nil {
				errs = append(errs, err)
				break
			}
		}
		return errors.Join(append(errs, stmt.Close())...)
	})
}

// Notices returns at most limit notices of a run with Seq > after, ascending.
func (c *Catalog) Notices(ctx context.Context, run string, after int64, limit int) ([]Notice, error) {
	out, err := list(ctx, c.r, func(s scanner) (n Notice, err error) {
		var path []byte
		err = s.Scan(&n.Seq, when{&n.Time}, &n.Severity, &n.Code, &path, &n.Message)
		n.Path = string(path)
		return n, err
	}, `SELECT seq, time, severity, code, path, message FROM notices WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?`, run, after, limitOrAll(limit))
	return out, c.fail("notices of run "+run, err)
}
