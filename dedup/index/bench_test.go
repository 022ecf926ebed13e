package index

import (
	"math/rand/v2"
	"testing"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

func randomDigests(n int) []digest.Digest {
	ds := make([]digest.Digest, n)
	for i := range ds {
		for k := 0; k < digest.Size; k += 8 {
			le.PutUint64(ds[i][k:], rand.Uint64())
		}
	}
	return ds
}

// benchIndex has a million digests in it.
func benchIndex(b *testing.B) (*Index, []digest.Digest) {
	b.Helper()
	o := small()
	o.Memory = DefaultMemory
	x, err := Open(b.TempDir(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = x.Close() })
	ds := randomDigests(1_000_000)
	for i := range 100 {
		d := testContainer(b, uint32(i+1), container.Data, ds[i*10000:(i+1)*10000])
		if err := x.PutContainer(b.Context(), d, nil); err != nil {
			b.Fatal(err)
		}
	}
	return x, ds
}

func BenchmarkLookup(b *testing.B) {
	x, ds := benchIndex(b)
	miss := randomDigests(len(ds))
	for _, c := range []struct {
		name string
		ds   []digest.Digest
	}{{"hit", ds}, {"miss", miss}} {
		b.Run(c.name, func(b *testing.B) {
			const batch = 1000
			locs, found := make([]Loc, batch), make([]bool, batch)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := x.Lookup(b.Context(), c.ds[i:i+batch], locs, found); err != nil {
					b.Fatal(err)
				}
				if found[0] != (c.name == "hit") {
					b.Fatal("wrong answer")
				}
				i = (i + batch) % len(ds)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/digest")
		})
	}
}

func BenchmarkPutContainer(b *testing.B) {
	x, _ := benchIndex(b)
	b.ReportAllocs()
	seq := uint32(1000)
	for b.Loop() {
		b.StopTimer()
		seq++
		d := testContainer(b, seq, container.Data, randomDigests(5000))
		b.StartTimer()
		if err := x.PutContainer(b.Context(), d, nil); err != nil {
			b.Fatal(err)
		}
	}
}
