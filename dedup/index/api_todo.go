package index

import (
	"context"
	"iter"
	"log/slog"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// Options of Open. Dir is needed, the zero value of all else works.
type Options struct {
	Memory  int64                           // bytes of memory to aim at; 0: DefaultMemory
	Reserve int64                           // bytes that must stay free in Dir's file system; 0: derived from Memory
	Free    func(dir string) (int64, error) // free bytes; nil: the file system's own answer
	Store   [16]byte                        // the store (first domain id) that the index belongs to
	Logger  *slog.Logger
}

// Loc is where a chunk lies. A hint: it counts only if the container is alive and its row has the full digest.
type Loc struct {
	Container container.ID
	Slot      uint32
	Kind      container.Kind
}

// Index maps digests to places. Safe for concurrent use.
type Index struct{}

// Open opens or makes the index in dir. *Error with KindCorrupt, KindForeign, KindNewerFormat: remove it (Remove) and
// rebuild from the containers; KindNoSpace: make room; KindLocked: another process has it.
func Open(dir string, o Options) (*Index, error) { panic("todo") }

// Remove removes an index directory that no process has open.
func Remove(dir string) error { panic("todo") }

// Lookup finds ds; found[i] tells whether locs[i] is set. Both slices have at least len(ds) elements.
func (x *Index) Lookup(ctx context.Context, ds []digest.Digest, locs []Loc, found []bool) error {
	panic("todo")
}

// PutContainer enters every row of a container, in slot order, and then its mark. Synced on return. A digest that has a
// location already keeps it, if keep says so (nil: always).
func (x *Index) PutContainer(ctx context.Context, d *container.Directory, keep func(digest.Digest, Loc) bool) error {
	panic("todo")
}

// DeleteIf removes the entries that still name the given place, and syncs.
func (x *Index) DeleteIf(ctx context.Context, ds []digest.Digest, locs []Loc) error { panic("todo") }

// HasContainer tells whether a container was entered whole.
func (x *Index) HasContainer(id container.ID) (bool, error) { panic("todo") }

// Containers yields the containers that were entered, in order of their ids.
func (x *Index) Containers(ctx context.Context) iter.Seq2[container.ID, error] { panic("todo") }

// ForgetContainer removes a container's mark, and syncs.
func (x *Index) ForgetContainer(ctx context.Context, id container.ID) error { panic("todo") }

// CheckSpace returns a KindNoSpace error when the reserve is reached.
func (x *Index) CheckSpace() error { panic("todo") }

func (x *Index) Stats() Stats { panic("todo") }
func (x *Index) Close() error { panic("todo") }

// Stats is a snapshot of the index's sizes.
type Stats struct {
	DiskBytes int64
	Tables    int
}

// Error is this package's error.
type Error struct {
	Op   string
	Kind Kind
	Err  error
}

func (e *Error) Error() string { panic("todo") }
func (e *Error) Unwrap() error { return e.Err }

// Kind classifies an Error.
type Kind uint8

const (
	KindIO Kind = iota
	KindCorrupt
	KindForeign
	KindNewerFormat
	KindNoSpace
	KindLocked
	KindClosed
)
