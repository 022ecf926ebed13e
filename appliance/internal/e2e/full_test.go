package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/appliance/internal/harness"
	"coffer/appliance/internal/treecmp"
)

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp -a: %v: %s", err, out)
	}
}

// tmpfs mounts a small file system for the time of the test.
func tmpfs(t *testing.T, dir string, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("coffer-test", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fill leaves free bytes on the file system of dir and returns what takes the rest.
func fill(t *testing.T, dir string, free int64) (remove func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	size := int64(st.Bavail)*st.Bsize - free
	path := filepath.Join(dir, "filler")
	if size <= 0 {
		return func() {}
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// A full disk met in each place where the appliance writes: the run fails with
// that reason, the daemon lives, earlier savesets are whole, and the next run
// works once there is space.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	places := []struct {
		name string
		dir  string // below the data directory: where the small file system is
		size string
		free int64 // bytes left when the run starts
	}{
		{"containers", "spool", "96m", 2 << 20},
		{"store", "store", "160m", 2 << 20},
		{"index", "index", "640m", 1 << 20},
		{"catalog", "catalog", "64m", 0},
	}
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			l := newLab(t, config("[store]\nreserve = \"1MiB\"\n"), func(o *harness.Options) {
				o.Data = filepath.Join(filepath.Dir(o.Dir), "data")
				tmpfs(t, filepath.Join(o.Data, place.dir), place.size)
			})
			source := l.task("full")
			bulk(t, source, 200, 100<<10, 3)
			first := l.backup("full", api.LevelFull, api.RunSuccess)
			reference := l.path("reference")
			copyTree(t, source, reference)
			bulk(t, filepath.Join(source, "more"), 300, 100<<10, 4)

			remove := fill(t, filepath.Join(l.Data, place.dir), place.free)
			run, err := l.Run(t.Context(), "backup", "full")
			if err == nil {
				t.Fatalf("a backup onto a full disk ended %q", run.State)
			}
			said := strings.ToLower(fmt.Sprint(run.Reason, " ", run.Hint, " ", err))
			if !strings.Contains(said, "space") && !strings.Contains(said, "full") {
				t.Errorf("the message does not say that the disk is full: %s", said)
			}
			if !l.Alive() {
				t.Fatal("cofferd died of a full disk")
			}
			same(t, reference, filepath.Join(l.restore(first.Saveset, "first"), source), treecmp.Options{})
			remove()
			again := l.backup("full", api.LevelIncr, api.RunSuccess)
			same(t, source, filepath.Join(l.restore(again.Saveset, "again"), source), treecmp.Options{})
		})
	}
}
