//go:build linux

package nastytree_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"coffer/appliance/internal/nastytree"
	"coffer/appliance/internal/treecmp"
)

// newTree makes a tree in a directory of its own that is cleaned up, immutable files included.
func newTree(t *testing.T, o nastytree.Options) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("nasty trees need root: owners, devices, capabilities, flags")
	}
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nastytree.Clean(dir); err != nil {
			t.Error(err)
		}
	})
	made, err := nastytree.Make(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range made.Skipped {
		t.Log("skipped:", s)
	}
	return dir
}

func TestSameOptionsMakeTheSameTree(t *testing.T) {
	o := nastytree.Options{Seed: 7, Wide: 300, Huge: true}
	a, b := newTree(t, o), newTree(t, o)
	treecmp.Check(t, a, b, treecmp.Options{})
	for round := 1; round <= 6; round++ {
		for _, dir := range []string{a, b} {
			made, err := nastytree.Mutate(dir, round, o)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if dir == b {
				t.Logf("round %d: %q", round, made.Log)
			}
		}
		treecmp.Check(t, a, b, treecmp.Options{})
	}
}

func TestEveryRoundChangesTheTree(t *testing.T) {
	o := nastytree.Options{Seed: 9, Wide: 300}
	a, b := newTree(t, o), newTree(t, o)
	if _, err := nastytree.Mutate(b, 1, o); err != nil {
		t.Fatal(err)
	}
	res, err := treecmp.Compare(context.Background(), a, b, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var seen treecmp.Aspect
	for _, d := range res.Differences {
		seen |= d.What
	}
	want := treecmp.Missing | treecmp.Extra | treecmp.Type | treecmp.Mode | treecmp.Owner | treecmp.MTime | treecmp.Xattr |
		treecmp.Size | treecmp.Content | treecmp.Links
	if missing := want &^ seen; missing != 0 {
		t.Errorf("round 1 shows no %v", missing)
	}
}

func TestSeedsDiffer(t *testing.T) {
	a, b := newTree(t, nastytree.Options{Seed: 1, Wide: 10}), newTree(t, nastytree.Options{Seed: 2, Wide: 10})
	res, err := treecmp.Compare(context.Background(), a, b, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Equal() {
		t.Error("two seeds made equal trees")
	}
}
