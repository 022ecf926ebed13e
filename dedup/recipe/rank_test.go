package recipe_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	. "coffer/dedup/recipe"
)

// TestRanks holds ranks against counting, in directories of one leaf and of several levels.
func TestRanks(t *testing.T) {
	for _, n := range []int{0, 1, 2, 300, 20000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ctx := t.Context()
			m := newMemory()
			b := NewDirBuilder(m, testHasher())
			empty, err := b.Finish(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ranks := map[string]uint64{}
			var next uint64
			for i := range n {
				e := file(fmt.Sprintf("entry-%06d", i), 10)
				var below Totals
				if i%7 == 0 {
					e.Mode, e.Size, e.Content = ModeDir|0o755, 0, Content{Kind: DirTree, Digest: empty.Digest}
					below.Entries = uint64(i % 11)
				}
				if err := b.Add(ctx, e, below); err != nil {
					t.Fatal(err)
				}
				ranks[e.Name] = next
				next += 1 + below.Entries
			}
			dir, err := b.Finish(ctx)
			if err != nil {
				t.Fatal(err)
			}
			it := NewRankIter(m, dir.Digest)
			for i := range n {
				e, _, rank, err := it.Next(ctx)
				if err != nil || rank != ranks[e.Name] {
					t.Fatalf("entry %d, %q: rank %d, want %d, %v", i, e.Name, rank, ranks[e.Name], err)
				}
			}
			if _, _, _, err := it.Next(ctx); err != io.EOF {
				t.Fatalf("after the last: %v", err)
			}
			for i := 0; i < n; i += 1 + n/100 {
				name := fmt.Sprintf("entry-%06d", i)
				e, _, rank, err := LookupRank(ctx, m, dir.Digest, name)
				if err != nil || e.Name != name || rank != ranks[name] {
					t.Fatalf("lookup %q: %q with rank %d, want %d, %v", name, e.Name, rank, ranks[name], err)
				}
				m.reads = 0
				if err := it.SeekRank(ctx, ranks[name]); err != nil {
					t.Fatal(err)
				}
				e, _, rank, err = it.Next(ctx)
				if err != nil || e.Name != name || rank != ranks[name] {
					t.Fatalf("seek to %d: %q with rank %d, %v", ranks[name], e.Name, rank, err)
				}
				if m.reads > 4 {
					t.Errorf("seek to %d reads %d nodes", ranks[name], m.reads)
				}
			}
			if err := it.SeekRank(ctx, next); err != nil {
				t.Fatal(err)
			}
			if e, _, _, err := it.Next(ctx); err != io.EOF {
				t.Fatalf("past the end: %q, %v", e.Name, err)
			}
			if _, _, _, err := LookupRank(ctx, m, dir.Digest, "zzz"); !errors.Is(err, ErrNotFound) {
				t.Fatalf("lookup of nothing: %v", err)
			}
		})
	}
}
