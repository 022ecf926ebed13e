package restore

import (
	"testing"

	"coffer/dedup/recipe"
)

func TestPace(t *testing.T) {
	p := newPace(3, recipe.Totals{Bytes: 1 << 30, Entries: 50_000})
	sizes := []int{}
	for p.bytes > 0 {
		bytes, files := p.limit()
		if bytes < batchBytes/batchPart || bytes > batchBytes || files < batchFiles/batchPart || files > batchFiles {
			t.Fatalf("a batch of %d bytes and %d files", bytes, files)
		}
		sizes = append(sizes, bytes)
		p.gone(bytes, 0)
	}
	first, middle, last := sizes[0], sizes[len(sizes)/2], sizes[len(sizes)-1]
	if first != batchBytes/8 || middle != batchBytes || last != batchBytes/batchPart {
		t.Errorf("batches of %d, then %d, then %d bytes", first, middle, last)
	}
	if len(sizes) > 48 {
		t.Errorf("%d batches of 1 GiB", len(sizes))
	}
}

// TestPaceWithoutTotals: where nothing is expected, batches are small, but not too small.
func TestPaceWithoutTotals(t *testing.T) {
	p := newPace(8, recipe.Totals{})
	for range 10 {
		if bytes, files := p.limit(); bytes != batchBytes/batchPart || files != batchFiles/batchPart {
			t.Fatalf("a batch of %d bytes and %d files", bytes, files)
		}
		p.gone(batchBytes, batchFiles)
	}
}
