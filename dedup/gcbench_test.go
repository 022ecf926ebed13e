package dedup

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// BenchmarkCollectMark marks a store of tiny chunks, of which there is nothing to sweep.
func BenchmarkCollectMark(b *testing.B) {
	const files, chunks = 200, 1000
	o := memOptions(b)
	o.ContainerSize, o.LocalityMemory = 1<<20, 16<<20
	s := mustCreate(b, o)
	tree := make(testTree)
	for f := range files {
		name := fmt.Sprintf("d%d/f%d", f%10, f)
		for c := range chunks {
			tree[name] = append(tree[name], binary.LittleEndian.AppendUint64(nil, uint64(f*chunks+c)))
		}
	}
	if _, err := backup(b.Context(), s, tree, 1); err != nil {
		b.Fatal(err)
	}
	s = collectReopen(b, s, o, false)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Collect(b.Context(), CollectOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*files*chunks), "ns/chunk")
}
