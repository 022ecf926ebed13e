package recipe_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	. "coffer/dedup/recipe"
)

func sideRows(n int) []SideRow {
	rows := make([]SideRow, n)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range rows {
		rows[i] = SideRow{
			Dev: uint64(2 + i/1000%2), Ino: rng.Uint64() >> (i % 64), Captured: i%3 == 0,
			CTime: Time{Sec: 1_700_000_000 - int64(i%7)*1e9, Nsec: rng.Uint32N(1e9)},
		}
	}
	if n > 4 {
		rows[1] = SideRow{Dev: 1<<64 - 1, Ino: 1<<64 - 1, CTime: Time{Sec: 1<<63 - 1}}
		rows[2] = SideRow{CTime: Time{Sec: -1 << 63, Nsec: 1e9 - 1}, Captured: true}
	}
	return rows
}

func buildSide(t testing.TB, m *memory, rows []SideRow) Ref {
	t.Helper()
	b := NewSideBuilder(m, testHasher())
	for i, r := range rows {
		if err := b.Add(t.Context(), r, fmt.Sprint("name", i)); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestSideRowsComeBack(t *testing.T) {
	for _, n := range []int{0, 1, 10, 200_000} {
		m := newMemory()
		want := sideRows(n)
		ref := buildSide(t, m, want)
		if ref.Totals != (Totals{Entries: uint64(n)}) {
			t.Errorf("%d rows: totals %v", n, ref.Totals)
		}
		it := NewSideIter(m, ref.Digest)
		for i := range want {
			if r, err := it.Next(t.Context()); err != nil || r != want[i] {
				t.Fatalf("row %d of %d: %v, %v, want %v", i, n, r, err, want[i])
			}
		}
		if _, err := it.Next(t.Context()); err != io.EOF {
			t.Errorf("%d rows: %v at the end", n, err)
		}
		m.check(t)
	}
}

func TestSideSkip(t *testing.T) {
	m := newMemory()
	want := sideRows(200_000)
	ref := buildSide(t, m, want)
	rng := rand.New(rand.NewPCG(5, 6))
	for _, limit := range []int{3, 100, 5000, 90_000} {
		it := NewSideIter(m, ref.Digest)
		for at := 0; ; {
			n := rng.IntN(limit)
			err := it.Skip(t.Context(), uint64(n))
			at += n
			if at > len(want) {
				if err != io.EOF {
					t.Errorf("skip past the end: %v", err)
				}
				break
			}
			r, err2 := it.Next(t.Context())
			if at == len(want) {
				break
			}
			if err != nil || err2 != nil || r != want[at] {
				t.Fatalf("skip to row %d: %v, %v, %v; want %v", at, r, err, err2, want[at])
			}
			at++
		}
	}
	m.reads = 0
	it := NewSideIter(m, ref.Digest)
	if err := it.Skip(t.Context(), 199_000); err != nil {
		t.Fatal(err)
	}
	if m.reads > 4 {
		t.Errorf("skip read %d of %d nodes", m.reads, len(m.nodes))
	}
}
