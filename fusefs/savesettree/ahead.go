package savesettree

import (
	"context"

	"coffer/dedup/digest"
)

// Reading ahead inside a large file.

// readAhead notes a read of a large file and, if it is one of a sequence, has the chunks after it brought in.
func (f *file) readAhead(ctx context.Context, v View, off, end uint64) {
	from, to := f.step(int64(off), end)
	if from >= to {
		return
	}
	extents, err := f.extents(ctx, v, from, to)
	if err != nil {
		return // the reader who needs them meets the error himself
	}
	var ds []digest.Digest
	for _, x := range extents {
		if x.Offset >= to {
			break
		}
		if !x.Hole {
			ds = append(ds, x.Digest)
		}
	}
	v.ReadAhead(ds)
}

// step advances the place of reading and returns the range that shall be brought in, empty for none.
func (f *file) step(off int64, end uint64) (from, to uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &f.place
	if d := off - p.last; d < -nearby || d > nearby {
		*p = place{}
	}
	p.last = off
	p.run++
	if p.run < 2 && off > 0 {
		return 0, 0
	}
	if from, to = max(p.ahead, end), min(end+streamAhead, f.e.Size); to < from+streamAhead/4 && to < f.e.Size {
		return 0, 0 // little to gain yet
	}
	p.ahead = max(to, p.ahead)
	return from, to
}
