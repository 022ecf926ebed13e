package fusefs

import (
	"context"
	"errors"
	"time"
)

// Errors of a model that are ordinary answers, beside fs.ErrNotExist.
var (
	ErrNoXattr = errors.New("no such extended attribute")
	ErrNoData  = errors.New("no data from here to the end of the file")
	ErrNoKey   = errors.New("encrypted, and the key is not here")
)

// ID tells nodes apart: two nodes with one ID are one file under two names, or the same node asked for twice. IDs are
// not reused during the life of a mount.
type ID struct{ Hi, Lo uint64 }

// Node is anything in the tree. Beside Node, directories implement Dir, regular files File, and symlinks Symlink; devices,
// fifos and sockets are Nodes only. Nodes are immutable, except the entries of volatile directories, and their methods may
// be called from many goroutines.
type Node interface {
	ID() ID
	// Attr returns what stat shows. Errors: those of the store beneath.
	Attr(ctx context.Context) (Attr, error)
}

// Attr is what stat shows of a node, in Linux terms.
type Attr struct {
	Ino          uint64 // shown as the inode number; never 0
	Mode         uint32 // st_mode with type bits
	Nlink        uint32 // 0 is shown as 1
	UID, GID     uint32
	Rdev         uint64 // as Linux' dev_t, of devices
	Size         uint64 // bytes
	Blocks       uint64 // allocated units of 512 bytes
	MTime, CTime Time
}

// Time is a point in time: seconds since 1970, negative before it, and nanoseconds after that second.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts a time.Time.
func TimeOf(t time.Time) Time { return Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())} }

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	Node Node
	Next uint64 // where List goes on after this entry; larger than that of the entry before
}

// Dir is a directory.
type Dir interface {
	Node
	// Lookup returns the node of that name. Errors: fs.ErrNotExist, those of the store beneath.
	Lookup(ctx context.Context, name string) (Node, error)
	// List yields the entries from a position on: 0, or the Next of an entry yielded before, by this or another call.
	// It ends at the last entry, or when yield returns false. "." and ".." are not listed.
	List(ctx context.Context, from uint64, yield func(Dirent) bool) error
}

// Volatile is a Dir whose entries come and go. Its attributes' MTime changes with them.
type Volatile interface {
	Dir
	Volatile() bool
}

// File is a regular file.
type File interface {
	Node
	// Read returns bytes from off on: len(p) of them, or fewer where the file ends, none at its end and beyond. They lie
	// in p, or in memory of the model that nobody changes any more.
	Read(ctx context.Context, p []byte, off int64) ([]byte, error)
}

// Seeker is a File that may have holes. Others have data only.
type Seeker interface {
	// SeekData returns where the first byte of data at or after off lies; ErrNoData where none does.
	SeekData(ctx context.Context, off int64) (int64, error)
	// SeekHole returns where the first hole at or after off begins; the end of the file counts as one.
	// off lies inside the file.
	SeekHole(ctx context.Context, off int64) (int64, error)
}

// Symlink is a symbolic link.
type Symlink interface {
	Node
	Target(ctx context.Context) (string, error)
}

// Xattrs is a Node with extended attributes; POSIX ACLs are system.posix_acl_access and system.posix_acl_default in their
// Linux encoding. A Node without this ability has none.
type Xattrs interface {
	// XattrNames lists the names. The slice belongs to the model.
	XattrNames() []string
	// Xattr returns a value, which the caller does not change. Errors: ErrNoXattr, those of the store beneath. Asking
	// for an attribute that is not there is common and must be fast.
	Xattr(ctx context.Context, name string) ([]byte, error)
}

// Flagged is a regular file or directory with inode flags, as FS_IOC_GETFLAGS shows them.
type Flagged interface {
	InodeFlags() uint32
}

// Space is what statfs shows, in bytes and inodes.
type Space struct {
	Total, Free uint64
	Files       uint64
}

// Kinder is a Node that knows its type and inode number without asking the store; listings of names need no more.
type Kinder interface {
	// Kind returns st_mode, of which the type counts, and the inode number.
	Kind() (mode uint32, ino uint64)
}

// Cache is the kernel's cache of contents, into which a model may put what it expects to be read next: that spares the
// reader the question.
type Cache interface {
	// Holds reports whether the kernel holds a node now, which it may forget the next moment.
	Holds(id ID) bool
	// Fill gives the kernel the whole content of a regular file. It returns false, having done nothing, if the kernel does
	// not hold the file. It may take as long as a reader of the same file does.
	Fill(id ID, content []byte) bool
}

// Caching is a root directory that wants the Cache of its mount. UseCache is called once, before the first request.
type Caching interface {
	Dir
	UseCache(c Cache)
}
