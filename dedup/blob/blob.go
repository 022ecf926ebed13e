// Package blob is the store's view of where bytes lie: named objects that are put whole, once, and then only read or
// deleted.
//
// It owns the Store interface and its first backend, a directory (Dir) over a vfs.FS. It does not know what a blob
// holds: containers, manifests and keys are formats of other packages. No append and no rename exist here, so that an
// object store fits the same interface.
package blob

import (
	"context"
	"errors"
	"io"
	"iter"
)

// Errors that every Store reports (wrapped, with the operation and the name).
var (
	ErrExists   = errors.New("blob exists")
	ErrNotExist = errors.New("blob does not exist")
	ErrName     = errors.New("invalid blob name")
	ErrLocked   = errors.New("store is in use by another writer")
)

// Info is one row of a listing.
type Info struct {
	Name string
	Size int64
}

// Store keeps blobs. Names are slash-separated parts of [a-z0-9._-], none empty and none beginning with a dot, at most
// MaxName bytes; no name may be a directory of another. All methods may be called concurrently. An error that wraps
// none of this package's errors is the backend's own (I/O, full disk, network): vfs.IsNoSpace tells a full disk.
type Store interface {
	// Put stores exactly size bytes of r under a name that must be free (ErrExists). It is atomic and durable: when Put
	// returns nil the blob is whole and survives a crash; when it returns an error, or the machine dies meanwhile, the
	// blob is whole or absent, never partial. After an error the caller must not count on either.
	Put(ctx context.Context, name string, r io.Reader, size int64) error
	// ReadRange fills p with the bytes at off. A range that is not wholly inside the blob is io.ErrUnexpectedEOF.
	ReadRange(ctx context.Context, name string, p []byte, off int64) error
	// List yields the blobs whose name begins with prefix and is greater than after, in byte order of the names. Blobs
	// that are put or deleted meanwhile may or may not appear.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Size returns the blob's length in bytes, or ErrNotExist.
	Size(ctx context.Context, name string) (int64, error)
	// Delete removes a blob, durably; ErrNotExist when there is none. After either, no blob of that name comes back in a
	// crash; after any other error one may, though Size does not find it: Delete may be called again.
	Delete(ctx context.Context, name string) error
}

// Adopter is the optional ability to take over a finished local file instead of copying it.
type Adopter interface {
	// Adopt is Put of the whole file at spoolPath, which the caller has synced and closed. On success the file is gone
	// from its old place; on an error it may or may not be.
	Adopt(ctx context.Context, name, spoolPath string) error
}

// Settler is the optional ability to make sure that what is gone stays so, whoever removed it.
type Settler interface {
	// Settle makes removals durable: when it returns nil, no blob below prefix that List did not yield before the call comes
	// back in a crash.
	Settle(ctx context.Context, prefix string) error
}

// Prefetcher is the optional ability to begin reading before the bytes are asked for.
type Prefetcher interface {
	// Prefetch says that a range of a blob will be read soon. It is a hint: it waits for nothing and tells no error.
	Prefetch(name string, off, n int64)
}

// FreeSpacer is the optional ability to tell how many bytes the backend can still take.
type FreeSpacer interface {
	FreeSpace(ctx context.Context) (int64, error)
}

// Locker is the optional ability to keep a second writer out.
type Locker interface {
	// Lock takes the store's writer lock without waiting (ErrLocked, with the owner that holds it) and clears what a
	// writer that died left half done. owner is a line for humans. The lock ends with Close or with the process.
	Lock(ctx context.Context, owner string) (io.Closer, error)
}
