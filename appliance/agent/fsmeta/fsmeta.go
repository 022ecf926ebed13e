package fsmeta

import (
	"errors"
	"fmt"

	"coffer/dedup/recipe"
)

// Stat is what one look at a file tells.
type Stat struct {
	Dev, Ino uint64
	Mode     uint32 // Linux st_mode with type bits
	Nlink    uint64
	UID, GID uint32
	Rdev     uint64 // Linux device number; of devices only
	Size     uint64
	// Allocated is the bytes that the file takes on its disk; fewer than Size where it has holes.
	Allocated    uint64
	MTime, CTime recipe.Time
}

// Type returns the type bits of the mode.
func (s *Stat) Type() uint32 { return s.Mode & recipe.ModeType }

// IsDir reports whether the file is a directory.
func (s *Stat) IsDir() bool { return s.Type() == recipe.ModeDir }

// IsRegular reports whether the file is a regular one.
func (s *Stat) IsRegular() bool { return s.Type() == recipe.ModeRegular }

// SameFile reports whether both are the same inode.
func (s *Stat) SameFile(o *Stat) bool { return s.Dev == o.Dev && s.Ino == o.Ino }

// Unchanged reports whether nothing that the file system tells says that the file was written or changed between the two.
func (s *Stat) Unchanged(o *Stat) bool {
	return s.SameFile(o) && s.Size == o.Size && s.MTime == o.MTime && s.CTime == o.CTime && s.Mode == o.Mode
}

// Compare orders times.
func Compare(a, b recipe.Time) int {
	switch {
	case a.Sec != b.Sec && a.Sec < b.Sec:
		return -1
	case a.Sec != b.Sec:
		return 1
	case a.Nsec < b.Nsec:
		return -1
	case a.Nsec > b.Nsec:
		return 1
	}
	return 0
}

// Errors that callers ask for, beside those of io/fs.
var (
	// ErrUnsupported: this system or file system cannot hold what was to be set.
	ErrUnsupported = errors.New("not supported here")
	// ErrNotDir: what should be a directory is something else, a symlink perhaps.
	ErrNotDir = errors.New("not a directory")
	// ErrLink: what should be opened is a symlink, and those are not followed.
	ErrLink = errors.New("is a symlink")
)

// Flags that need care, as Linux numbers them.
const (
	FlagImmutable uint32 = 0x10
	FlagAppend    uint32 = 0x20
	FlagNoCOW     uint32 = 0x800000
)

// SettableFlags are those of FS_IOC_GETFLAGS that a saveset keeps: what a user can set. Others tell how the file system
// keeps the file (extents, inline data), which restoring does not decide.
const SettableFlags uint32 = 0x1 | 0x2 | 0x4 | 0x8 | FlagImmutable | FlagAppend | 0x40 | 0x80 | // s u c S i a d A
	0x4000 | 0x8000 | 0x10000 | 0x20000 | FlagNoCOW | 0x20000000 // j t D T C P

// FlagNames returns the flags as lsattr prints them.
func FlagNames(flags uint32) string {
	var out []byte
	for i, name := range []byte("sucSiadA") {
		if flags&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	for _, f := range []struct {
		bit  uint32
		name byte
	}{{0x4000, 'j'}, {0x8000, 't'}, {0x10000, 'D'}, {0x20000, 'T'}, {FlagNoCOW, 'C'}, {0x20000000, 'P'}} {
		if flags&f.bit != 0 {
			out, flags = append(out, f.name), flags&^f.bit
		}
	}
	if rest := flags &^ 0xff; rest != 0 {
		out = fmt.Appendf(out, "(0x%x)", rest)
	}
	return string(out)
}

// Scratch is memory that calls reuse. One per goroutine; the zero value is ready.
type Scratch struct {
	dirents []byte
	list    []byte
	value   []byte
}

func (s *Scratch) buffer(p *[]byte, n int) []byte {
	if len(*p) < n {
		*p = make([]byte, n)
	}
	return *p
}

// Named is one name of a directory with its inode number, which costs nothing to learn and helps to look in disk order.
type Named struct {
	Name string
	Ino  uint64
}

// Mount tells what file system a directory lies on.
type Mount struct {
	// Type is its name or number, for messages.
	Type string
	// Pseudo: its files are the kernel's, not data (proc, sysfs, devtmpfs, cgroup, …).
	Pseudo bool
	// Saveset: it is a mount of savesets, which never goes into a saveset.
	Saveset bool
	// ID tells one file system from another across reboots where the system can tell; else empty.
	ID string
}
