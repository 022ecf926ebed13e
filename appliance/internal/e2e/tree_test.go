package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coffer/api"
	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
)

// A nasty tree comes back from a restore, and shows in the mount, without any
// difference; rsync, which knows nothing of us, agrees where it can go.
func TestNastyTree(t *testing.T) {
	needFUSE(t)
	l := newLab(t)
	source := l.task("nasty")
	nasty(t, source, nastytree.Options{Seed: 1, Wide: long(20000, 20000, 100000), Huge: true})
	run := l.backup("nasty", api.LevelFull, api.RunSuccess)
	t.Logf("FULL: %d entries, %.2f s", run.Progress.Entries, run.EndedAt.Sub(*run.StartedAt).Seconds())

	restored := filepath.Join(l.restore(run.Saveset, "restored"), source)
	clean(t, restored)
	same(t, source, restored, treecmp.Options{})

	m := decode[api.Mount](l, "mount", "on")
	mounted := filepath.Join(m.Path, client, "nasty", "latest", source)
	// A mount has no chattr flags (its files are all read-only) and allocates nothing.
	same(t, source, mounted, treecmp.Options{Ignore: treecmp.Flags | treecmp.Blocks})
	l.ok("mount", "off")

	rsyncAgrees(t, source, restored)
}

// rsyncAgrees compares by rsync, without the over-long path and the huge sparse file.
func rsyncAgrees(t *testing.T, a, b string) {
	t.Helper()
	cmd := exec.Command("rsync", "-aHAXnc", "--modify-window=-1", "--delete", "-i", "--exclude=/"+nastytree.Deep,
		"--exclude=/"+nastytree.Sparse, a+"/", b+"/")
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("rsync finds differences: %v\n%s", err, last(out, 2000))
	}
}

// Every generation of a chain of FULL, DIFF, INCR and COPY comes back as the
// tree was at that moment: a second tree made from the same seed is changed in
// step and compared with.
func TestGenerations(t *testing.T) {
	l := newLab(t)
	source := l.task("chain")
	options := nastytree.Options{Seed: 7, Wide: 500}
	nasty(t, source, options)
	levels := []struct {
		ask, get api.Level
		reason   string
	}{
		{api.LevelIncr, api.LevelFull, "no_valid_full"}, {api.LevelIncr, api.LevelIncr, "requested"},
		{api.LevelDiff, api.LevelDiff, "requested"}, {api.LevelCopy, api.LevelCopy, "requested"},
		{api.LevelIncr, api.LevelIncr, "requested"}, {api.LevelFull, api.LevelFull, "requested"},
		{api.LevelIncr, api.LevelIncr, "requested"},
	}
	var runs []api.Run
	for round, level := range levels {
		if round > 0 {
			if _, err := nastytree.Mutate(source, round, options); err != nil {
				t.Fatal(err)
			}
		}
		run := l.backup("chain", level.ask, api.RunSuccess)
		if run.LevelEffective != level.get || run.LevelReason != level.reason {
			t.Errorf("round %d: asked for %s, got %s (%s), want %s (%s)", round, level.ask, run.LevelEffective, run.LevelReason, level.get, level.reason)
		}
		runs = append(runs, run)
	}
	parents(l, runs)
	reference := l.path("reference")
	nasty(t, reference, options)
	for round, run := range runs {
		if round > 0 {
			if _, err := nastytree.Mutate(reference, round, options); err != nil {
				t.Fatal(err)
			}
		}
		restored := filepath.Join(l.restore(run.Saveset, fmt.Sprintf("generation%d", round)), source)
		clean(t, restored)
		same(t, reference, restored, treecmp.Options{})
	}
}

// parents checks what each saveset was made against: a DIFF against the last
// FULL, an INCR against the last of the chain, a COPY counts for nobody.
func parents(l *lab, runs []api.Run) {
	l.Helper()
	want := []int{-1, 0, 0, -1, 2, -1, 5}
	for i, run := range runs {
		s := decode[api.Saveset](l, "saveset", "show", run.Saveset)
		parent := ""
		if want[i] >= 0 {
			parent = runs[want[i]].Saveset
		}
		if s.Parent != parent {
			l.Errorf("saveset %d (%s): parent %q, want %q", i, s.Level, s.Parent, parent)
		}
	}
}

// An unchanged tree is not read again, and a touched one is read only where it
// was touched; a clock that was set back hides no change.
func TestIncrementalReadsWhatChanged(t *testing.T) {
	l := newLab(t)
	source := l.task("incr")
	for i := range 200 {
		write(t, filepath.Join(source, fmt.Sprintf("d%d/f%d", i%7, i)), []byte(strings.Repeat(fmt.Sprint(i), 3000)))
	}
	age()
	l.backup("incr", api.LevelFull, api.RunSuccess)
	if run := l.backup("incr", api.LevelIncr, api.RunSuccess); run.Progress.BytesRead != 0 || run.Progress.BytesStored > 64<<10 {
		t.Errorf("an unchanged tree: read %d bytes, stored %d", run.Progress.BytesRead, run.Progress.BytesStored)
	}
	changed := filepath.Join(source, "d1/f1")
	before, err := os.Stat(changed)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte(strings.Repeat("x", int(before.Size())))
	if err := os.WriteFile(changed, data, 0o644); err != nil {
		t.Fatal(err)
	}
	// Same size, same mtime as before: only ctime tells.
	if err := os.Chtimes(changed, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	run := l.backup("incr", api.LevelIncr, api.RunSuccess)
	if run.Progress.BytesRead != before.Size() {
		t.Errorf("one file of %d bytes changed, %d bytes were read", before.Size(), run.Progress.BytesRead)
	}
	same(t, source, filepath.Join(l.restore(run.Saveset, "r"), source), treecmp.Options{})
	full := l.backup("incr", api.LevelFull, api.RunSuccess)
	if full.Progress.BytesRead < 200*3000 {
		t.Errorf("a FULL read %d bytes: it must read everything again", full.Progress.BytesRead)
	}
	if full.Progress.BytesStored > 64<<10 {
		t.Errorf("a FULL of known data stored %d bytes", full.Progress.BytesStored)
	}
}

// Excludes and warnings: what is left out stays out, what cannot be read is
// named, and the run goes on.
func TestExcludesAndWarnings(t *testing.T) {
	l := newLab(t)
	source := l.task("some", "--exclude", "*.tmp", "--exclude", "/cache/", "--exclude", "!keep.tmp")
	for _, name := range []string{"a", "b.tmp", "keep.tmp", "sub/c.tmp", "sub/d"} {
		write(t, filepath.Join(source, name), []byte(name))
	}
	run := l.backup("some", api.LevelFull, api.RunSuccess)
	got := filepath.Join(l.restore(run.Saveset, "r"), source)
	for name, want := range map[string]bool{"a": true, "b.tmp": false, "keep.tmp": true, "sub/c.tmp": false, "sub/d": true} {
		if _, err := os.Lstat(filepath.Join(got, name)); (err == nil) != want {
			t.Errorf("%s: restored %v, want %v", name, err == nil, want)
		}
	}
	l.refused([]string{"/no/such/source", client}, "task", "add", "bad", "--client", client, "--source", "/no/such/source")
}
