//go:build linux

package treecmp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The inode flags of linux/fs.h that chattr sets and a restore can give back; all others describe the file system.
const (
	flagSync      = 0x8
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagNodump    = 0x40
	flagNoatime   = 0x80
	flagDirsync   = 0x10000

	settableFlags = flagSync | flagImmutable | flagAppend | flagNodump | flagNoatime | flagDirsync
)

// compareEntry compares one name that stands in both directories, with all below it.
func (c *comparison) compareEntry(rel, name string, a, b *dir) {
	var sa, sb unix.Stat_t
	if err := lstat(a, name, &sa); err != nil {
		c.report(rel, Unreadable, "first tree: stat: %v", err)
		return
	}
	if err := lstat(b, name, &sb); err != nil {
		c.report(rel, Unreadable, "second tree: stat: %v", err)
		return
	}
	c.entries.Add(1)
	if sa.Mode&unix.S_IFMT != sb.Mode&unix.S_IFMT {
		c.report(rel, Type, "%s, %s", typeName(sa.Mode), typeName(sb.Mode))
		return
	}
	c.compareStat(rel, &sa, &sb)
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		c.compareSubdir(rel, name, a, b)
	case unix.S_IFREG:
		c.noteLinks(rel, &sa, &sb)
		c.compareFile(rel, name, a, b, &sa, &sb)
	case unix.S_IFLNK:
		c.noteLinks(rel, &sa, &sb)
		c.compareTargets(rel, name, a, b)
		c.compareXattrsOf(rel, name, a, b)
	default:
		c.noteLinks(rel, &sa, &sb)
		c.compareXattrsOf(rel, name, a, b)
	}
}

func (c *comparison) compareSubdir(rel, name string, a, b *dir) {
	da, err := a.openDir(name)
	if err != nil {
		c.report(rel, Unreadable, "first tree: open: %v", err)
		return
	}
	defer da.f.Close()
	db, err := b.openDir(name)
	if err != nil {
		c.report(rel, Unreadable, "second tree: open: %v", err)
		return
	}
	defer db.f.Close()
	c.compareDescriptors(rel, da.fd(), db.fd())
	if c.o.OneFS && (da.dev != a.dev || db.dev != b.dev) {
		return
	}
	c.compareDir(rel, da, db)
}

// compareOpened compares the metadata of the roots, which have no parent to be looked up in.
func (c *comparison) compareOpened(rel string, a, b *dir) {
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Fstat(a.fd(), &sa), unix.Fstat(b.fd(), &sb)); err != nil {
		c.report(rel, Unreadable, "stat: %v", err)
		return
	}
	c.entries.Add(1)
	c.compareStat(rel, &sa, &sb)
	c.compareDescriptors(rel, a.fd(), b.fd())
}

// compareDescriptors compares what only an open file shows: attributes and flags.
func (c *comparison) compareDescriptors(rel string, a, b int) (hasXattrs bool) {
	hasXattrs = c.compareXattrs(rel, a, b)
	if c.o.Ignore&Flags == 0 {
		if fa, fb := inodeFlags(a), inodeFlags(b); fa != fb {
			c.report(rel, Flags, "%#x, %#x", fa, fb)
		}
	}
	return hasXattrs
}

func (c *comparison) compareStat(rel string, sa, sb *unix.Stat_t) {
	if ma, mb := sa.Mode&07777, sb.Mode&07777; ma != mb {
		c.report(rel, Mode, "%04o, %04o", ma, mb)
	}
	if sa.Uid != sb.Uid || sa.Gid != sb.Gid {
		c.report(rel, Owner, "%d:%d, %d:%d", sa.Uid, sa.Gid, sb.Uid, sb.Gid)
	}
	if sa.Mtim != sb.Mtim {
		c.report(rel, MTime, "%d.%09d, %d.%09d", sa.Mtim.Sec, sa.Mtim.Nsec, sb.Mtim.Sec, sb.Mtim.Nsec)
	}
	if t := sa.Mode & unix.S_IFMT; (t == unix.S_IFCHR || t == unix.S_IFBLK) && sa.Rdev != sb.Rdev {
		c.report(rel, Rdev, "%d:%d, %d:%d", unix.Major(sa.Rdev), unix.Minor(sa.Rdev), unix.Major(sb.Rdev), unix.Minor(sb.Rdev))
	}
}

func (c *comparison) compareTargets(rel, name string, a, b *dir) {
	if c.o.Ignore&Target != 0 {
		return
	}
	ta, errA := readlink(a, name)
	tb, errB := readlink(b, name)
	if err := errors.Join(errA, errB); err != nil {
		c.report(rel, Unreadable, "readlink: %v", err)
	} else if ta != tb {
		c.report(rel, Target, "%q, %q", ta, tb)
	}
}

// compareXattrsOf compares the attributes of what cannot be opened for reading: symlinks, devices, fifos, sockets.
func (c *comparison) compareXattrsOf(rel, name string, a, b *dir) {
	if c.o.Ignore&Xattr != 0 {
		return
	}
	fa, err := openat(a.fd(), name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		c.report(rel, Unreadable, "first tree: open: %v", err)
		return
	}
	defer unix.Close(fa)
	fb, err := openat(b.fd(), name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		c.report(rel, Unreadable, "second tree: open: %v", err)
		return
	}
	defer unix.Close(fb)
	c.compareXattrs(rel, fa, fb)
}

// compareXattrs reports whether either side has attributes, and their differences.
func (c *comparison) compareXattrs(rel string, a, b int) bool {
	if c.o.Ignore&Xattr != 0 {
		return true // not looked at: there may be some
	}
	xa, errA := c.xattrs(a)
	xb, errB := c.xattrs(b)
	if err := errors.Join(errA, errB); err != nil {
		c.report(rel, Unreadable, "xattrs: %v", err)
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(xa)) {
		if vb, ok := xb[name]; !ok {
			c.report(rel, Xattr, "%q: %d bytes, none", name, len(xa[name]))
		} else if !bytes.Equal(xa[name], vb) {
			c.report(rel, Xattr, "%q: %s, %s", name, shorten(xa[name]), shorten(vb))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(xb)) {
		if _, ok := xa[name]; !ok {
			c.report(rel, Xattr, "%q: none, %d bytes", name, len(xb[name]))
		}
	}
	return len(xa)+len(xb) > 0
}

// xattrs reads all attributes of an open file. It goes through /proc, because descriptors opened with O_PATH have no
// other way; the kernel resolves these links to the file itself, symlinks included.
func (c *comparison) xattrs(fd int) (map[string][]byte, error) {
	p := fmt.Sprintf("/proc/self/fd/%d", fd)
	list, err := grow(func(buf []byte) (int, error) { return unix.Listxattr(p, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if c.o.SkipXattr != nil && c.o.SkipXattr(name) {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Getxattr(p, name, buf) })
		if err != nil {
			return nil, fmt.Errorf("get %q: %w", name, err)
		}
		all[name] = value
	}
	return all, nil
}

// grow calls f with larger buffers until the answer fits. 64 KiB is the kernel's own bound.
func grow(f func([]byte) (int, error)) ([]byte, error) {
	for size := 512; ; size *= 4 {
		buf := make([]byte, size)
		n, err := f(buf)
		if errors.Is(err, unix.ERANGE) && size < 64<<10 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// inodeFlags reads what chattr set; file systems without flags have none set.
func inodeFlags(fd int) int {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return 0
	}
	return flags & settableFlags
}

func lstat(d *dir, name string, st *unix.Stat_t) error {
	return unix.Fstatat(d.fd(), name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func readlink(d *dir, name string) (string, error) {
	buf := make([]byte, 4097)
	n, err := unix.Readlinkat(d.fd(), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %#o", mode&unix.S_IFMT)
}

func shorten(v []byte) string {
	if len(v) > 40 {
		return fmt.Sprintf("%q… (%d bytes)", v[:40], len(v))
	}
	return fmt.Sprintf("%q", v)
}
