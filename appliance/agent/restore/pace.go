package restore

import (
	"coffer/appliance/agent/uplink"
	"coffer/dedup/recipe"
)

const (
	// batchBytes is how many plain bytes are fetched at once at most: frames at the edges of a batch come twice, so that it
	// should be large against a frame; descriptors and entries of the files wait, so that it should not be larger.
	batchBytes = uplink.MaxFetch
	// batchFiles is the most files of a batch; each may hold a directory open.
	batchFiles = 2048
	// batchPart is which part of those the smallest batch may hold.
	batchPart = 8
)

// pace says how large the next batch may be: small at first, so that the workers begin soon, and small towards the end,
// so that they end together. What it expects is an upper bound, for an order may leave a part of the saveset out; then
// the last batches are as large as the others.
type pace struct {
	workers      int
	bytes, files uint64 // to come
	start        int    // by how many halvings the next batch is smaller than a full one
}

func newPace(workers int, t recipe.Totals) pace {
	return pace{workers: workers, bytes: t.Bytes, files: t.Entries, start: 3}
}

// limit returns the bytes and files that complete a batch.
func (p *pace) limit() (bytes, files int) {
	part := func(full int, left uint64) int {
		share := min(uint64(full), left/uint64(p.workers+1))
		return min(max(int(share), full/batchPart), full>>p.start)
	}
	return part(batchBytes, p.bytes), part(batchFiles, p.files)
}

// gone takes a batch off what is to come.
func (p *pace) gone(bytes, files int) {
	p.bytes -= min(p.bytes, uint64(bytes))
	p.files -= min(p.files, uint64(files))
	p.start = max(0, p.start-1)
}
