package index

import (
	"math/rand/v2"
	"testing"

	"github.com/dgraph-io/badger/v4/y"
)

// TestFiltersFailApart: a key that one table's filter lets pass by mistake is not one that other tables' filters let pass, too.
// The bits of a key decide: with 24 of them 7 of these misses pass two.
func TestFiltersFailApart(t *testing.T) {
	const keys, tables, misses = 300_000, 3, 1_000_000
	bits := y.BloomBitsPerKey(keys, filterError)
	r := rand.New(rand.NewPCG(1, 2)) // stands for the hashes of digests
	hashes := make([]uint32, keys)
	var filters []y.Filter
	for range tables {
		for i := range hashes {
			hashes[i] = r.Uint32()
		}
		filters = append(filters, y.NewFilter(hashes, bits))
	}
	passed, twice := 0, 0
	for range misses {
		h, n := r.Uint32(), 0
		for _, f := range filters {
			if f.MayContain(h) {
				n++
			}
		}
		if n > 0 {
			passed++
		}
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d bits a key: of %d misses %d pass a filter, %d pass two", bits, misses, passed, twice)
	if passed > misses/1000 || twice > 2 {
		t.Errorf("of %d misses %d pass a filter, %d pass two", misses, passed, twice)
	}
}
