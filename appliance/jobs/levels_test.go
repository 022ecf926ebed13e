package jobs

import (
	"testing"

	"coffer/appliance/catalog"
)

func TestDecide(t *testing.T) {
	set := func(id, level, parent string) catalog.Saveset {
		return catalog.Saveset{ID: id, Level: level, Parent: parent, SourceKey: "k", SourceID: "fs"}
	}
	full, diff := set("f", "FULL", ""), set("d", "DIFF", "f")
	incr1, incr2, incr3 := set("i1", "INCR", "f"), set("i2", "INCR", "i1"), set("i3", "INCR", "d")
	cp := set("c", "COPY", "")
	moved := incr1
	moved.SourceID = "other"
	tests := []struct {
		name      string
		kind      string
		requested Level
		key       string
		sets      []catalog.Saveset // newest first
		level     Level
		reason    Reason
		parent    string
	}{
		{"first INCR", "path", Incr, "k", nil, Full, ReasonNoValidFull, ""},
		{"first DIFF", "path", Diff, "k", nil, Full, ReasonNoValidFull, ""},
		{"COPY is no reference", "path", Incr, "k", []catalog.Saveset{cp}, Full, ReasonNoValidFull, ""},
		{"FULL as asked", "path", Full, "k", []catalog.Saveset{full}, Full, ReasonRequested, ""},
		{"COPY as asked", "path", Copy, "k", []catalog.Saveset{full}, Copy, ReasonRequested, ""},
		{"INCR to FULL", "path", Incr, "k", []catalog.Saveset{full}, Incr, ReasonRequested, "f"},
		{"INCR to INCR", "path", Incr, "k", []catalog.Saveset{incr2, incr1, full}, Incr, ReasonRequested, "i2"},
		{"INCR to DIFF", "path", Incr, "k", []catalog.Saveset{diff, incr1, full}, Incr, ReasonRequested, "d"},
		{"INCR passes COPY", "path", Incr, "k", []catalog.Saveset{cp, incr1, full}, Incr, ReasonRequested, "i1"},
		{"DIFF to FULL", "path", Diff, "k", []catalog.Saveset{incr3, diff, incr1, full}, Diff, ReasonRequested, "f"},
		{"INCR over a hole", "path", Incr, "k", []catalog.Saveset{incr2, full}, Full, ReasonChainBroken, ""},
		{"DIFF over a hole of INCR", "path", Diff, "k", []catalog.Saveset{incr2, full}, Diff, ReasonRequested, "f"},
		{"DIFF without its FULL", "path", Diff, "k", []catalog.Saveset{incr1}, Full, ReasonChainBroken, ""},
		{"INCR without its FULL", "path", Incr, "k", []catalog.Saveset{incr1}, Full, ReasonChainBroken, ""},
		{"source changed", "path", Incr, "new", []catalog.Saveset{full}, Full, ReasonSourceChanged, ""},
		{"file system changed", "path", Incr, "k", []catalog.Saveset{moved, full}, Full, ReasonSourceChanged, ""},
		{"stream", "stream", Incr, "k", []catalog.Saveset{full}, Full, ReasonTypeNoLevels, ""},
		{"stream FULL", "stream", Full, "k", []catalog.Saveset{full}, Full, ReasonRequested, ""},
		{"stream COPY", "stream", Copy, "k", nil, Copy, ReasonRequested, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Decide(tt.kind, tt.requested, tt.key, tt.sets, nil)
			parent := ""
			if d.Parent != nil {
				parent = d.Parent.ID
			}
			if d.Level != tt.level || d.Reason != tt.reason || parent != tt.parent {
				t.Errorf("got %s %s %q, want %s %s %q", d.Level, d.Reason, parent, tt.level, tt.reason, tt.parent)
			}
		})
	}
}

func TestChainOfWrongParentsEnds(t *testing.T) {
	a := catalog.Saveset{ID: "a", Level: "INCR", Parent: "b"}
	b := catalog.Saveset{ID: "b", Level: "INCR", Parent: "a"}
	if _, whole := Chain(a, []catalog.Saveset{a, b}); whole {
		t.Error("a loop passes for a whole chain")
	}
}

func TestLongChain(t *testing.T) {
	sets := []catalog.Saveset{{ID: "f", Level: "FULL"}}
	parent := "f"
	for i := range 100 {
		id := string(rune('a'+i/26)) + string(rune('a'+i%26))
		d := Decide("path", Incr, "", sets, nil)
		if d.LongChain() {
			t.Fatalf("INCR %d counts as a long chain", i+1)
		}
		sets = append([]catalog.Saveset{{ID: id, Level: "INCR", Parent: parent}}, sets...)
		parent = id
	}
	if d := Decide("path", Incr, "", sets, nil); !d.LongChain() || d.Incrs != 101 {
		t.Errorf("INCR 101: %+v", d)
	}
}

func TestSourceKeyIgnoresCommands(t *testing.T) {
	task := catalog.Task{Type: "path", Options: catalog.TaskOptions{Sources: [][]byte{[]byte("/etc")}}}
	a, err := SourceKey(task)
	if err != nil {
		t.Fatal(err)
	}
	task.Options.PreCommand = []string{"true"}
	if b, _ := SourceKey(task); a != b {
		t.Error("a pre command changes the source")
	}
	task.Options.Excludes = []string{"*.tmp"}
	if b, _ := SourceKey(task); a == b {
		t.Error("an exclude does not change the source")
	}
	task.Options.Excludes, task.Options.Seal = nil, &catalog.TaskSeal{Domain: "d", KeyID: "k"}
	sealed, _ := SourceKey(task)
	if sealed == a {
		t.Error("encryption does not change the source: an open saveset would be the parent of a sealed one")
	}
	task.Options.Seal.KeyFile = "/elsewhere"
	if b, _ := SourceKey(task); b != sealed {
		t.Error("the place of the key changes the source")
	}
}

// TestDecideDamaged: a chain with a damaged member is broken; damage elsewhere changes nothing.
func TestDecideDamaged(t *testing.T) {
	set := func(id, level, parent string) catalog.Saveset {
		return catalog.Saveset{ID: id, Level: level, Parent: parent, SourceKey: "k"}
	}
	sets := []catalog.Saveset{set("i2", "INCR", "i1"), set("i1", "INCR", "f"), set("f", "FULL", ""), set("old", "FULL", "")}
	for _, tt := range []struct {
		requested Level
		harmed    string
		level     Level
		reason    Reason
	}{
		{Incr, "i2", Full, ReasonChainBroken},
		{Incr, "f", Full, ReasonChainBroken},
		{Incr, "old", Incr, ReasonRequested},
		{Diff, "i1", Diff, ReasonRequested},
		{Diff, "f", Full, ReasonChainBroken},
		{Full, "f", Full, ReasonRequested},
	} {
		d := Decide("path", tt.requested, "k", sets, map[string]bool{tt.harmed: true})
		if d.Level != tt.level || d.Reason != tt.reason || (d.Parent == nil) != (tt.level == Full) {
			t.Errorf("%s with %s damaged: %+v", tt.requested, tt.harmed, d)
		}
	}
}
