package recipe_test

import (
	"context"
	"io"
	"testing"

	"coffer/dedup/digest"
	. "coffer/dedup/recipe"
)

// discard is a Sink that keeps nothing.
type discard struct{}

func (discard) PutNode(context.Context, digest.Digest, []byte) error { return nil }

// perEntry reports nanoseconds for one of n entries.
func perEntry(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
}

const benchEntries = 20_000

// BenchmarkBuildDir is one big directory: encode and hash.
func BenchmarkBuildDir(b *testing.B) {
	entries := bigDir(benchEntries)
	builder := NewDirBuilder(discard{}, testHasher())
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		for i := range entries {
			if err := builder.Add(ctx, entries[i], Totals{}); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := builder.Finish(ctx); err != nil {
			b.Fatal(err)
		}
	}
	perEntry(b, benchEntries)
}

// BenchmarkBuildSmallDirs is the same entries in directories of 14, as in the kernel tree, with one builder.
func BenchmarkBuildSmallDirs(b *testing.B) {
	entries := bigDir(benchEntries)
	builder := NewDirBuilder(discard{}, testHasher())
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		for i := range entries {
			if err := builder.Add(ctx, entries[i], Totals{}); err != nil {
				b.Fatal(err)
			}
			if i%14 == 13 {
				if _, err := builder.Finish(ctx); err != nil {
					b.Fatal(err)
				}
			}
		}
		builder.Reset()
	}
	perEntry(b, benchEntries)
}

func BenchmarkDirIter(b *testing.B) {
	m := newMemory()
	ref := buildDir(b, m, bigDir(benchEntries))
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		it := NewDirIter(m, ref.Digest)
		for {
			if _, _, err := it.Next(ctx); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
	perEntry(b, benchEntries)
}

func BenchmarkLookup(b *testing.B) {
	m := newMemory()
	entries := bigDir(benchEntries)
	ref := buildDir(b, m, entries)
	ctx := b.Context()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 7919) % benchEntries
		if _, _, err := Lookup(ctx, m, ref.Digest, entries[i].Name); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParse is what the appliance does with every node that arrives.
func BenchmarkParse(b *testing.B) {
	m := newMemory()
	buildDir(b, m, bigDir(benchEntries))
	b.ReportAllocs()
	for b.Loop() {
		for _, rec := range m.nodes {
			if _, err := Parse(rec); err != nil {
				b.Fatal(err)
			}
		}
	}
	perEntry(b, benchEntries)
}

func BenchmarkBuildSide(b *testing.B) {
	entries := bigDir(benchEntries)
	builder := NewSideBuilder(discard{}, testHasher())
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		for i := range entries {
			row := SideRow{Dev: 3, Ino: uint64(i) * 3, CTime: Time{Sec: 1_700_000_000, Nsec: uint32(i) * 1000}}
			if err := builder.Add(ctx, row, entries[i].Name); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := builder.Finish(ctx); err != nil {
			b.Fatal(err)
		}
	}
	perEntry(b, benchEntries)
}

func BenchmarkSideIter(b *testing.B) {
	m := newMemory()
	ref := buildSide(b, m, sideRows(benchEntries))
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		it := NewSideIter(m, ref.Digest)
		for {
			if _, err := it.Next(ctx); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
	perEntry(b, benchEntries)
}
