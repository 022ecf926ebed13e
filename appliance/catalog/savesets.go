package catalog

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// Saveset is one stored copy of one run of one task, as its manifest and newest state say.
type Saveset struct {
	ID                            string // 32 hex digits
	Client, Task, TaskType, Pool  string
	Run                           string
	State                         string // success or warning
	LevelRequested, Level, Reason string
	Parent                        string
	Started, Ended                time.Time // by the client's clock
	Committed                     time.Time // by the store's clock: end of writing
	Entries, Logical, New, Stored int64
	Warnings                      int64
	Sources                       []string
	StreamName                    string
	SourceKey                     string // what the task read: see jobs
	SourceID                      string // identity of the source's file systems
	StateNumber                   int64
	EOL                           time.Time
	EOLCause                      string
	Locked                        bool
	ImmutableUntil, DeletedAt     time.Time // zero: never
}

const savesetColumns = `id, client, task, task_type, pool, run, state, level_requested, level, level_reason, parent, started_at,
	ended_at, committed_at, entries, bytes_logical, bytes_new, bytes_stored, warnings, sources, stream_name, source_key, source_id,
	state_number, eol, eol_cause, locked, immutable_until, deleted_at`

func scanSaveset(row scanner) (Saveset, error) {
	var s Saveset
	err := row.Scan(&s.ID, &s.Client, &s.Task, &s.TaskType, &s.Pool, &s.Run, &s.State, &s.LevelRequested, &s.Level, &s.Reason,
		&s.Parent, when{&s.Started}, when{&s.Ended}, when{&s.Committed}, &s.Entries, &s.Logical, &s.New, &s.Stored, &s.Warnings,
		asJSON{&s.Sources}, &s.StreamName, &s.SourceKey, &s.SourceID, &s.StateNumber, when{&s.EOL}, &s.EOLCause, &s.Locked,
		when{&s.ImmutableUntil}, when{&s.DeletedAt})
	return s, err
}

func (s Saveset) values() ([]any, error) {
	sources, err := toJSON(s.Sources)
	if err != nil {
		return nil, err
	}
	return []any{s.ID, s.Client, s.Task, s.TaskType, s.Pool, s.Run, s.State, s.LevelRequested, s.Level, s.Reason, s.Parent,
		micros(s.Started), micros(s.Ended), micros(s.Committed), s.Entries, s.Logical, s.New, s.Stored, s.Warnings, sources,
		s.StreamName, s.SourceKey, s.SourceID, s.StateNumber, microsOrNull(s.EOL), s.EOLCause, s.Locked,
		microsOrNull(s.ImmutableUntil), microsOrNull(s.DeletedAt)}, nil
}

var putSaveset = `INSERT OR REPLACE INTO savesets (` + savesetColumns + `) VALUES (` +
	strings.TrimSuffix(strings.Repeat("?, ", strings.Count(savesetColumns, ",")+1), ", ") + `)`

// PutSavesets takes in what the store says of savesets, new ones and changed ones, in one step.
func (c *Catalog) PutSavesets(ctx context.Context, sets ...Saveset) error {
	if len(sets) == 0 {
		return nil
	}
	return c.writeAs(ctx, ordinary, "put saveset "+sets[0].ID, func(tx *sql.Tx) error {
		for _, s := range sets {
			values, err := s.values()
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, putSaveset, values...); err != nil {
				return err
			}
		}
		return nil
	})
}

// SavesetState is the part of a saveset that changes.
type SavesetState struct {
	Number                    int64
	EOL                       time.Time
	Cause                     string
	Locked                    bool
	ImmutableUntil, DeletedAt time.Time
}

// SetSavesetStates keeps states that the store has made durable, with the audit entries of their changes, in one step.
// A state that is older than the catalog's is left out.
func (c *Catalog) SetSavesetStates(ctx context.Context, states map[string]SavesetState, audit ...AuditEntry) error {
	return c.write(ctx, "set states of savesets", func(tx *sql.Tx) error {
		for id, s := range states {
			_, err := tx.ExecContext(ctx, `UPDATE savesets SET state_number = ?, eol = ?, eol_cause = ?, locked = ?,
				immutable_until = ?, deleted_at = ? WHERE id = ? AND state_number <= ?`,
				s.Number, microsOrNull(s.EOL), s.Cause, s.Locked, microsOrNull(s.ImmutableUntil), microsOrNull(s.DeletedAt), id, s.Number)
			if err != nil {
				return err
			}
		}
		return c.addAudit(ctx, tx, audit...)
	})
}

// MarkSavesetsGone marks savesets deleted whose manifests the store does not have any more.
func (c *Catalog) MarkSavesetsGone(ctx context.Context, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	return c.write(ctx, "mark savesets gone", func(tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, `UPDATE savesets SET deleted_at = ? WHERE id = ? AND deleted_at IS NULL`, micros(c.opts.Now()), id); err != nil {
				return err
			}
		}
		return nil
	})
}

// SavesetFilter selects savesets that are not deleted; zero fields select all.
type SavesetFilter struct {
	Client, Task, Run, Pool string
	Clients                 []string // nil: every client
	Before                  string   // savesets older than this id
	Limit                   int      // 0: all
}

// Savesets lists savesets, newest first (their ids sort by time).
func (c *Catalog) Savesets(ctx context.Context, f SavesetFilter) ([]Saveset, error) {
	w := where{conds: []string{"deleted_at IS NULL"}}
	w.equal("client", f.Client)
	w.equal("task", f.Task)
	w.equal("run", f.Run)
	w.equal("pool", f.Pool)
	if f.Clients != nil {
		w.in("client", f.Clients)
	}
	if f.Before != "" {
		w.add("id < ?", f.Before)
	}
	out, err := list(ctx, c.r, scanSaveset, `SELECT `+savesetColumns+` FROM savesets`+w.String()+` ORDER BY id DESC LIMIT ?`,
		append(w.args, limitOrAll(f.Limit))...)
	return out, c.fail("list savesets", err)
}

func limitOrAll(n int) int {
	if n <= 0 {
		return -1
	}
	return n
}

// Saveset returns one by its whole id, a deleted one, too; KindNotFound.
func (c *Catalog) Saveset(ctx context.Context, id string) (Saveset, error) {
	out, err := one(ctx, c.r, scanSaveset, `SELECT `+savesetColumns+` FROM savesets WHERE id = ?`, id)
	return out, c.fail("saveset "+id, err)
}

// SavesetsByPrefix returns at most two living savesets whose id starts with the prefix: none, the one, or proof that it
// is ambiguous.
func (c *Catalog) SavesetsByPrefix(ctx context.Context, prefix string) ([]Saveset, error) {
	out, err := list(ctx, c.r, scanSaveset, `SELECT `+savesetColumns+` FROM savesets
		WHERE deleted_at IS NULL AND id >= ? AND id < ? ORDER BY id LIMIT 2`, prefix, prefix+"g")
	return out, c.fail("saveset "+prefix, err)
}

// SavesetIDs returns the ids and state numbers of all savesets that are not deleted.
func (c *Catalog) SavesetIDs(ctx context.Context) (map[string]int64, error) {
	type row struct {
		id     string
		number int64
	}
	rows, err := list(ctx, c.r, func(s scanner) (r row, err error) { err = s.Scan(&r.id, &r.number); return r, err },
		`SELECT id, state_number FROM savesets WHERE deleted_at IS NULL`)
	out := make(map[string]int64, len(rows))
	for _, r := range rows {
		out[r.id] = r.number
	}
	return out, c.fail("list savesets", err)
}
