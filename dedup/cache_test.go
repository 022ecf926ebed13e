package dedup

import (
	"context"
	"testing"
)

// TestCacheIsTold fills a cache beyond its budget and empties it: who limits the memory knows what it holds to within a step.
func TestCacheIsTold(t *testing.T) {
	const budget, size = 5 * tellStep, tellStep / 4
	c := newFrameCache(budget)
	var told, calls int64
	c.grown = func(n int64) { told, calls = n, calls+1 }
	for i := range uint32(40) {
		_, err := c.get(t.Context(), Loc{Frame: i}, func(context.Context) ([]byte, error) { return make([]byte, size), nil })
		if err != nil {
			t.Fatal(err)
		}
		_, _, held := c.stats()
		if off := held - told; off >= tellStep || off <= -tellStep {
			t.Fatalf("%d bytes are held, told %d", held, told)
		}
	}
	if _, _, held := c.stats(); held > budget || told == 0 || calls > budget/tellStep {
		t.Errorf("%d bytes are held, told %d in %d calls", held, told, calls)
	}
	if c.clear(); told != 0 {
		t.Errorf("told %d bytes of an empty cache", told)
	}
}
