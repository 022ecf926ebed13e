package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/internal/treecmp"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What happens to files that exist: keep, overwrite, new version; and verify
// writes nothing and finds what differs.
func TestRestoreModes(t *testing.T) {
	l := newLab(t)
	source := l.task("modes")
	file, other := filepath.Join(source, "sub/file"), filepath.Join(source, "other")
	write(t, file, []byte("as it was"))
	write(t, other, []byte("other"))
	saved := l.backup("modes", api.LevelFull, api.RunSuccess).Saveset

	verify := l.run(api.RunSuccess, "restore", saved, "--client", client, "--verify")
	if verify.Progress.VerifiedFiles < 2 || verify.Progress.DifferFiles != 0 {
		t.Errorf("verify of an unchanged tree: %d equal, %d differ", verify.Progress.VerifiedFiles, verify.Progress.DifferFiles)
	}
	write(t, file, []byte("changed since"))
	verify, _ = l.Run(t.Context(), "restore", saved, "--client", client, "--verify")
	if verify.Progress.DifferFiles == 0 || verify.State == api.RunSuccess {
		t.Errorf("verify of a changed tree: state %s, %d differ", verify.State, verify.Progress.DifferFiles)
	}
	l.run(api.RunSuccess, "restore", saved, "--client", client, "--mode", "keep")
	if got := read(t, file); got != "changed since" {
		t.Errorf("keep: the file reads %q", got)
	}
	l.run(api.RunSuccess, "restore", saved, "--client", client, "--mode", "new-version")
	if got := read(t, file); got != "changed since" {
		t.Errorf("new-version: the old file reads %q", got)
	}
	if !beside(t, file, "as it was") {
		t.Error("new-version: no file with the restored content stands beside the old one")
	}
	l.run(api.RunSuccess, "restore", saved, file, "--client", client, "--mode", "overwrite")
	if got := read(t, file); got != "as it was" {
		t.Errorf("overwrite: the file reads %q", got)
	}
}

func beside(t *testing.T, file, content string) bool {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if path := filepath.Join(filepath.Dir(file), e.Name()); path != file && read(t, path) == content {
			return true
		}
	}
	return false
}

// Selections: a path, patterns, flat.
func TestRestoreSelections(t *testing.T) {
	l := newLab(t)
	source := l.task("pick")
	for _, name := range []string{"a.txt", "b.log", "d/c.txt", "d/e.log", "d/deep/f.txt"} {
		write(t, filepath.Join(source, name), []byte(name))
	}
	saved := l.backup("pick", api.LevelFull, api.RunSuccess).Saveset
	files := func(root string) string {
		var names []string
		_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				rel, _ := filepath.Rel(root, p)
				names = append(names, rel)
			}
			return nil
		})
		return strings.Join(names, " ")
	}
	if got := files(l.restore(saved, "r1", filepath.Join(source, "d")) + source); got != "d/c.txt d/deep/f.txt d/e.log" {
		t.Errorf("a path: %s", got)
	}
	if got := files(l.restore(saved, "r2", "--include", "*.txt") + source); got != "a.txt d/c.txt d/deep/f.txt" {
		t.Errorf("include: %s", got)
	}
	if got := files(l.restore(saved, "r3", "--exclude", "*.txt") + source); got != "b.log d/e.log" {
		t.Errorf("exclude: %s", got)
	}
	if got := files(l.restore(saved, "r4", "--flat", filepath.Join(source, "d"))); got != "c.txt e.log f.txt" {
		t.Errorf("flat: %s", got)
	}
	l.refused([]string{"no/such"}, "restore", saved, "/no/such", "--client", client, "--to", l.path("r5"))
}

// Single files and trees come over REST with no agent and no mount.
func TestSavesetsOverREST(t *testing.T) {
	l := newLab(t)
	source := l.task("rest")
	write(t, filepath.Join(source, "dir/file"), []byte(strings.Repeat("content ", 100000)))
	if err := os.Symlink("file", filepath.Join(source, "dir/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(source, "dir/file"), filepath.Join(source, "dir/hard")); err != nil {
		t.Fatal(err)
	}
	saved := l.backup("rest", api.LevelFull, api.RunSuccess).Saveset
	if err := l.agent.Stop(); err != nil {
		t.Fatal(err)
	}
	l.agent = nil
	page := decode[api.Page[api.Entry]](l, "saveset", "ls", saved, filepath.Join(source, "dir"))
	if len(page.Items) != 3 || page.Items[0].Name != "file" || page.Items[0].Size != 800000 {
		t.Errorf("saveset ls: %+v", page.Items)
	}
	if got := l.ok("saveset", "get", saved, filepath.Join(source, "dir/file"), "-o", "-"); got != strings.Repeat("content ", 100000) {
		t.Errorf("saveset get of a file: %d bytes", len(got))
	}
	archive := l.ok("saveset", "get", saved, source, "-o", "-")
	var names []string
	for tr := tar.NewReader(bytes.NewReader([]byte(archive))); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); strings.Count(got, "dir/") < 4 {
		t.Errorf("saveset get of a directory holds %s", got)
	}
	// The offline agent: an immediate start fails at once and says what to do.
	start := time.Now()
	l.refused([]string{client, "last seen"}, "backup", "rest")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a backup of an offline client took %s to fail", took)
	}
}

// A mount that is busy goes at stop, and one that a killed daemon left behind
// is cleared at the next start.
func TestMountLifecycle(t *testing.T) {
	needFUSE(t)
	l := newLab(t)
	source := l.task("mnt")
	write(t, filepath.Join(source, "file"), []byte("mounted"))
	l.backup("mnt", api.LevelFull, api.RunSuccess)
	m := decode[api.Mount](l, "mount", "on")
	inside := filepath.Join(m.Path, client, "mnt", "latest", source)
	busy, err := os.Open(filepath.Join(inside, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	l.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Launch(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.agent.WaitOnline(ctx); err != nil {
		t.Fatal(err)
	}
	l.ok("mount", "on")
	same(t, source, inside, treecmp.Options{Ignore: treecmp.Blocks | treecmp.Flags})
	again, err := os.Open(filepath.Join(inside, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if mounts := read(t, "/proc/self/mounts"); strings.Contains(mounts, m.Path) {
		t.Error("a busy mount is still there after the stop")
	}
	if err := l.Launch(ctx); err != nil {
		t.Fatal(err)
	}
}
