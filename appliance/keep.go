package appliance

import (
	"context"
	"fmt"
	"time"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/retention"
	"coffer/dedup"
)

// verdicts judges savesets by the rules of retention: those of one task, or all.
func (a *appliance) verdicts(ctx context.Context, task string) ([]retention.Verdict, error) {
	sets, err := a.catalog.Savesets(ctx, catalog.SavesetFilter{Task: task})
	if err != nil {
		return nil, err
	}
	tasks, err := a.catalog.Tasks(ctx)
	if err != nil {
		return nil, err
	}
	exists := make(map[string]bool, len(tasks))
	for _, t := range tasks {
		exists[t.Name] = true
	}
	harmed, err := a.harmed(ctx)
	if err != nil {
		return nil, err
	}
	return retention.Judge(retention.Facts{Savesets: sets, Now: a.clock.Now(),
		TaskExists: func(name string) bool { return exists[name] }, Harmed: func(id string) bool { return harmed[id] },
		Exported: a.exportOf}), nil
}

// harmed returns the savesets that damage keeps from being restored whole.
func (a *appliance) harmed(ctx context.Context) (map[string]bool, error) {
	sets, err := a.catalog.HarmedSavesets(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(sets))
	for _, s := range sets {
		out[s.Saveset] = true
	}
	return out, nil
}

// verdict judges one saveset; id is a whole one.
func (a *appliance) verdict(ctx context.Context, id string) (retention.Verdict, error) {
	s, err := a.catalog.Saveset(ctx, id)
	if err != nil {
		return retention.Verdict{}, err
	}
	all, err := a.verdicts(ctx, s.Task) // rules look at nothing beyond a task
	if err != nil {
		return retention.Verdict{}, err
	}
	for _, v := range all {
		if v.Saveset.ID == id {
			return v, nil
		}
	}
	return retention.Verdict{}, api.Errorf(api.CodeNotFound, "saveset %s is deleted", id)
}

func apiKept(r retention.Reason) api.KeptReason {
	return api.KeptReason{Cause: api.KeptCause(r.Cause), Until: at(r.Until), By: r.By}
}

// DeleteSaveset implements server.Savesets.
func (s savesets) DeleteSaveset(ctx context.Context, id string, force bool) error {
	store, err := s.store.get()
	if err != nil {
		return lockedError(err)
	}
	v, err := s.verdict(ctx, id)
	if err != nil {
		return apiError(err)
	}
	for _, r := range v.Kept {
		if r.Binding() || !force {
			return keptError(id, r)
		}
	}
	sid, err := dedup.ParseSavesetID(id)
	if err != nil {
		return apiError(err)
	}
	return keepError(id, s.jobs.DeleteSaveset(ctx, store, sid, caller(ctx)))
}

// LockSaveset implements server.Savesets.
func (s savesets) LockSaveset(ctx context.Context, id string, locked bool) (api.Saveset, error) {
	return s.changeState(ctx, id, func(st dedup.State) dedup.State {
		st.Locked = locked
		return st
	})
}

// maxImmutable bounds how far ahead a saveset may be made immutable: what is beyond is a slip of the hand, and nobody
// could take it back.
const maxImmutable = 100 * 366 * 24 * time.Hour

// MakeImmutable implements server.Savesets.
func (s savesets) MakeImmutable(ctx context.Context, id string, until time.Time) (api.Saveset, error) {
	now := s.clock.Now()
	switch {
	case !until.After(now):
		return api.Saveset{}, api.Errorf(api.CodeBadRequest, "%s has passed", until.UTC().Format(time.RFC3339))
	case until.Sub(now) > maxImmutable:
		return api.Saveset{}, api.Errorf(api.CodeBadRequest, "%s is more than 100 years away", until.UTC().Format(time.RFC3339))
	}
	v, err := s.verdict(ctx, id)
	if err != nil {
		return api.Saveset{}, apiError(err)
	}
	if until.Before(v.Saveset.ImmutableUntil) {
		return api.Saveset{}, api.Errorf(api.CodeConflict, "saveset %s is immutable until %s", id, v.Saveset.ImmutableUntil.Format(time.RFC3339)).
			WithHint("the time can only be moved further")
	}
	return s.changeState(ctx, id, func(st dedup.State) dedup.State {
		st.ImmutableUntil = until
		return st
	})
}

func (s savesets) changeState(ctx context.Context, id string, change func(dedup.State) dedup.State) (api.Saveset, error) {
	store, err := s.store.get()
	if err != nil {
		return api.Saveset{}, lockedError(err)
	}
	sid, err := dedup.ParseSavesetID(id)
	if err != nil {
		return api.Saveset{}, apiError(err)
	}
	if err := s.jobs.ChangeState(ctx, store, sid, change); err != nil {
		return api.Saveset{}, keepError(id, err)
	}
	return s.Saveset(ctx, id)
}

// keptError says why a saveset is not deleted, and what to do.
func keptError(id string, r retention.Reason) error {
	refuse := func(why, hint string, args ...any) error {
		return api.Errorf(api.CodeConflict, "saveset %s %s", id, why).WithHint(hint, args...)
	}
	const insist = "--force deletes it all the same"
	switch r.Cause {
	case retention.Locked:
		return refuse("is locked", "coffer saveset unlock %s", id)
	case retention.Needed:
		return refuse("is needed by saveset "+r.By+", which is locked", "coffer saveset unlock %s", r.By)
	case retention.Exported:
		return refuse("has the export "+r.By, "coffer export drop %s", r.By)
	case retention.Immutable:
		return refuse("is immutable until "+r.Until.UTC().Format(time.RFC3339), "nobody can delete it before that")
	case retention.Newest:
		return refuse("is the newest that its task can be restored from", insist)
	}
	if r.Until.IsZero() {
		return refuse("has no end of life", insist)
	}
	return refuse("is kept until "+r.Until.UTC().Format(time.RFC3339), insist)
}

// keepError words the store's refusals.
func keepError(id string, err error) error {
	switch dedup.KindOf(err) {
	case dedup.InUse:
		return api.Errorf(api.CodeInUse, "saveset %s is being read or is the reference of a backup that runs", id).
			WithHint("wait for the run, close what is open below the mount, then try again")
	case dedup.Retained, dedup.Immutable:
		return api.Errorf(api.CodeConflict, "saveset %s: %v", id, err)
	}
	return apiError(err)
}

// caller names who called the API.
func caller(ctx context.Context) string {
	c, ok := api.CallerFrom(ctx)
	if !ok {
		return "the appliance"
	}
	return "user " + c.User.Name
}

// mayPurge holds a manifest, as it is right before its deletion, against the rules that need no other saveset: what the
// catalog knew may be older.
func mayPurge(m dedup.Manifest, now time.Time) error {
	s := catalog.Saveset{ID: m.ID.String(), EOL: m.State.EOL, Locked: m.State.Locked, ImmutableUntil: m.State.ImmutableUntil}
	for _, v := range retention.Judge(retention.Facts{Savesets: []catalog.Saveset{s}, Now: now, TaskExists: func(string) bool { return false }}) {
		for _, r := range v.Kept {
			return fmt.Errorf("kept: %s", r.Cause)
		}
	}
	return nil
}
