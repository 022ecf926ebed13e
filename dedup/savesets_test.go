package dedup

import (
	"testing"
	"time"
)

func TestStates(t *testing.T) {
	now := time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC)
	o := memOptions(t)
	o.Now = func() time.Time { return now }
	s := mustCreate(t, o)
	ctx := t.Context()
	tree := randomTree(fixedRand(), 5)
	m := mustBackup(t, s, tree, 1)
	set := func(change func(*State)) error {
		_, err := s.SetState(ctx, m.ID, func(st State) State { change(&st); return st })
		return err
	}
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	for i, change := range []func(*State){
		func(st *State) { st.EOL, st.Cause = day(30), "retention" },
		func(st *State) { st.Locked = true },
		func(st *State) { st.ImmutableUntil = day(10) },
		func(st *State) { st.ImmutableUntil = day(12) },
	} {
		if err := set(change); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	wantKind(t, set(func(st *State) { st.ImmutableUntil = day(11) }), Immutable)
	wantKind(t, set(func(st *State) { st.Deleted = true }), Immutable)
	wantKind(t, set(func(st *State) { st.EOL = day(5) }), Immutable)
	if err := set(func(st *State) { st.EOL = day(20) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	got, err := s.Saveset(ctx, m.ID)
	want := State{Number: 5, Time: now, EOL: day(20), Cause: "retention", Locked: true, ImmutableUntil: day(12)}
	if err != nil || got.State != want {
		t.Fatalf("state %+v, %v, want %+v", got.State, err, want)
	}

	now = day(12)
	v, err := s.View(ctx, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, set(func(st *State) { st.Deleted = true }), InUse)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := set(func(st *State) { st.Deleted = true }); err != nil {
		t.Fatal(err)
	}
	_, err = s.View(ctx, m.ID)
	wantKind(t, err, NotFound)
	_, err = s.Begin(ctx, RunOptions{Parents: []SavesetID{m.ID}})
	wantKind(t, err, NotFound)
	wantKind(t, set(func(st *State) { st.Deleted = false }), Immutable)
	if sets, _ := s.Savesets(ctx); len(sets) != 0 {
		t.Errorf("%d savesets after the deletion", len(sets))
	}
}

// A state that lowers immutable_until, written past the product's back with the right key, does not count.
func TestForgedStateDoesNotCount(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	ctx := t.Context()
	m := mustBackup(t, s, randomTree(fixedRand(), 3), 1)
	until := time.Now().Add(time.Hour).UTC().Round(0)
	if _, err := s.SetState(ctx, m.ID, func(st State) State { st.ImmutableUntil = until; return st }); err != nil {
		t.Fatal(err)
	}
	forged := State{Number: 2, Time: time.Now().UTC(), Deleted: true}
	if err := s.putObject(ctx, stateKind, stateName(m.ID, 2), forged.object(m.ID)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, o)
	got, err := s.Saveset(ctx, m.ID)
	if err != nil || got.State.Deleted || !got.State.ImmutableUntil.Equal(until) {
		t.Fatalf("state %+v, %v", got.State, err)
	}
	next, err := s.SetState(ctx, m.ID, func(st State) State { st.Cause = "x"; return st })
	if err != nil || next.Number != 3 {
		t.Fatalf("next state %+v, %v", next, err)
	}
}
