//go:build darwin || freebsd

package fsmeta

import (
	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

// Chmod sets permissions and the setuid, setgid and sticky bits. Not for symlinks.
func (h Handle) Chmod(mode uint32) error {
	if h.fd >= 0 {
		return errnoErr(unix.Fchmod(h.fd, mode&permBits))
	}
	return errnoErr(unix.Fchmodat(h.at, h.name, mode&permBits, unix.AT_SYMLINK_NOFOLLOW))
}

// SetMTime sets the modification time, and the access time with it.
func (h Handle) SetMTime(t recipe.Time) error {
	ts := unix.Timespec{}
	ts.Sec, ts.Nsec = t.Sec, int64(t.Nsec)
	if h.name == "" {
		tv := []unix.Timeval{unix.NsecToTimeval(ts.Nano()), unix.NsecToTimeval(ts.Nano())}
		return errnoErr(unix.Futimes(h.fd, tv))
	}
	return errnoErr(unix.UtimesNanoAt(h.at, h.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// SetXattr sets an attribute of an open file.
func (h Handle) SetXattr(name string, value []byte) error {
	if h.fd < 0 {
		return wrapAttr("set", name, unix.ENOTSUP)
	}
	return wrapAttr("set", name, unix.Fsetxattr(h.fd, name, value, 0))
}

// RemoveXattr removes an attribute of an open file.
func (h Handle) RemoveXattr(name string) error {
	if h.fd < 0 {
		return nil
	}
	if err := unix.Fremovexattr(h.fd, name); err != nil && err != errNoAttr {
		return wrapAttr("remove", name, err)
	}
	return nil
}

// Xattrs reads the attributes of an open file, ascending by name.
func (h Handle) Xattrs(sc *Scratch) ([]recipe.Xattr, error) {
	if h.fd < 0 {
		return nil, nil
	}
	return readXattrs(fdAttrs(h.fd), sc)
}

// HasDefaultACL is false: ACLs are not kept on this system.
func (d *Dir) HasDefaultACL() bool { return false }

// Flags returns 0: chflags' flags are not Linux' and are not kept.
func (h Handle) Flags() (uint32, error) { return 0, nil }

// SetFlags refuses any flag: Linux' are unknown here.
func (h Handle) SetFlags(flags uint32) error {
	if flags == 0 {
		return nil
	}
	return ErrUnsupported
}
