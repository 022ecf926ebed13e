package blob_test

import (
	"errors"
	"testing"

	"coffer/dedup/blob"
	"coffer/dedup/vfs"
	"coffer/dedup/vfs/errorfs"
)

// failing is a file system whose operations of some kinds fail while it says so.
type failing map[errorfs.Op]bool

func (f failing) Before(op errorfs.Op, _ string) error {
	if f[op] {
		return errorfs.ErrInjected
	}
	return nil
}

// there reports whether a blob is found after a loss of power now, of which nothing unsynced survives.
func there(t *testing.T, mem *vfs.Mem, name string) bool {
	t.Helper()
	_, err := openDir(t, mem.Crash(vfs.CrashOptions{}), "/store").Size(t.Context(), name)
	if err != nil && !errors.Is(err, blob.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// Whoever is told that a blob is gone, or does not exist, never meets it again.
func TestRemovalThatIsNotSynced(t *testing.T) {
	for name, again := range map[string]func(d *blob.Dir) error{
		"deleted again": func(d *blob.Dir) error {
			err := d.Delete(t.Context(), "a/b")
			if errors.Is(err, blob.ErrNotExist) {
				return nil
			}
			return errors.Join(err, errors.New("not found missing"))
		},
		"settled":              func(d *blob.Dir) error { return d.Settle(t.Context(), "a/") },
		"settled with all":     func(d *blob.Dir) error { return d.Settle(t.Context(), "") },
		"settled by a prefix":  func(d *blob.Dir) error { return d.Settle(t.Context(), "a/b") },
		"a blob beside it put": func(d *blob.Dir) error { return blob.PutBytes(t.Context(), d, "a/c", nil) },
	} {
		for _, restarted := range []bool{false, true} {
			mem, faults := vfs.NewMem(), failing{}
			fsys := errorfs.Wrap(mem, faults)
			d := openDir(t, fsys, "/store")
			put(t, d, "a/b", "old")
			if err := d.Settle(t.Context(), "a/"); err != nil {
				t.Fatal(err)
			}
			faults[errorfs.OpSyncDir] = true
			if err := d.Delete(t.Context(), "a/b"); !errors.Is(err, errorfs.ErrInjected) {
				t.Fatalf("%s: the removal does not fail: %v", name, err)
			}
			if restarted {
				d = openDir(t, mem, "/store") // another process, whose disk works
			} else if err := again(d); !errors.Is(err, errorfs.ErrInjected) {
				t.Fatalf("%s: it is said to be gone and may come back: %v", name, err)
			}
			if !there(t, mem, "a/b") {
				t.Fatalf("%s: the test tests nothing", name)
			}
			faults[errorfs.OpSyncDir] = false
			if err := again(d); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if there(t, mem, "a/b") {
				t.Errorf("%s, restarted %v: it comes back", name, restarted)
			}
		}
	}
}

// A Put that failed when its blob was there already, and could not be taken back, is gone when Delete says so.
func TestPutThatFailsAfterwards(t *testing.T) {
	mem, faults := vfs.NewMem(), failing{}
	d := openDir(t, errorfs.Wrap(mem, faults), "/store")
	put(t, d, "a/b", "")
	faults[errorfs.OpSyncDir], faults[errorfs.OpRemove] = true, true
	if err := blob.PutBytes(t.Context(), d, "a/c", []byte("new")); !errors.Is(err, errorfs.ErrInjected) {
		t.Fatal(err)
	}
	if _, err := d.Size(t.Context(), "a/c"); err != nil {
		t.Fatalf("the test tests nothing: %v", err)
	}
	faults[errorfs.OpRemove] = false
	for range 2 { // it is unlinked by the first, and not yet for good
		if err := d.Delete(t.Context(), "a/c"); !errors.Is(err, errorfs.ErrInjected) {
			t.Fatal(err)
		}
	}
	faults[errorfs.OpSyncDir] = false
	if err := d.Delete(t.Context(), "a/c"); !errors.Is(err, blob.ErrNotExist) {
		t.Fatal(err)
	}
	if there(t, mem, "a/c") {
		t.Error("it comes back")
	}
}

// Settle beside removals that fail does not take them for synced.
func TestSettleKnowsWhatItSynced(t *testing.T) {
	mem, faults := vfs.NewMem(), failing{}
	d := openDir(t, errorfs.Wrap(mem, faults), "/store")
	for _, name := range []string{"a/b", "a/c", "x/y"} {
		put(t, d, name, name)
	}
	if err := d.Settle(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	faults[errorfs.OpSyncDir] = true
	if err := d.Settle(t.Context(), ""); err != nil {
		t.Errorf("nothing was removed: %v", err)
	}
	if err := d.Delete(t.Context(), "a/b"); err == nil {
		t.Fatal("the removal does not fail")
	}
	if err := d.Settle(t.Context(), "a/"); err == nil {
		t.Error("settled though the sync failed")
	}
	faults[errorfs.OpSyncDir] = false
	if err := d.Delete(t.Context(), "a/c"); err != nil {
		t.Fatal(err)
	}
	faults[errorfs.OpSyncDir] = true
	if err := d.Settle(t.Context(), "a/"); err != nil {
		t.Errorf("the sync of the second removal made the first durable: %v", err)
	}
	if there(t, mem, "a/b") || there(t, mem, "a/c") || !there(t, mem, "x/y") {
		t.Error("not what was removed is gone")
	}
}
