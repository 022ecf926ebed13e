package recipe_test

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

// tree builds directories depth first with their side rows, as an agent does.
type tree struct {
	t    *testing.T
	m    *memory
	side *SideBuilder
	ino  uint64
	want []string // path and inode of every entry
}

func newTree(t *testing.T) *tree {
	m := newMemory()
	return &tree{t: t, m: m, side: NewSideBuilder(m, testHasher())}
}

// row adds the side row of the next entry.
func (tr *tree) row(path, name string) {
	tr.ino++
	tr.want = append(tr.want, fmt.Sprint(path, " ", tr.ino))
	if err := tr.side.Add(tr.t.Context(), SideRow{Dev: 1, Ino: tr.ino}, name); err != nil {
		tr.t.Fatal(err)
	}
}

// dir builds a directory of files and, above depth 0, as many subdirectories.
func (tr *tree) dir(path string, width, depth int) Ref {
	b := NewDirBuilder(tr.m, testHasher())
	for i := range width {
		name := fmt.Sprintf("%03d-dir", i)
		if depth > 0 {
			tr.row(path+name, name)
			ref := tr.dir(path+name+"/", width, depth-1)
			if err := b.Add(tr.t.Context(), dir(name, ref), ref.Totals); err != nil {
				tr.t.Fatal(err)
			}
		}
		e := file(fmt.Sprintf("%03d-file", i), uint64(i))
		tr.row(path+e.Name, e.Name)
		mustAdd(tr.t, b, e)
	}
	ref, err := b.Finish(tr.t.Context())
	if err != nil {
		tr.t.Fatal(err)
	}
	return ref
}

func (tr *tree) finish() Ref {
	ref, err := tr.side.Finish(tr.t.Context())
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.m.check(tr.t)
	return ref
}

func TestWalkMeetsEveryEntryWithItsRow(t *testing.T) {
	tr := newTree(t)
	root := tr.dir("", 9, 3)
	side := tr.finish()
	if root.Totals.Entries != side.Totals.Entries || root.Totals.Entries != uint64(len(tr.want)) {
		t.Fatalf("totals %v and %v for %d entries", root.Totals, side.Totals, len(tr.want))
	}
	var got []string
	err := Walk(t.Context(), tr.m, root.Digest, side.Digest, func(path string, s Step) error {
		if s.Depth != strings.Count(path, "/") || !strings.HasSuffix("/"+path, "/"+s.Entry.Name) {
			return fmt.Errorf("%q at depth %d is %q", path, s.Depth, s.Entry.Name)
		}
		got = append(got, fmt.Sprint(path, " ", s.Side.Ino))
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, tr.want) {
		t.Fatalf("%v, %d of %d entries", err, len(got), len(tr.want))
	}
}

func TestWalkSkipsByTotals(t *testing.T) {
	tr := newTree(t)
	root := tr.dir("", 12, 3)
	side := tr.finish()
	var want []string
	for _, w := range tr.want {
		if !strings.HasPrefix(w, "003-dir/") && !strings.Contains(w, "/007-dir/") && !strings.HasPrefix(w, "011-dir/") {
			want = append(want, w)
		}
	}
	var got []string
	err := Walk(t.Context(), tr.m, root.Digest, side.Digest, func(path string, s Step) error {
		got = append(got, fmt.Sprint(path, " ", s.Side.Ino))
		if path == "003-dir" || strings.HasSuffix(path, "/007-dir") || path == "011-dir" {
			return SkipDir
		}
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %d of %d entries", err, len(got), len(want))
	}
}

func TestWalkEnds(t *testing.T) {
	tr := newTree(t)
	root := tr.dir("", 3, 1)
	side := tr.finish()
	boom := errors.New("boom")
	n := 0
	err := Walk(t.Context(), tr.m, root.Digest, digest.Digest{}, func(string, Step) error {
		if n++; n == 4 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || n != 4 {
		t.Errorf("walk: %v after %d entries", err, n)
	}
	w := NewWalker(tr.m, root.Digest, side.Digest)
	for range int(root.Totals.Entries) {
		if _, err := w.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := w.Next(t.Context()); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
	empty := buildDir(t, tr.m, nil)
	if err := Walk(t.Context(), tr.m, empty.Digest, digest.Digest{}, func(string, Step) error { return boom }); err != nil {
		t.Errorf("empty tree: %v", err)
	}
}

func TestWalkFindsWhatDoesNotMatch(t *testing.T) {
	tr := newTree(t)
	root := tr.dir("", 5, 1)
	side := tr.finish()
	short := buildSide(t, tr.m, sideRows(7))
	long := buildSide(t, tr.m, sideRows(70))
	lie := NewDirBuilder(tr.m, testHasher())
	if err := lie.Add(t.Context(), dir("d", root), Totals{Entries: 1}); err != nil {
		t.Fatal(err)
	}
	lying, _ := lie.Finish(t.Context())
	b := NewDirBuilder(tr.m, testHasher())
	if err := b.Add(t.Context(), dir("d", side), Totals{}); err != nil {
		t.Fatal(err)
	}
	swapped, _ := b.Finish(t.Context())
	for name, c := range map[string]struct{ root, side Ref }{
		"too few rows":  {root, short},
		"too many rows": {root, long},
		"lying totals":  {lying, Ref{}},
		"wrong kind":    {swapped, Ref{}},
		"side as root":  {side, Ref{}},
		"root as side":  {root, root},
	} {
		var typed *Error
		err := Walk(t.Context(), tr.m, c.root.Digest, c.side.Digest, func(string, Step) error { return nil })
		if !errors.As(err, &typed) || typed.Kind != Mismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWalkOfADeepTree(t *testing.T) {
	m := newMemory()
	b := NewDirBuilder(m, testHasher())
	ref := buildDir(t, m, []Entry{file("bottom", 5)})
	const depth = 3000
	for range depth {
		if err := b.Add(t.Context(), dir("d", ref), ref.Totals); err != nil {
			t.Fatal(err)
		}
		ref, _ = b.Finish(t.Context())
	}
	n, last := 0, ""
	w := NewWalker(m, ref.Digest, digest.Digest{})
	for {
		if _, err := w.Next(t.Context()); err != nil {
			break
		}
		n, last = n+1, w.Path()
	}
	if want := strings.Repeat("d/", depth) + "bottom"; n != depth+1 || last != want {
		t.Errorf("%d entries", n)
	}
}
