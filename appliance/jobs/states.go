package jobs

import (
	"context"
	"fmt"

	"coffer/appliance/catalog"
	"coffer/dedup"
)

// Keeper is the part of a store that deletes, locks and keeps savesets; *dedup.Store is one.
type Keeper interface {
	Saveset(ctx context.Context, id dedup.SavesetID) (dedup.Manifest, error)
	SetState(ctx context.Context, id dedup.SavesetID, change func(dedup.State) dedup.State) (dedup.State, error)
	Delete(ctx context.Context, id dedup.SavesetID, cause string) error
	Purge(ctx context.Context, o dedup.PurgeOptions) (dedup.PurgeReport, error)
}

// ChangeState changes the state of a saveset, in the store first and then in the catalog.
func (m *Manager) ChangeState(ctx context.Context, k Keeper, id dedup.SavesetID, change func(dedup.State) dedup.State) error {
	st, err := k.SetState(ctx, id, change)
	if err != nil {
		return err
	}
	return m.opts.Catalog.SetSavesetStates(ctx, map[string]catalog.SavesetState{id.String(): stateRow(st)})
}

// DeleteSaveset deletes a saveset, in the store first and then in the catalog. Its space comes back with the next garbage
// collection.
func (m *Manager) DeleteSaveset(ctx context.Context, k Keeper, id dedup.SavesetID, cause string) error {
	if err := k.Delete(ctx, id, cause); err != nil {
		return err
	}
	return m.recordDeleted(ctx, k, "", id)
}

// Purge deletes savesets of a list as Store.Purge does, and records what was deleted, each with an entry in the audit log.
func (m *Manager) Purge(ctx context.Context, k Keeper, o dedup.PurgeOptions) (dedup.PurgeReport, error) {
	report, err := k.Purge(ctx, o)
	if rerr := m.recordDeleted(context.WithoutCancel(ctx), k, o.Cause, report.Deleted...); err == nil {
		err = rerr
	}
	return report, err
}

// recordDeleted takes deletions into the catalog, with audit entries where a cause is given.
func (m *Manager) recordDeleted(ctx context.Context, k Keeper, cause string, ids ...dedup.SavesetID) error {
	states := make(map[string]catalog.SavesetState, len(ids))
	var audit []catalog.AuditEntry
	for _, id := range ids {
		mf, err := k.Saveset(ctx, id)
		if err != nil {
			return fmt.Errorf("record that saveset %s is deleted: %w", id, err)
		}
		states[id.String()] = stateRow(mf.State)
		if cause != "" {
			audit = append(audit, catalog.AuditEntry{Action: "saveset.purge", Object: id.String(), OK: true, Detail: cause})
		}
	}
	if len(states) == 0 {
		return nil
	}
	return m.opts.Catalog.SetSavesetStates(ctx, states, audit...)
}
