package index

import (
	"path/filepath"
	"testing"

	"coffer/dedup/container"
)

func TestOvertake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, small())
	first := testContainer(t, 1, container.Data, digests(0, 100))
	second := testContainer(t, 2, container.Data, digests(50, 150))
	put(t, x, first, nil)
	put(t, x, second, nil)
	slots := func(from, to uint32) (s []uint32) {
		for ; from < to; from++ {
			s = append(s, from)
		}
		return s
	}
	canonical := func(seq uint32, want bool) {
		t.Helper()
		if got, err := x.Canonical(container.MakeID(1, seq)); err != nil || got != want {
			t.Fatalf("container %d is canonical: %v, %v; want %v", seq, got, err, want)
		}
	}
	overtake := func(s []uint32, may bool, want int) {
		t.Helper()
		taken, err := x.Overtake(t.Context(), second, s, func(id container.ID) bool { return may && id == first.ID() })
		if err != nil || len(taken) != want {
			t.Fatalf("%d of %d rows were taken over, want %d: %v", len(taken), len(s), want, err)
		}
	}
	canonical(1, true)
	canonical(2, false)
	overtake(slots(0, 20), false, 0)
	wantAll(t, "before", find(t, x, digests(50, 100)), 1)
	canonical(1, true)
	overtake(slots(0, 20), true, 20)
	overtake(slots(0, 20), true, 0)
	wantAll(t, "taken over", find(t, x, digests(50, 70)), 2)
	wantAll(t, "left", find(t, x, digests(70, 100)), 1)
	canonical(1, false)
	canonical(2, false) // 30 rows still have their locations in the first
	overtake(slots(0, 100), true, 30)
	canonical(2, true)
	closeIndex(t, x)
	x = open(t, dir, small())
	canonical(1, false)
	canonical(2, true)
	wantAll(t, "after reopening", find(t, x, digests(50, 150)), 2)
	wantAll(t, "what nobody wanted", find(t, x, digests(0, 50)), 1)
}

// TestFilters holds the tables' filters to what the store is told about them.
func TestFilters(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, small())
	for i := range 10 {
		put(t, x, testContainer(t, uint32(i+1), container.Data, randomDigests(10_000)), nil)
	}
	closeIndex(t, x) // writes it all into tables
	o := small()
	o.Count = true
	x = open(t, dir, o)
	miss := randomDigests(50_000)
	before := x.Stats()
	find(t, x, miss)
	after := x.Stats()
	if asked := after.Asked - before.Asked; asked < int64(len(miss)) {
		t.Fatalf("%d questions to filters for %d digests", asked, len(miss))
	}
	if passed := after.Passed - before.Passed; passed > int64(len(miss))/1000 {
		t.Fatalf("%d of %d digests that are not there cost a block", passed, len(miss))
	}
}
