// Package vfs is the file system as a parameter: what the store writes through, so that a test can lose power at any
// write and fail any operation.
//
// It owns the FS interface, the operating system's file system (OS), a file system in memory (Mem) that tells synced
// bytes and directory entries from unsynced ones and can be cloned as a crash would leave it, and the two questions
// every caller asks of an error (is the disk full, is the file system another one). The fault injector is in errorfs.
// It knows nothing about blobs, containers or names; badger and SQLite open their own files and stand outside it.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// File is an open file. ReadAt may be called concurrently, with itself and with the writer; all else is for one
// goroutine at a time. WriteAt past the end extends the file, with zeros in the gap.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes the file's bytes and length durable. After an error the state of every byte written since the last
	// good Sync is unknown: the caller abandons the file, a second Sync proves nothing.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	Name() string
}

// WriteStarter is the optional ability of a File to begin writing back a range of its bytes, so that a later Sync has
// less to wait for. It promises nothing about durability.
type WriteStarter interface {
	StartWrite(off, n int64) error
}

// Prefetcher is the optional ability of a File to begin reading a range into the system's cache, without waiting for it. A
// hint: it tells no error.
type Prefetcher interface {
	Prefetch(off, n int64)
}

// DirectAlign is what address, length and offset of the data must be multiples of that is written past the cache, in bytes.
const DirectAlign = 4096

// DirectWriter is the optional ability of a File to write past the system's cache: without a copy, and without pushing out
// what others read.
type DirectWriter interface {
	// SetDirect begins or ends it. Meanwhile WriteAt is for aligned data only, see DirectAlign, and may fail so that
	// IsInvalid tells it where the file system does not do this after all. Not beside WriteAt.
	SetDirect(on bool) error
}

// HolePuncher is the optional ability of a File to give back the space of a range: it reads as zeros then, and the file's
// size stays. Blocks of the file system that the range covers only in part are zeroed and keep their space. An error that
// wraps errors.ErrUnsupported leaves the bytes as they were. To be durable it needs a Sync, as a write does.
type HolePuncher interface {
	PunchHole(off, n int64) error
}

// PunchHole gives the space of a range of f back, where f can do that.
func PunchHole(f File, off, n int64) error {
	p, ok := f.(HolePuncher)
	if !ok {
		return fmt.Errorf("punch hole in %s: %w", f.Name(), errors.ErrUnsupported)
	}
	return p.PunchHole(off, n)
}

// FS is a file system. Names are those of the system beneath (for OS) or slash-separated (for Mem). Errors wrap the
// fs.Err* values (fs.ErrNotExist, fs.ErrExist) and the system's errno, so that errors.Is works. All methods may be
// called concurrently.
//
// INVARIANT: what Sync and SyncDir did not confirm may be lost, in any part, in a crash. A new name, a rename and a
// removal are durable when the directory that holds the name has been synced.
type FS interface {
	// Create makes a new file, open for reading and writing; the name must be free (fs.ErrExist).
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenReadWrite opens a file that exists for reading and writing, without changing it.
	OpenReadWrite(name string) (File, error)
	// Rename gives a file a new name and replaces what has that name already.
	Rename(oldname, newname string) error
	// RenameNew gives a file a new name that must be free (fs.ErrExist), in one atomic step.
	RenameNew(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Mkdir makes one directory with mode 0700; the name must be free.
	Mkdir(name string) error
	// MkdirAll makes a directory and its missing parents. It syncs none of them: see MkdirAllSync.
	MkdirAll(dir string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
	// Lock takes the exclusive lock of the named file, which it creates, without waiting: ErrLocked when another holder,
	// in this or another process, has it. The lock ends with Close or with the process.
	Lock(name string) (io.Closer, error)
	// Free returns the bytes that an ordinary user can still write in the file system that holds dir.
	Free(dir string) (int64, error)
}
