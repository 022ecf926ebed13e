package recipe

import "coffer/dedup/digest"

// The type bits of Entry.Mode, as Linux' st_mode has them. Part of the format.
const (
	ModeType    uint32 = 0o170000
	ModeSocket  uint32 = 0o140000
	ModeSymlink uint32 = 0o120000
	ModeRegular uint32 = 0o100000
	ModeBlock   uint32 = 0o060000
	ModeDir     uint32 = 0o040000
	ModeChar    uint32 = 0o020000
	ModeFifo    uint32 = 0o010000
)

// Time is a point in time: Sec seconds (may be negative) and Nsec nanoseconds after 1970-01-01 00:00:00 UTC.
type Time struct {
	Sec  int64
	Nsec uint32 // below 1e9
}

// Xattr is an extended attribute. A value of up to MaxInline bytes lies in Value; a longer one (a shorter one may)
// is the data chunk Chunk of Size bytes.
type Xattr struct {
	Name  string
	Value []byte
	Chunk digest.Digest // zero: the value is Value
	Size  uint32        // plain bytes of Chunk; 0 without one
}

// ContentKind says what the content of an entry is. Part of the format.
type ContentKind uint8

// The content kinds.
const (
	NoContent  ContentKind = 0 // an empty file, or something that has no content
	OneChunk   ContentKind = 1 // a file of one data chunk
	StreamTree ContentKind = 2 // a file of several extents
	DirTree    ContentKind = 3 // a directory's nodes
	ImageTree  ContentKind = 4 // a disk image: a file of chunks of one size
)

func (k ContentKind) String() string {
	switch k {
	case NoContent:
		return "no content"
	case OneChunk:
		return "one chunk"
	case StreamTree:
		return "stream tree"
	case DirTree:
		return "directory tree"
	case ImageTree:
		return "image tree"
	}
	return "content kind(invalid)"
}

// root returns the leaf kind of the tree that content of kind k is.
func (k ContentKind) root() Kind {
	switch k {
	case StreamTree:
		return StreamLeaf
	case ImageTree:
		return ImageLeaf
	}
	return DirLeaf
}

// Content is the content of an entry: a chunk, or the root node of a tree.
type Content struct {
	Kind   ContentKind
	Digest digest.Digest // zero for NoContent
}

// Entry is what restore needs to know of one name in a directory, and nothing else: two equal files in two places
// are equal entries.
type Entry struct {
	Name     string
	Mode     uint32 // Linux st_mode with type bits
	UID, GID uint32
	MTime    Time
	// Size is the length of a regular file, holes included, and is what its content has; 0 for all other types
	// (and so for a symlink: its length is that of Target).
	Size      uint64
	Rdev      uint64  // of a device
	LinkGroup uint64  // entries of a saveset with the same non-zero number are hard links of one file
	Target    string  // of a symlink
	Xattrs    []Xattr // strictly ascending by name
	Flags     uint32  // of FS_IOC_GETFLAGS, those only that can be set
	Content   Content // a directory's is a DirTree always, with an empty leaf if it is empty
}

// IsDir reports whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Mode&ModeType == ModeDir }

// IsRegular reports whether the entry is a regular file.
func (e *Entry) IsRegular() bool { return e.Mode&ModeType == ModeRegular }

// Extent is a part of a file or stream: a hole, or one data chunk.
type Extent struct {
	Offset uint64 // in the stream; builders ignore it
	Length uint64 // bytes; at least 1
	Hole   bool
	Digest digest.Digest // of the chunk; zero for a hole
}

// SideRow is what a later run needs to know of an entry, and a restore does not.
type SideRow struct {
	Dev, Ino uint64
	CTime    Time
	Captured bool // content was read by this run, not taken over from the parent
}
