package volume

import (
	"errors"
	"io"
	"time"
)

// ErrCorrupt is wrapped by the errors of a file system, or partition table, that contradicts itself.
var ErrCorrupt = errors.New("the file system is damaged")

// ErrUnsupported is wrapped by the errors of what is whole, but not readable here.
var ErrUnsupported = errors.New("not supported")

// FS is a file system that is open for reading. It is never written, and its journal is not replayed: what a machine had not
// yet written back when its disk was copied may be missing, as after a power failure.
//
// All methods of an FS and its nodes may be called from many goroutines. A hostile file system costs errors, never a panic,
// and memory in proportion to what is asked for: a directory's entries, a piece of a file.
type FS interface {
	Root() (Dir, error)
}

// Node is a file of any kind. Directories are a Dir, regular files a File, symbolic links a Link.
type Node interface {
	Attr() Attr
}

// Attr is what stat shows of a node, in Linux terms.
type Attr struct {
	Ino      uint64
	Mode     uint32 // st_mode with type bits
	Nlink    uint32
	UID, GID uint32
	Rdev     uint64
	Size     int64
	MTime    time.Time
}

// Entry is a name in a directory.
type Entry struct {
	Name string
	Type uint32 // type bits of Mode; 0 where the directory does not say it
	Ino  uint64
}

// Dir is a directory.
type Dir interface {
	Node
	// List yields the entries but "." and "..", in any order that stays the same, until yield returns false. Names that no
	// file can have (empty, with a slash or a zero byte) are left out.
	List(yield func(Entry) bool) error
	// Lookup opens the node of that name; fs.ErrNotExist where there is none.
	Lookup(name string) (Node, error)
	// Open opens the node of an entry that List yielded, without looking for its name again.
	Open(e Entry) (Node, error)
}

// File is a regular file.
type File interface {
	Node
	io.ReaderAt
	// Extents yields the extents of a range inside the file, in order and without gaps, until yield returns false.
	Extents(off, n int64, yield func(n int64, hole bool) bool) error
}

// Link is a symbolic link.
type Link interface {
	Node
	Target() (string, error)
}

// The type bits of Attr.Mode, as Linux has them.
const (
	ModeType    = 0o170000
	ModeFifo    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)
