package dedup

import (
	"context"
	"time"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// ChunkSource gives chunks and nodes from elsewhere: another store of the same dedup domain, a tape.
type ChunkSource interface {
	Domain() digest.DomainID
	// Chunk returns the plain bytes of a chunk or node; the caller verifies them. Kind NotFound.
	Chunk(ctx context.Context, kind container.Kind, d digest.Digest) ([]byte, error)
}

// HealReport is what one Heal did.
type HealReport struct {
	// Local digests have a healthy second copy in the store that counts now; Salvaged were found again in containers
	// whose directory is damaged; Fetched came from a source. LocalBytes and so on: not counted for Local.
	Local, Salvaged, Fetched int
	FetchedBytes             int64
	// Unreferenced digests left the list because no saveset refers to them any more.
	Unreferenced int
	// Containers that were salvaged and are gone.
	Containers int
	// Left are the digests that stay on the list.
	Left int
	Took time.Duration
}

// Heal takes off the damage list what it can, cheapest first: digests whose place proves healthy when it is read again or
// that nothing refers to, second copies within the store, whole records of containers whose directory is damaged, then
// the sources in order. Kind InUse when another maintenance operation runs.
func (s *Store) Heal(ctx context.Context, from []ChunkSource, progress func(Progress)) (HealReport, error) {
	return HealReport{}, &Error{Kind: Invalid, Op: "heal store"}
}

// Source is another store that is read only: nothing is locked and nothing is written. Its index lives in memory, within
// a budget. Its methods may be called from many goroutines.
type Source struct{}

var _ ChunkSource = (*Source)(nil)

// OpenSource opens a store as a source of chunks. Options as Open's; only Blob, Key, Logger and LocalityMemory are used.
func OpenSource(ctx context.Context, opts Options) (*Source, error) {
	return nil, &Error{Kind: Invalid, Op: "open source"}
}

// Domain returns the dedup domain of the source's chunks.
func (s *Source) Domain() digest.DomainID { return digest.DomainID{} }

// Chunk implements ChunkSource.
func (s *Source) Chunk(ctx context.Context, kind container.Kind, d digest.Digest) ([]byte, error) {
	return nil, &Error{Kind: NotFound, Op: "read chunk", Object: d.String()}
}

// Close ends the source.
func (s *Source) Close() error { return nil }
