package retention

import (
	"slices"
	"testing"
	"time"

	"coffer/appliance/catalog"
)

var now = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

// set is a saveset of task web whose end of life has passed.
func set(id, parent string, edit ...func(*catalog.Saveset)) catalog.Saveset {
	s := catalog.Saveset{ID: id, Parent: parent, Task: "web", EOL: now.Add(-time.Hour)}
	for _, e := range edit {
		e(&s)
	}
	return s
}

func alive(s *catalog.Saveset)  { s.EOL, s.EOLCause = now.Add(time.Hour), "pool default" }
func locked(s *catalog.Saveset) { s.Locked = true }
func immutable(s *catalog.Saveset) {
	s.ImmutableUntil = now.Add(24 * time.Hour)
}

func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sets   []catalog.Saveset
		gone   bool // the task is
		harmed string
		served string // by an export
		want   map[string][]Cause
	}{
		{name: "expired ones go, the newest stays", sets: []catalog.Saveset{set("1", ""), set("2", "1"), set("3", "2")},
			want: map[string][]Cause{"1": nil, "2": nil, "3": {Newest}}},
		{name: "a task that is gone keeps none", sets: []catalog.Saveset{set("1", ""), set("2", "1")}, gone: true,
			want: map[string][]Cause{"1": nil, "2": nil}},
		{name: "end of life", sets: []catalog.Saveset{set("1", ""), set("2", "", alive), set("3", "")},
			want: map[string][]Cause{"1": nil, "2": {EOL}, "3": {Newest}}},
		{name: "the moment itself is not after it", sets: []catalog.Saveset{set("1", "", func(s *catalog.Saveset) { s.EOL = now }), set("2", "")},
			want: map[string][]Cause{"1": {EOL}, "2": {Newest}}},
		{name: "no end of life", sets: []catalog.Saveset{set("1", "", func(s *catalog.Saveset) { s.EOL = time.Time{} }), set("2", "")},
			want: map[string][]Cause{"1": {EOL}, "2": {Newest}}},
		{name: "a lock covers what the saveset needs, not what comes later",
			sets: []catalog.Saveset{set("1", ""), set("2", "1"), set("3", "2", locked), set("4", "3"), set("5", "4")},
			want: map[string][]Cause{"1": {Needed}, "2": {Needed}, "3": {Locked}, "4": nil, "5": {Newest}}},
		{name: "immutable", sets: []catalog.Saveset{set("1", "", immutable), set("2", "")},
			want: map[string][]Cause{"1": {Immutable}, "2": {Newest}}},
		{name: "a harmed one is no newest", sets: []catalog.Saveset{set("1", ""), set("2", ""), set("3", "")}, harmed: "3",
			want: map[string][]Cause{"1": nil, "2": {Newest}, "3": nil}},
		{name: "an exported one stays", sets: []catalog.Saveset{set("1", ""), set("2", "1"), set("3", "")}, served: "2",
			want: map[string][]Cause{"1": nil, "2": {Exported}, "3": {Newest}}},
		{name: "wrong parents end", sets: []catalog.Saveset{set("1", "2", locked), set("2", "1")},
			want: map[string][]Cause{"1": {Locked, Needed}, "2": {Needed, Newest}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Judge(Facts{Savesets: tc.sets, Now: now, TaskExists: func(string) bool { return !tc.gone },
				Harmed: func(id string) bool { return id == tc.harmed }, Exported: func(id string) string {
					if id == tc.served {
						return "export 1"
					}
					return ""
				}})
			if len(got) != len(tc.want) {
				t.Fatalf("%d verdicts, want %d", len(got), len(tc.want))
			}
			for _, v := range got {
				var causes []Cause
				for _, r := range v.Kept {
					causes = append(causes, r.Cause)
				}
				if !slices.Equal(causes, tc.want[v.Saveset.ID]) {
					t.Errorf("saveset %s: %v, want %v", v.Saveset.ID, causes, tc.want[v.Saveset.ID])
				}
			}
		})
	}
}

func TestJudgeOrder(t *testing.T) {
	early := func(s *catalog.Saveset) { s.EOL = now.Add(-48 * time.Hour) }
	var ids []string
	for _, v := range Judge(Facts{Savesets: []catalog.Saveset{set("3", ""), set("1", ""), set("2", "", early)}, Now: now,
		TaskExists: func(string) bool { return false }}) {
		ids = append(ids, v.Saveset.ID)
	}
	if want := []string{"2", "1", "3"}; !slices.Equal(ids, want) {
		t.Errorf("order %v, want %v", ids, want)
	}
}
