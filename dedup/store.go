package dedup

import (
	"context"

	"coffer/dedup/chunk"
	"coffer/dedup/digest"
)

// Domain is what an agent needs to cut and hash for this store. Key is a secret.
type Domain struct {
	ID       digest.DomainID
	Key      digest.DomainKey
	Keys     digest.Keys
	Chunking chunk.Params
}

// Store is an open store. All methods may be called from many goroutines.
type Store struct{}

// Create makes a new store in empty places, with a new domain, and opens it. Kind Exists when there is one.
func Create(ctx context.Context, opts Options) (*Store, error) { panic("todo") }

// Open opens a store for writing; one process at a time (Kind Locked). It clears what broken runs left in the spool and
// brings the index level with the containers; a lost or damaged index is rebuilt.
func Open(ctx context.Context, opts Options) (*Store, error) { panic("todo") }

// Close ends everything: runs still open are aborted, views become unusable. The store must not be used afterwards.
func (s *Store) Close() error { panic("todo") }

// Domain returns the domain that runs of this store write into.
func (s *Store) Domain() Domain { panic("todo") }

// Savesets returns all savesets that are not deleted, oldest first, each with its newest valid state.
func (s *Store) Savesets(ctx context.Context) ([]Manifest, error) { panic("todo") }

// Saveset returns one saveset, deleted ones included. Kind NotFound.
func (s *Store) Saveset(ctx context.Context, id SavesetID) (Manifest, error) { panic("todo") }

// SetState writes a new state of a saveset and returns it with its number and time. Durable when it returns. The change
// function gets the newest state and returns what it shall be; Number and Time are filled in. Kinds NotFound,
// Immutable (never below immutable_until), InUse (deletion of a leased saveset).
func (s *Store) SetState(ctx context.Context, id SavesetID, change func(State) State) (State, error) {
	panic("todo")
}

// Stats returns counters since Open and sizes of the moment.
func (s *Store) Stats() Stats { panic("todo") }

// Stats of a store.
type Stats struct {
	Containers, Savesets, Runs, Views int
	// StoredBytes is the size of all containers.
	StoredBytes uint64
	// Free is the free space of the blob store in bytes, less the reserve; -1 when unknown.
	Free int64
	// Locality: digests answered from loaded directories, digests that asked the index, directories loaded and dropped.
	LocalityHits, LocalityMisses, DirectoryLoads, DirectoryDrops uint64
	LocalityBytes                                                int64
	// Frame and node caches.
	FrameHits, FrameMisses, NodeHits, NodeMisses uint64
	FrameBytes, NodeBytes                        int64
}
