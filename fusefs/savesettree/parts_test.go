package savesettree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/fusefs"
	"coffer/fusefs/savesettree"
	"coffer/fusefs/savesettree/savesettreetest"
	"coffer/images/volume/volumetest"
)

const chunkSize = 128 << 10

// addImage stores bytes as a disk image.
func addImage(t *testing.T, m *savesettreetest.Store, name string, disk []byte) recipe.Entry {
	t.Helper()
	b := recipe.NewImageBuilder(m, digest.NewHasher([32]byte{1}))
	if err := b.Start(uint64(len(disk)), chunkSize); err != nil {
		t.Fatal(err)
	}
	for chunk := range slices.Chunk(disk, chunkSize) {
		d, err := m.PutChunk(t.Context(), chunk)
		if err == nil {
			err = b.Add(t.Context(), d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c, _, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o600, Size: uint64(len(disk)), Content: c}
}

// A disk image has a folder of its file systems beside it; a name that the saveset holds itself comes first, and the listing
// goes on from any place.
func TestPartsOfImages(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "inside"), []byte("found"), 0o644); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(volumetest.Ext(t, dir, "2M", "-t", "ext4"))
	if err != nil {
		t.Fatal(err)
	}
	m := savesettreetest.NewStore()
	b := recipe.NewDirBuilder(m, digest.NewHasher([32]byte{1}))
	file := func(name string) recipe.Entry { return recipe.Entry{Name: name, Mode: recipe.ModeRegular | 0o600} }
	for _, e := range []recipe.Entry{file("a"), addImage(t, m, "vda.raw", disk), addImage(t, m, "vdb.raw", disk), file("vdb.raw.parts"), file("z")} {
		if err := b.Add(t.Context(), e, recipe.Totals{}); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Add("kvm", "vm", "FULL", at("2026-11-22T02:15:00Z"), root.Digest)
	tree := testTree(t, m, savesettree.Options{})
	const set = "kvm/vm/2026-11-22T02.15.00Z_FULL"
	want := "[a vda.raw vda.raw.parts vdb.raw vdb.raw.parts z]"
	n := find(t, tree, set)
	if got := fmt.Sprint(names(t, n)); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	var piecewise []string
	for from, more := uint64(0), true; more; {
		more = false
		if err := n.(fusefs.Dir).List(t.Context(), from, func(e fusefs.Dirent) bool {
			piecewise, from, more = append(piecewise, e.Name), e.Next, true
			return false
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(piecewise); got != want {
		t.Fatalf("one by one: %s, want %s", got, want)
	}
	inside := find(t, tree, set+"/vda.raw.parts/disk-ext4/inside").(fusefs.File)
	if b, err := inside.Read(t.Context(), make([]byte, 100), 0); err != nil || string(b) != "found" {
		t.Errorf("%q, %v", b, err)
	}
	if _, ok := find(t, tree, set+"/vdb.raw.parts").(fusefs.Dir); ok {
		t.Error("a file of the saveset is hidden by a folder of parts")
	}
	for _, name := range []string{"a.parts", ".parts", "vda.raw.parts.parts", "none.parts"} {
		if _, err := lookup(t.Context(), tree, set+"/"+name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	seen := map[fusefs.ID]string{}
	for _, p := range []string{"vda.raw", "vda.raw.parts", "vda.raw.parts/disk-ext4", "vda.raw.parts/disk-ext4/inside", "vdb.raw", "a"} {
		id := find(t, tree, set+"/"+p).ID()
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have one ID", p, other)
		}
		seen[id] = p
	}
}
