//go:build linux

package nastytree_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
	"coffer/fusefs/savesettree/savesettreetest"
)

func needFUSE(t *testing.T) {
	t.Helper()
	err := fusefs.Available()
	switch {
	case err == nil:
	case os.Getenv("COFFER_REQUIRE_FUSE") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// TestMountShowsTheTree holds mounted savesets against the tree that they were taken from, with nothing left out: asked
// from the store, and again from what the kernel remembers; for two generations.
func TestMountShowsTheTree(t *testing.T) {
	needFUSE(t)
	o := nastytree.Options{Seed: 3, Wide: 2000, Huge: true}
	src := newTree(t, o)
	store := savesettreetest.NewStore()
	take := func(round int) {
		t.Helper()
		root, err := store.Capture(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		store.Add("c", "t", "INCR", time.Unix(1e9+int64(round), 0), root.Digest)
	}
	take(0)
	tree := savesettree.New(store.Source(), savesettree.Options{})
	dir := t.TempDir()
	mnt, err := fusefs.Mount(t.Context(), dir, tree.Root(), fusefs.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mnt.Unmount(); err != nil {
			t.Error(err)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}()
	latest := filepath.Join(dir, "c/t/latest") + "/"
	for range 2 {
		treecmp.Check(t, src, latest, treecmp.Options{SkipRoot: true})
	}
	if _, err := nastytree.Mutate(src, 1, o); err != nil {
		t.Fatal(err)
	}
	take(1)
	time.Sleep(2200 * time.Millisecond) // until kernel and tree have asked for savesets again
	treecmp.Check(t, src, latest, treecmp.Options{SkipRoot: true})
}
