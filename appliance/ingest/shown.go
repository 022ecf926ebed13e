package ingest

import (
	"hash/maphash"
	"sync"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
)

// shown is the set of nodes that a run's agent has been shown: it may ask for their children and for nothing else.
//
// Eight bytes of a hash with a random seed stand for a digest: ten million nodes cost some 150 MB less than whole digests,
// and a false "shown" would need luck of 2^-40, for the seed never leaves the process.
type shown struct {
	seed maphash.Seed

	mu *sync.Mutex
	// mu guards set.
	set map[uint64]struct{}
}

func newShown() shown {
	return shown{seed: maphash.MakeSeed(), mu: new(sync.Mutex), set: map[uint64]struct{}{}}
}

func (s shown) add(d digest.Digest) {
	h := maphash.Bytes(s.seed, d[:])
	s.mu.Lock()
	s.set[h] = struct{}{}
	s.mu.Unlock()
}

// drop forgets everything.
func (s shown) drop() {
	s.mu.Lock()
	clear(s.set)
	s.mu.Unlock()
}

// check refuses what was not shown.
func (s shown) check(d digest.Digest) error {
	h := maphash.Bytes(s.seed, d[:])
	s.mu.Lock()
	_, ok := s.set[h]
	s.mu.Unlock()
	if !ok {
		return sms.Errorf(sms.CodeNotShown, "node %v was never shown to this run", d)
	}
	return nil
}
