package dedup

import (
	"context"
	"time"
)

// CheckOptions say what a Check looks at. Objects, Pages or both; nothing chosen is Invalid.
type CheckOptions struct {
	// Objects: every reference of every saveset resolves, through the index, to a row of the right kind, length and domain.
	Objects bool
	// Pages: the stored bytes of containers and small objects match their checksums. It needs no key.
	Pages bool
	// Deep: Pages, and every frame is decrypted and decompressed and the digests of its chunks are recomputed.
	Deep bool
	// Share is the part of all containers that this call looks at, from where the last one stopped; 0 and 1: all of them.
	Share float64
	// Rate is the speed limit of Pages in bytes a second; 0: none.
	Rate int64
	// Progress, when set, is called from one goroutine, at most ten times a second and once at the end of a phase.
	Progress func(Progress)
}

// CheckReport is what one Check saw.
type CheckReport struct {
	// Containers and Frames whose pages were read, and how many bytes that were.
	Containers, Frames int
	Bytes              int64
	// SmallObjects whose pages were read.
	SmallObjects int
	// Savesets that were walked, and the references in them: a shared subtree counts once.
	Savesets   int
	References int64
	// Skipped containers went away meanwhile, or are of a key that the store has not got.
	Skipped int
	// Found is the damage that was not on the list before. Healthy counts digests that left it.
	Found   []Damage
	Healthy int
	// Complete: the round over all containers ended with this call, and Objects, if wanted, saw all savesets.
	Complete bool
	Took     time.Duration
}

// CheckState says how far the checks of a store are. It is kept in the store.
type CheckState struct {
	// Round counts the rounds of Pages, from 1; Done and Total are containers of this round.
	Round       uint64
	Done, Total int
	// Pages, Deep and Objects are when the last complete round of each ended, by the store's clock; zero: never.
	Pages, Deep, Objects time.Time
}

// Check reads the store and puts what is damaged on the damage list. Runs, views and deletions go on beside it; Kind InUse
// when another maintenance operation runs. An error is one of I/O or of ctx; damage is none. What was found until an error
// is on the list, and the next Check goes on behind it.
func (s *Store) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	return CheckReport{}, &Error{Kind: Invalid, Op: "check store"}
}

// CheckState returns how far the checks are.
func (s *Store) CheckState() CheckState { return CheckState{} }
