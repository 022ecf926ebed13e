package dedup

import (
	"testing"
	"time"
)

// TestDamagedStateChangesNothing: a state that cannot be read may have been a deletion, a lock or a term. Nothing is
// shortened or deleted until it is dismissed, and then the saveset is locked; a saveset is not back in silence.
func TestDamagedStateChangesNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		last func(State) State
	}{
		{"deleted", func(st State) State { st.Deleted = true; return st }},
		{"immutable", func(st State) State { st.ImmutableUntil = time.Now().Add(time.Hour); return st }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := memOptions(t)
			s := mustCreate(t, o)
			tree := randomTree(newRand(t), 10)
			m := mustBackup(t, s, tree, 1)
			st, err := s.SetState(t.Context(), m.ID, tt.last)
			if err != nil {
				t.Fatal(err)
			}
			name := stateName(m.ID, st.Number)
			flipBlob(t, o.Blob, name, -3)
			loseCopy(t, o.Blob, name)
			s = reopen(t, s, o)
			got, err := s.Saveset(t.Context(), m.ID)
			if err != nil || got.State.Doubt != name || got.State.Deleted {
				t.Fatalf("%+v, %v", got.State, err)
			}
			if d := s.Damage(); len(d) != 1 || d[0].Object != name || d[0].Saveset != m.ID {
				t.Fatalf("%+v", d)
			}
			if a, err := s.Affected(t.Context(), 10); err != nil || len(a) != 1 || a[0].Object != name {
				t.Fatalf("%+v, %v", a, err)
			}
			wantKind(t, s.Delete(t.Context(), m.ID, "test"), Damaged)
			_, err = s.SetState(t.Context(), m.ID, func(st State) State { st.EOL = time.Now(); return st })
			wantKind(t, err, Damaged)
			mustCompare(t, s, m.ID, tree)
			if rep, err := s.Heal(t.Context(), nil, nil); err != nil || rep.Left != 1 {
				t.Fatalf("%+v, %v", rep, err)
			}
			if err := s.Dismiss(t.Context(), name, "admin"); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, err := s.Saveset(t.Context(), m.ID)
				if err != nil || got.State.Doubt != "" || !got.State.Locked || got.State.Number <= st.Number || len(s.Damage()) != 0 {
					t.Fatalf("%+v, %v, %+v", got.State, err, s.Damage())
				}
				wantKind(t, s.Delete(t.Context(), m.ID, "test"), Retained)
				s = reopen(t, s, o)
			}
		})
	}
}

// TestDamagedManifestIsNamed: its saveset is on the list, what it needs is not collected, and it goes only when it is
// dismissed, which its states can forbid.
func TestDamagedManifestIsNamed(t *testing.T) {
	o := memOptions(t)
	s := mustCreate(t, o)
	tree := randomTree(newRand(t), 10)
	kept, gone := mustBackup(t, s, tree, 1), mustBackup(t, s, tree, 1)
	if _, err := s.SetState(t.Context(), kept.ID, func(st State) State { st.ImmutableUntil = time.Now().Add(time.Hour); return st }); err != nil {
		t.Fatal(err)
	}
	for _, m := range []Manifest{kept, gone} {
		flipBlob(t, o.Blob, manifestName(m.ID), -3)
		loseCopy(t, o.Blob, manifestName(m.ID))
	}
	s = reopen(t, s, o)
	d := s.Damage()
	if len(d) != 2 || d[0].Saveset == d[1].Saveset || d[0].Object != manifestName(d[0].Saveset) || d[1].Object != manifestName(d[1].Saveset) {
		t.Fatalf("%+v", d)
	}
	_, err := s.Collect(t.Context(), CollectOptions{})
	wantKind(t, err, Damaged)
	wantKind(t, s.Dismiss(t.Context(), manifestName(kept.ID), "admin"), Immutable)
	if err := s.Dismiss(t.Context(), manifestName(gone.ID), "admin"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Dismiss(t.Context(), manifestName(gone.ID), "admin"), NotFound)
	s = reopen(t, s, o)
	if d := s.Damage(); len(d) != 1 || d[0].Saveset != kept.ID {
		t.Fatalf("%+v", d)
	}
}
