//go:build linux

package nastytree

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// maker carries the first error of a chain of operations: after it, every operation does nothing.
type maker struct {
	o       Options
	err     error
	skipped []string
	log     []string
	times   map[string]unix.Timespec // paths with a time of their own
	flags   map[string]int           // inode flags, set when all else is done
}

// node is an open directory of the tree.
type node struct {
	m   *maker
	fd  int
	rel string
}

func newMaker(o Options) *maker {
	return &maker{o: o, times: map[string]unix.Timespec{}, flags: map[string]int{}}
}

func (m *maker) top(dir string) *node {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	m.check("open", dir, err)
	return &node{m: m, fd: fd, rel: "."}
}

// check keeps the first error.
func (m *maker) check(op, rel string, err error) bool {
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("%s %q: %w", op, rel, err)
	}
	return m.err == nil
}

// try is check for what a file system or a sandbox may refuse.
func (m *maker) try(op, rel string, err error) {
	for _, refusal := range []error{unix.EOPNOTSUPP, unix.EPERM, unix.ENOTTY, unix.ENOSPC, unix.EINVAL, unix.EFBIG, unix.E2BIG} {
		if errors.Is(err, refusal) {
			m.skipped = append(m.skipped, fmt.Sprintf("%s: %s: %v", rel, op, err))
			return
		}
	}
	m.check(op, rel, err)
}

// rand is the source of all that is random about one path.
func (m *maker) rand(rel string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(rel))
	return rand.New(rand.NewPCG(m.o.Seed, h.Sum64()))
}

func (n *node) path(name string) string { return path.Join(n.rel, name) }

func (n *node) close() {
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// sub opens a directory below n.
func (n *node) sub(name string) *node {
	d := &node{m: n.m, fd: -1, rel: n.path(name)}
	if n.m.err != nil {
		return d
	}
	fd, err := unix.Openat(n.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if n.m.check("open", d.rel, err) {
		d.fd = fd
	}
	return d
}

func (n *node) mkdir(name string) *node {
	if n.m.err == nil {
		n.m.check("mkdir", n.path(name), unix.Mkdirat(n.fd, name, 0o755))
	}
	return n.sub(name)
}

// file makes a regular file of that content.
func (n *node) file(name string, content []byte) {
	n.fileWith(name, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

func (n *node) fileWith(name string, write func(f *os.File) error) {
	n.edit(name, unix.O_CREAT|unix.O_EXCL, write)
}

// edit opens a file for writing and hands it over.
func (n *node) edit(name string, flags int, change func(f *os.File) error) {
	if n.m.err != nil {
		return
	}
	fd, err := unix.Openat(n.fd, name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o644)
	if !n.m.check("open", n.path(name), err) {
		return
	}
	f := os.NewFile(uintptr(fd), name)
	n.m.try("write", n.path(name), change(f))
	n.m.check("close", n.path(name), f.Close())
}

func (n *node) symlink(target, name string) {
	if n.m.err == nil {
		n.m.check("symlink", n.path(name), unix.Symlinkat(target, n.fd, name))
	}
}

func (n *node) mknod(name string, mode uint32, dev uint64) {
	if n.m.err == nil {
		n.m.try("mknod", n.path(name), unix.Mknodat(n.fd, name, mode, int(dev)))
	}
}

func (n *node) link(name string, to *node, as string) {
	if n.m.err == nil {
		n.m.try("link", to.path(as), unix.Linkat(n.fd, name, to.fd, as, 0))
	}
}

func (n *node) chmod(name string, mode uint32) {
	if n.m.err == nil {
		n.m.check("chmod", n.path(name), unix.Fchmodat(n.fd, name, mode, 0))
	}
}

func (n *node) chown(name string, uid, gid int) {
	if n.m.err == nil {
		n.m.try("chown", n.path(name), unix.Fchownat(n.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// xattr sets an attribute on an entry of any type, through /proc, since symlinks and devices cannot be opened.
func (n *node) xattr(name, attr string, value []byte) {
	if n.m.err != nil {
		return
	}
	fd, err := unix.Openat(n.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return // its making was refused
	}
	if n.m.check("open", n.path(name), err) {
		n.m.try("set "+attr, n.path(name), unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", fd), attr, value, 0))
		unix.Close(fd)
	}
}

// at gives an entry its own modification time.
func (n *node) at(name string, sec, nsec int64) {
	n.m.times[n.path(name)] = unix.Timespec{Sec: sec, Nsec: nsec}
}

func (n *node) names() []string {
	if n.m.err != nil {
		return nil
	}
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !n.m.check("open", n.rel, err) {
		return nil
	}
	f := os.NewFile(uintptr(fd), n.rel)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	n.m.check("list", n.rel, err)
	slices.Sort(names)
	return names
}

func (n *node) stat(name string) (st unix.Stat_t) {
	if n.m.err == nil {
		n.m.check("stat", n.path(name), unix.Fstatat(n.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW))
	}
	return st
}

func isDir(st unix.Stat_t) bool  { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func isFile(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

// finish sets the times of all entries, deepest first, and then the flags.
func (m *maker) finish(root *node) {
	m.setTimes(root)
	m.setTime(root, ".", ".")
	m.setAllFlags(root)
}

func (m *maker) setAllFlags(root *node) {
	for _, rel := range slices.Sorted(maps.Keys(m.flags)) {
		m.setFlags(root, rel, m.flags[rel])
	}
}

func (m *maker) setTimes(d *node) {
	for _, name := range d.names() {
		if isDir(d.stat(name)) {
			sub := d.sub(name)
			m.setTimes(sub)
			sub.close()
		}
		m.setTime(d, name, d.path(name))
	}
}

// setTime gives an entry its own time or one made up from its path.
func (m *maker) setTime(d *node, name, rel string) {
	if m.err != nil {
		return
	}
	ts, ok := m.times[rel]
	if !ok {
		r := m.rand("time of " + rel)
		ts = unix.Timespec{Sec: 600e6 + r.Int64N(1100e6), Nsec: r.Int64N(1e9)} // 1989 to 2023
	}
	m.check("set time", rel, unix.UtimesNanoAt(d.fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// setFlags sets chattr's flags on a path without symlinks, short enough for one open.
func (m *maker) setFlags(root *node, rel string, flags int) {
	if m.err != nil {
		return
	}
	fd, err := unix.Openat(root.fd, rel, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if m.check("open", rel, err) {
		m.try("chattr", rel, changeFlags(fd, -1, flags))
		unix.Close(fd)
	}
}

// Inode flags of linux/fs.h.
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagNodump    = 0x40
	flagNoatime   = 0x80
)

// changeFlags clears and sets inode flags among those that this package uses.
func changeFlags(fd, clear, set int) error {
	const ours = flagImmutable | flagAppend | flagNodump | flagNoatime
	have, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	if next := have&^(clear&ours) | set; next != have {
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, next)
	}
	return nil
}

// Clean takes immutable and append-only flags off all entries below dir, so that dir can be removed. A missing dir is no
// error.
func Clean(dir string) error {
	m := newMaker(Options{})
	root := m.top(dir)
	if errors.Is(m.err, unix.ENOENT) {
		return nil
	}
	defer root.close()
	m.clean(root)
	return m.err
}

func (m *maker) clean(d *node) {
	if m.err != nil {
		return
	}
	_ = changeFlags(d.fd, flagImmutable|flagAppend, 0) // a file system without flags has none to clear
	for _, name := range d.names() {
		switch st := d.stat(name); {
		case isDir(st):
			sub := d.sub(name)
			m.clean(sub)
			sub.close()
		case isFile(st):
			d.cleanFile(name)
		}
	}
}

func (n *node) cleanFile(name string) {
	fd, err := unix.Openat(n.fd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = changeFlags(fd, flagImmutable|flagAppend, 0)
	unix.Close(fd)
}
