package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

var testStore = [16]byte{1, 2, 3}

func small() Options { return Options{Memory: 16 << 20, Reserve: -1, Store: testStore} }

func open(t *testing.T, dir string, o Options) *Index {
	t.Helper()
	x, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func closeIndex(t *testing.T, x *Index) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// testDigest is the i-th digest of these tests, spread as real ones are.
func testDigest(i int) digest.Digest {
	return digest.NewHasher([32]byte{7}).Sum(fmt.Appendf(nil, "chunk %d", i))
}

// testContainer seals a container of chunks of one byte.
func testContainer(t testing.TB, seq uint32, kind container.Kind, ds []digest.Digest) *container.Directory {
	t.Helper()
	ring, err := keys.Create(t.Context(), nil, keys.None())
	if err != nil {
		t.Fatal(err)
	}
	w, err := container.NewWriter(vfs.NewMem(), "/spool", container.Header{ID: container.MakeID(1, seq), Kind: kind, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	for part := range slices.Chunk(ds, 1000) {
		f := frame.Frame{Codec: frame.Raw, Stored: make([]byte, len(part))}
		for _, d := range part {
			f.Refs = append(f.Refs, frame.Ref{Digest: d, Length: 1})
		}
		if _, err := w.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Directory
}

func digests(from, to int) (ds []digest.Digest) {
	for i := from; i < to; i++ {
		ds = append(ds, testDigest(i))
	}
	return ds
}

func put(t *testing.T, x *Index, d *container.Directory, keep func(digest.Digest, Loc) bool) {
	t.Helper()
	if err := x.PutContainer(t.Context(), d, keep); err != nil {
		t.Fatal(err)
	}
}

// find looks up and returns the containers' sequence numbers, 0 for what is not found.
func find(t *testing.T, x *Index, ds []digest.Digest) []uint32 {
	t.Helper()
	locs, found := make([]Loc, len(ds)), make([]bool, len(ds))
	if err := x.Lookup(t.Context(), ds, locs, found); err != nil {
		t.Fatal(err)
	}
	out := make([]uint32, len(ds))
	for i := range ds {
		if found[i] {
			out[i] = locs[i].Container.Sequence()
		}
	}
	return out
}

func wantAll(t *testing.T, what string, got []uint32, want uint32) {
	t.Helper()
	for i, g := range got {
		if g != want {
			t.Fatalf("%s: digest %d is in container %d, want %d", what, i, g, want)
		}
	}
}

func wantKind(t *testing.T, err error, k Kind) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("error %v, want kind %v", err, k)
	}
}

func TestPutLookup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, small())
	put(t, x, testContainer(t, 1, container.Data, digests(0, 3000)), nil)
	put(t, x, testContainer(t, 2, container.Node, digests(3000, 3100)), nil)

	check := func(what string) {
		t.Helper()
		wantAll(t, what, find(t, x, digests(0, 3000)), 1)
		wantAll(t, what, find(t, x, digests(3000, 3100)), 2)
		wantAll(t, what, find(t, x, digests(5000, 6000)), 0)
		locs, found := make([]Loc, 2), make([]bool, 2)
		if err := x.Lookup(t.Context(), []digest.Digest{testDigest(17), testDigest(3005)}, locs, found); err != nil {
			t.Fatal(err)
		}
		want := []Loc{{container.MakeID(1, 1), 17, container.Data}, {container.MakeID(1, 2), 5, container.Node}}
		if !slices.Equal(locs, want) {
			t.Fatalf("%s: locations %v, want %v", what, locs, want)
		}
		var ids []container.ID
		for m, err := range x.Marks(t.Context()) {
			if err != nil || !m.Entered {
				t.Fatal(m, err)
			}
			ids = append(ids, m.Container)
		}
		if !slices.Equal(ids, []container.ID{container.MakeID(1, 1), container.MakeID(1, 2)}) {
			t.Fatalf("%s: containers %v", what, ids)
		}
		if has, err := x.HasContainer(container.MakeID(1, 2)); err != nil || !has {
			t.Fatalf("%s: has container: %v %v", what, has, err)
		}
		if has, err := x.HasContainer(container.MakeID(1, 3)); err != nil || has {
			t.Fatalf("%s: has container 3: %v %v", what, has, err)
		}
	}
	check("in memory")
	closeIndex(t, x)
	x = open(t, dir, small())
	check("opened again")
	if s := x.Stats(); s.Tables == 0 || s.DiskBytes == 0 {
		t.Fatalf("stats: %+v", s)
	}
}

func TestKeepAndDelete(t *testing.T) {
	x := open(t, t.TempDir(), small())
	put(t, x, testContainer(t, 1, container.Data, digests(0, 100)), nil)
	put(t, x, testContainer(t, 2, container.Data, digests(50, 150)), nil)
	wantAll(t, "kept", find(t, x, digests(0, 100)), 1)
	wantAll(t, "new", find(t, x, digests(100, 150)), 2)

	put(t, x, testContainer(t, 3, container.Data, digests(0, 50)), func(_ digest.Digest, old Loc) bool {
		return old.Container.Sequence() != 1
	})
	wantAll(t, "replaced", find(t, x, digests(0, 50)), 3)

	ds := digests(0, 10)
	locs := make([]Loc, len(ds))
	for i := range locs {
		locs[i] = Loc{container.MakeID(1, 3), uint32(i), container.Data}
	}
	locs[0].Container = container.MakeID(1, 1) // where it was before
	if err := x.DeleteIf(t.Context(), ds, locs); err != nil {
		t.Fatal(err)
	}
	wantAll(t, "named another place", find(t, x, ds[:1]), 3)
	wantAll(t, "deleted", find(t, x, ds[1:]), 0)

	if err := x.ForgetContainer(t.Context(), container.MakeID(1, 3)); err != nil {
		t.Fatal(err)
	}
	if has, err := x.HasContainer(container.MakeID(1, 3)); err != nil || has {
		t.Fatalf("forgotten: %v %v", has, err)
	}
	want := []Mark{{container.MakeID(1, 1), true}, {container.MakeID(1, 2), true}, {container.MakeID(1, 3), false}}
	wantMarks(t, x, want)
	if err := x.ForgetContainer(t.Context(), container.MakeID(1, 9)); err != nil { // was never entered
		t.Fatal(err)
	}
	wantMarks(t, x, want)
	if err := x.RemoveContainer(t.Context(), container.MakeID(1, 1), container.MakeID(1, 3), container.MakeID(1, 9)); err != nil {
		t.Fatal(err)
	}
	wantMarks(t, x, want[1:2])
}

func wantMarks(t *testing.T, x *Index, want []Mark) {
	t.Helper()
	var got []Mark
	for m, err := range x.Marks(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("marks %v, want %v", got, want)
	}
}

func TestNoteDead(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir, small())
	for _, step := range []struct{ note, want uint32 }{{0, 0}, {3, 3}, {2, 3}, {7, 7}} {
		if err := x.NoteDead(t.Context(), step.note); err != nil {
			t.Fatal(err)
		}
		if got, err := x.Dead(); err != nil || got != step.want {
			t.Fatalf("after %d: %d, %v; want %d", step.note, got, err, step.want)
		}
	}
	wantMarks(t, x, nil)
	closeIndex(t, x)
	x = open(t, dir, small())
	if got, err := x.Dead(); err != nil || got != 7 {
		t.Fatalf("opened again: %d, %v", got, err)
	}
	closeIndex(t, x)
}

func TestFirstRowOfDigestCounts(t *testing.T) {
	x := open(t, t.TempDir(), small())
	d := testDigest(1)
	put(t, x, testContainer(t, 1, container.Data, []digest.Digest{testDigest(0), d, d, {}}), nil)
	locs, found := make([]Loc, 2), make([]bool, 2)
	if err := x.Lookup(t.Context(), []digest.Digest{d, {}}, locs, found); err != nil {
		t.Fatal(err)
	}
	if locs[0].Slot != 1 || found[1] {
		t.Fatalf("slot %d, zero digest found: %v", locs[0].Slot, found[1])
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir, small())
	_, err := Open(dir, small())
	wantKind(t, err, KindLocked)
	wantKind(t, Remove(dir), KindLocked)
	closeIndex(t, x)
	wantKind(t, x.Lookup(t.Context(), digests(0, 1), make([]Loc, 1), make([]bool, 1)), KindClosed)

	other := small()
	other.Store = [16]byte{9}
	_, err = Open(dir, other)
	wantKind(t, err, KindForeign)

	newer := bytes.Replace((meta{store: testStore, memtable: minMemtable, state: stateClosed}).encode(),
		[]byte("coffer-index 2 "), []byte("coffer-index 3 "), 1)
	if err := os.WriteFile(filepath.Join(dir, metaName), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, small())
	wantKind(t, err, KindNewerFormat)
	if !IsDamage(err) {
		t.Fatal("a newer format is not taken for one to rebuild")
	}
	older := bytes.Replace(newer, []byte("coffer-index 3 "), []byte("coffer-index 1 "), 1)
	if err := os.WriteFile(filepath.Join(dir, metaName), older, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, small())
	wantKind(t, err, KindCorrupt)
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	open(t, dir, small())
}

func TestDeathsInOpen(t *testing.T) {
	dir := t.TempDir()
	closeIndex(t, open(t, dir, small()))
	for deaths, bad := range []bool{1: false, 2: true} {
		if deaths == 0 {
			continue
		}
		m := meta{store: testStore, memtable: minMemtable, state: stateOpening, deaths: deaths}
		if err := os.WriteFile(filepath.Join(dir, metaName), m.encode(), 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := Open(dir, small())
		if (err != nil) != bad || (bad && !IsDamage(err)) {
			t.Fatalf("after %d deaths: %v", deaths, err)
		}
		if err == nil {
			closeIndex(t, x)
		}
	}
}

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	free := int64(1 << 30)
	o := small()
	o.Reserve = 64 << 20
	o.Free = func(string) (int64, error) { return free, nil }
	x := open(t, dir, o)
	put(t, x, testContainer(t, 1, container.Data, digests(0, 100)), nil)

	free = 63 << 20
	full := func(err error) {
		t.Helper()
		wantKind(t, err, KindNoSpace)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%v is no ENOSPC", err)
		}
	}
	full(x.CheckSpace())
	full(x.PutContainer(t.Context(), testContainer(t, 2, container.Data, digests(100, 200)), nil))
	if err := x.ForgetContainer(t.Context(), container.MakeID(9, 9)); err != nil {
		t.Fatalf("removing may use half of the reserve: %v", err)
	}
	free = 31 << 20
	full(x.DeleteIf(t.Context(), digests(0, 1), make([]Loc, 1)))
	full(x.ForgetContainer(t.Context(), container.MakeID(9, 9)))
	wantAll(t, "reading goes on", find(t, x, digests(0, 100)), 1)
	closeIndex(t, x)

	free = 0
	x = open(t, dir, o) // for reading only
	wantAll(t, "on a full disk", find(t, x, digests(0, 100)), 1)
	full(x.PutContainer(t.Context(), testContainer(t, 2, container.Data, digests(100, 200)), nil))
	closeIndex(t, x)

	free = 1 << 30
	x = open(t, dir, o)
	put(t, x, testContainer(t, 2, container.Data, digests(100, 200)), nil)
	wantAll(t, "after room was made", find(t, x, digests(100, 200)), 2)
}

// copyOpen copies the files of an index that is in use, as a loss of power would leave them at the best.
func copyOpen(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	x := open(t, dir, small())
	put(t, x, testContainer(t, 1, container.Data, digests(0, 2000)), nil)
	left := copyOpen(t, dir)
	o := small()
	o.Memory = minMemtable // a smaller memtable than that of the log
	y := open(t, left, o)
	wantAll(t, "after a kill", find(t, y, digests(0, 2000)), 1)
	_ = x
}

// build makes an index with tables and returns its directory, closed.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for seq := range uint32(3) {
		x := open(t, dir, small())
		put(t, x, testContainer(t, seq+1, container.Data, digests(int(seq)*2000, int(seq+1)*2000)), nil)
		closeIndex(t, x)
	}
	return dir
}

// TestDamage damages every file of an index in many places. Each time it must open as one to rebuild, or answer either
// rightly or not at all; the process lives.
func TestDamage(t *testing.T) {
	whole := build(t)
	files, err := filepath.Glob(filepath.Join(whole, dbDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, filepath.Join(whole, metaName))
	for _, file := range files {
		if base := filepath.Base(file); strings.HasPrefix(base, "000002.") || strings.HasPrefix(base, "000003.") {
			continue // like the first ones
		}
		rel, _ := filepath.Rel(whole, file)
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		n := min(st.Size(), 1<<20)
		var cases []func([]byte) []byte
		places := []int64{0, 1, 4, 8, 11, n / 3, n / 2, n - 70, n - 20, n - 9, n - 5, n - 4, n - 1}
		if ext := filepath.Ext(file); ext == ".vlog" || filepath.Base(file) == "DISCARD" {
			places = []int64{0, 8, n - 1} // nothing of ours lies in there
		}
		for _, at := range places {
			if at < 0 || at >= n {
				continue
			}
			cases = append(cases,
				func(b []byte) []byte { b[at] ^= 0x40; return b },
				func(b []byte) []byte { return b[:at] })
		}
		cases = append(cases, func(b []byte) []byte { clear(b); return b }, func(b []byte) []byte { return append(b, 0, 1, 2) })
		for i, damage := range cases {
			t.Run(fmt.Sprintf("%s/%d", filepath.ToSlash(rel), i), func(t *testing.T) {
				t.Parallel()
				dir := copyOpen(t, whole)
				path := filepath.Join(dir, rel)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
				openDamaged(t, dir)
			})
		}
		t.Run(filepath.ToSlash(rel)+"/gone", func(t *testing.T) {
			dir := copyOpen(t, whole)
			if err := os.Remove(filepath.Join(dir, rel)); err != nil {
				t.Fatal(err)
			}
			openDamaged(t, dir)
		})
	}
}

func openDamaged(t *testing.T, dir string) {
	t.Helper()
	x, err := Open(dir, small())
	if err != nil {
		if !IsDamage(err) {
			t.Fatalf("open: %v, want an error that says to rebuild", err)
		}
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		closeIndex(t, open(t, dir, small()))
		return
	}
	defer x.Close()
	ds := digests(0, 6000)
	locs, found := make([]Loc, len(ds)), make([]bool, len(ds))
	if err := x.Lookup(context.Background(), ds, locs, found); err != nil {
		if !IsDamage(err) {
			t.Fatalf("look up: %v", err)
		}
		_ = x.Close()
		if _, err := Open(dir, small()); !IsDamage(err) {
			t.Fatalf("opened again after damage was met: %v", err)
		}
		return
	}
	for i := range ds {
		want := Loc{container.MakeID(1, uint32(i/2000)+1), uint32(i % 2000), container.Data}
		if found[i] && locs[i] != want {
			t.Fatalf("digest %d: %v, want %v", i, locs[i], want)
		}
		if has, err := x.HasContainer(want.Container); err == nil && has && !found[i] {
			t.Fatalf("digest %d is missing, but its container is marked", i)
		}
	}
}

func TestPutLive(t *testing.T) {
	x := open(t, t.TempDir(), small())
	c := testContainer(t, 1, container.Node, digests(0, 10))
	if err := x.PutLive(t.Context(), c, nil, func(slot uint32) bool { return slot < 4 }); err != nil {
		t.Fatal(err)
	}
	locs, found := make([]Loc, 10), make([]bool, 10)
	if err := x.Lookup(t.Context(), digests(0, 10), locs, found); err != nil {
		t.Fatal(err)
	}
	for i := range found {
		if found[i] != (i >= 4) {
			t.Errorf("slot %d found: %v", i, found[i])
		}
	}
	if has, err := x.HasContainer(c.ID()); err != nil || !has {
		t.Errorf("has container: %v, %v", has, err)
	}
	if yes, err := x.Canonical(c.ID()); err != nil || yes {
		t.Errorf("a container with dead rows is canonical: %v, %v", yes, err)
	}
	c = testContainer(t, 2, container.Node, digests(10, 20))
	if err := x.PutRows(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	if has, err := x.HasContainer(c.ID()); err != nil || has {
		t.Errorf("a container without a mark: %v, %v", has, err)
	}
	wantAll(t, "rows without a mark", find(t, x, digests(10, 20)), 2)
}
