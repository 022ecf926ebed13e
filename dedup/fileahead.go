package dedup

import (
	"context"
	"sync"
)

// Reading ahead in a file. Readers of a disk, or of a mount, have many requests in flight, which come out of order, and
// copy several parts of a file side by side: so a read belongs to a sequence when it begins near where that one is, and
// several sequences are followed. One read alone never begins one, nor do random reads that happen to lie side by side: a
// sequence must have grown to sequenceBytes.
const (
	sequencesKept = 8
	// sequenceNear is how far from the head of a sequence its next read may begin; of a young one, as far as it is long.
	sequenceNear = 2 << 20
	// sequenceMin is how many reads, and sequenceBytes how many bytes, make a sequence.
	sequenceMin   = 3
	sequenceBytes = 256 << 10
	// aheadMin and aheadMax are how far ahead of a sequence chunks are brought in, at least and at most; in between, half as far
	// as the sequence is long, so that little is in vain: a booting guest reads many short ones.
	aheadMin = 128 << 10
	aheadMax = 8 << 20
)

// sequences are where a file is being read in order.
type sequences struct {
	mu  sync.Mutex
	all [sequencesKept]sequence // guarded by mu
	use uint64                  // guarded by mu: counts up
}

type sequence struct {
	head  uint64 // end of the furthest read
	bytes uint64 // that were read
	reads int
	ahead uint64 // up to where chunks were asked for
	used  uint64 // when; 0: never
}

// note takes note of a read and returns the range that shall be brought in, empty for none.
func (s *sequences) note(off, n, size uint64) (from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use++
	q := s.find(off, n)
	q.used = s.use
	q.head = max(q.head, off+n)
	q.bytes += n
	q.reads++
	if q.reads < sequenceMin || q.bytes < sequenceBytes {
		return 0, 0
	}
	reach := min(max(q.bytes/2, aheadMin), aheadMax)
	from, to = max(q.ahead, q.head), min(q.head+reach, size)
	if to <= from || to < size && to-from < reach/4 {
		return 0, 0 // little to gain yet
	}
	q.ahead = to
	return from, to
}

// find returns the sequence that a read at off belongs to, or a new one in the place of the one that rests the longest. It
// needs mu held.
func (s *sequences) find(off, n uint64) *sequence {
	oldest := &s.all[0]
	for i := range s.all {
		q := &s.all[i]
		near := min(max(q.bytes, sequenceBytes, 4*n), sequenceNear)
		if q.used > 0 && off+near >= q.head && off <= q.head+near {
			return q
		}
		if q.used < oldest.used {
			oldest = q
		}
	}
	*oldest = sequence{head: off}
	return oldest
}

// readAhead notes a read and brings in what comes after it, if it is one of a sequence.
func (f *File) readAhead(ctx context.Context, off, n uint64) {
	from, to := f.ahead.note(off, n, f.size)
	f.bring(ctx, from, to)
}
