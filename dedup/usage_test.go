package dedup

import (
	"testing"
)

// The figures are those of trees whose bytes the test knows.
func TestUsage(t *testing.T) {
	s, _, _ := gcStore(t)
	r := newRand(t)
	chunk := func() [][]byte { return [][]byte{randomBytes(r, 10_000)} }
	all, mine, own := chunk(), chunk(), chunk()
	put := func(client string, tree testTree) Manifest {
		t.Helper()
		run, err := s.Begin(t.Context(), RunOptions{ID: "run"})
		if err != nil {
			t.Fatal(err)
		}
		a, err := newAgent(run, s, 1)
		if err != nil {
			t.Fatal(err)
		}
		root, side, err := a.backup(t.Context(), tree)
		if err != nil {
			t.Fatal(err)
		}
		m, err := run.Commit(t.Context(), Draft{Root: root, Side: side, Client: client})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a1 := put("a", testTree{"d/all": all, "d/mine": mine, "d/own": own})
	a2 := put("a", testTree{"d/all": all, "d/mine": mine})
	b := put("b", testTree{"d/all": all})
	dead := put("b", testTree{"d/dead": chunk()})
	mustDelete(t, s, dead.ID)
	u, err := s.Usage(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Savesets) != 3 || len(u.Clients) != 2 || u.Logical != 60_000 {
		t.Fatalf("%+v", u)
	}
	// Nodes are unique to their savesets here, a few hundred bytes each.
	near := func(what string, got, want uint64) {
		t.Helper()
		if got < want || got > want+2000 {
			t.Errorf("%s: %d bytes, want %d and some nodes", what, got, want)
		}
	}
	near("first saveset of a", u.Savesets[a1.ID].Unique, 10_000)
	near("second saveset of a", u.Savesets[a2.ID].Unique, 0)
	near("saveset of b", u.Savesets[b.ID].Unique, 0)
	near("client a", u.Clients["a"].Unique, 20_000)
	near("client b", u.Clients["b"].Unique, 0)
	near("plain", u.Plain, 30_000)
	near("shared", u.Shared, 20_000)
	if u.Garbage < 5000 || u.Stored == 0 || u.Containers < u.Stored+u.Garbage || u.Savesets[a1.ID].UniqueStored == 0 {
		t.Errorf("%+v", u)
	}
	if u.DedupRatio() < 1.5 || u.CompressionRatio() <= 0 {
		t.Errorf("ratios %v, %v", u.DedupRatio(), u.CompressionRatio())
	}
	if _, err := s.Usage(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}
