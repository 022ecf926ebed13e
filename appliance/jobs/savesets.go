package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"coffer/appliance/catalog"
	"coffer/dedup"
)

// meta is what a manifest carries for the catalog; part of the manifest's format. The engine does not read it.
type meta struct {
	Version    int    `json:"version"`
	Pool       string `json:"pool"`
	StreamName string `json:"stream_name,omitempty"`
	SourceKey  string `json:"source_key"`
	SourceID   string `json:"source_id,omitempty"`
	// SourcePaths are the paths of a path task as bytes, in base64; the manifest's Sources are for people.
	SourcePaths [][]byte `json:"source_paths,omitempty"`
}

const metaVersion = 1

// metaOf reads the meta part of a manifest; one without it has the zero value.
func metaOf(m dedup.Manifest) (extra meta, err error) {
	if len(m.Meta) > 0 {
		if err := json.Unmarshal(m.Meta, &extra); err != nil {
			return extra, fmt.Errorf("manifest %s: read its meta part: %w", m.ID, err)
		}
	}
	return extra, nil
}

// row is the catalog's row of a manifest with its newest state.
func row(m dedup.Manifest) (catalog.Saveset, error) {
	extra, err := metaOf(m)
	if err != nil {
		return catalog.Saveset{}, err
	}
	if extra.Pool == "" {
		extra.Pool = catalog.DefaultPool
	}
	state := string(catalog.RunSuccess)
	if m.Warnings > 0 {
		state = string(catalog.RunWarning)
	}
	s := catalog.Saveset{
		ID: m.ID.String(), Client: m.Client, Task: m.Task, TaskType: m.TaskType, Pool: extra.Pool, Run: m.Run, State: state,
		LevelRequested: m.RequestedLevel, Level: m.Level, Reason: m.Reason,
		Started: m.Started, Ended: m.Finished, Committed: m.Committed,
		Entries: int64(m.Entries), Logical: int64(m.Logical), New: int64(m.New), Stored: int64(m.Stored), Warnings: int64(m.Warnings),
		Sources: m.Sources, StreamName: extra.StreamName, SourceKey: extra.SourceKey, SourceID: extra.SourceID,
	}
	if !m.Parent.IsZero() {
		s.Parent = m.Parent.String()
	}
	st := stateRow(m.State)
	s.StateNumber, s.EOL, s.EOLCause, s.Locked = st.Number, st.EOL, st.Cause, st.Locked
	s.ImmutableUntil, s.DeletedAt = st.ImmutableUntil, st.DeletedAt
	return s, nil
}

func stateRow(s dedup.State) catalog.SavesetState {
	out := catalog.SavesetState{Number: int64(s.Number), EOL: s.EOL, Cause: s.Cause, Locked: s.Locked, ImmutableUntil: s.ImmutableUntil}
	if s.Deleted {
		out.DeletedAt = s.Time
	}
	return out
}

// Reconcile takes into the catalog what the store's manifests say and it lacks, and marks savesets deleted that the store
// does not have any more. One that was marked, and that the store has again, is back. Those whose manifests are there and
// cannot be read stay as the catalog knows them: they are damaged, not gone, until somebody gives them up. Call it after the
// store was opened, before Recover.
func (m *Manager) Reconcile(ctx context.Context, manifests []dedup.Manifest, unreadable ...dedup.SavesetID) error {
	have, err := m.opts.Catalog.SavesetIDs(ctx)
	if err != nil {
		return err
	}
	var rows []catalog.Saveset
	var faults []error
	for _, mf := range manifests {
		id := mf.ID.String()
		number, known := have[id]
		delete(have, id)
		if known && number >= int64(mf.State.Number) {
			continue
		}
		s, err := row(mf)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		rows = append(rows, s)
		m.log.Info("saveset taken into the catalog from its manifest", "saveset", id, "client", s.Client, "task", s.Task)
	}
	for _, id := range unreadable {
		if _, known := have[id.String()]; known {
			m.log.Warn("the manifest of a saveset cannot be read", "saveset", id)
			delete(have, id.String())
		}
	}
	gone := make([]string, 0, len(have))
	for id := range have {
		gone = append(gone, id)
		m.log.Warn("the store does not have the saveset any more", "saveset", id)
	}
	faults = append(faults, m.opts.Catalog.PutSavesets(ctx, rows...), m.opts.Catalog.MarkSavesetsGone(ctx, gone...))
	if store, err := m.opts.Store(); err == nil {
		for _, s := range rows {
			faults = append(faults, m.raiseChain(ctx, store, s))
		}
	}
	return errors.Join(faults...)
}

// raiseChain raises the EOL of every saveset that s needs to the end of the day of s's own, in the store first and then in
// the catalog, with the cause. COPY takes no part: it needs none. To the end of the day, because otherwise each INCR of a
// long chain of hourly ones would write a state of every saveset before it.
func (m *Manager) raiseChain(ctx context.Context, store Store, s catalog.Saveset) error {
	if s.Parent == "" || s.EOL.IsZero() {
		return nil
	}
	all, err := m.opts.Catalog.Savesets(ctx, catalog.SavesetFilter{Client: s.Client, Task: s.Task, Pool: s.Pool})
	if err != nil {
		return fmt.Errorf("raise EOL of the chain of saveset %s: %w", s.ID, err)
	}
	chain, _ := Chain(s, all)
	cause, eol := "saveset "+s.ID, endOfDay(s.EOL)
	states := map[string]catalog.SavesetState{}
	var audit []catalog.AuditEntry
	var faults []error
	for _, need := range chain[1:] {
		if !need.EOL.Before(s.EOL) {
			continue
		}
		state, err := raise(ctx, store, need.ID, eol, cause)
		if err != nil {
			faults = append(faults, fmt.Errorf("raise EOL of saveset %s: %w", need.ID, err))
			continue
		}
		states[need.ID] = stateRow(state)
		audit = append(audit, catalog.AuditEntry{Action: "saveset.eol", Object: need.ID, OK: true,
			Detail: fmt.Sprintf("raised to %s because of %s", eol.Format(time.RFC3339), cause)})
	}
	if len(states) > 0 {
		faults = append(faults, m.opts.Catalog.SetSavesetStates(ctx, states, audit...))
	}
	return errors.Join(faults...)
}

// endOfDay is the last microsecond, which is what the catalog tells apart, of a time's day in UTC.
func endOfDay(t time.Time) time.Time {
	return t.UTC().Truncate(24 * time.Hour).Add(24*time.Hour - time.Microsecond)
}

func raise(ctx context.Context, store Store, id string, eol time.Time, cause string) (dedup.State, error) {
	sid, err := dedup.ParseSavesetID(id)
	if err != nil {
		return dedup.State{}, err
	}
	return store.SetState(ctx, sid, func(s dedup.State) dedup.State {
		if s.EOL.Before(eol) {
			s.EOL, s.Cause = eol, cause
		}
		return s
	})
}

// readable is a client's path in text that survives JSON.
func readable(path []byte) string { return strings.ToValidUTF8(string(path), "\uFFFD") }
