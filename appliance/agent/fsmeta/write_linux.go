package fsmeta

import (
	"errors"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

// Mknod makes a device, fifo or socket with the mode's type, for its owner only.
func (d *Dir) Mknod(name string, mode uint32, rdev uint64) error {
	dev := 0
	if isDevice(mode) {
		major, minor := deviceNumbers(rdev)
		dev = int(unix.Mkdev(major, minor))
	}
	return errnoErr(unix.Mknodat(d.fd, name, mode&recipe.ModeType|0o600, dev))
}

// Chmod sets permissions and the setuid, setgid and sticky bits. Not for symlinks.
func (h Handle) Chmod(mode uint32) error {
	if h.fd >= 0 {
		return errnoErr(unix.Fchmod(h.fd, mode&permBits))
	}
	// fchmodat follows symlinks; the descriptor of the name itself does not.
	return h.viaPath(func(path string) error { return unix.Chmod(path, mode&permBits) })
}

// viaPath calls f with a path that leads to the very file of the handle, even if another takes its name meanwhile.
func (h Handle) viaPath(f func(path string) error) error {
	fd := h.fd
	if fd < 0 {
		var err error
		if fd, err = openat(h.at, h.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return errnoErr(err)
		}
		defer unix.Close(fd)
	}
	return errnoErr(f("/proc/self/fd/" + strconv.Itoa(fd)))
}

// SetMTime sets the modification time; the access time stays.
func (h Handle) SetMTime(t recipe.Time) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {}}
	ts[1].Sec, ts[1].Nsec = t.Sec, int64(t.Nsec)
	if h.fd < 0 {
		return errnoErr(unix.UtimesNanoAt(h.at, h.name, ts[:], unix.AT_SYMLINK_NOFOLLOW))
	}
	// A null path makes utimensat work on the descriptor, which x/sys has no call for.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(h.fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errnoErr(syscall.Errno(errno))
	}
	return nil
}

// SetXattr sets an attribute.
func (h Handle) SetXattr(name string, value []byte) error {
	if h.fd >= 0 {
		return wrapAttr("set", name, unix.Fsetxattr(h.fd, name, value, 0))
	}
	return wrapAttr("set", name, unix.Lsetxattr(procPath(h.at, h.name), name, value, 0))
}

// RemoveXattr removes an attribute; one that is not there is no error.
func (h Handle) RemoveXattr(name string) error {
	var err error
	if h.fd >= 0 {
		err = unix.Fremovexattr(h.fd, name)
	} else {
		err = unix.Lremovexattr(procPath(h.at, h.name), name)
	}
	if err == errNoAttr {
		return nil
	}
	return wrapAttr("remove", name, err)
}

// Xattrs reads all attributes, ascending by name.
func (h Handle) Xattrs(sc *Scratch) ([]recipe.Xattr, error) {
	if h.fd >= 0 {
		return readXattrs(fdAttrs(h.fd), sc)
	}
	return readXattrs(pathAttrs(procPath(h.at, h.name)), sc)
}

// HasDefaultACL reports whether files made in the directory inherit an ACL.
func (d *Dir) HasDefaultACL() bool {
	n, err := unix.Fgetxattr(d.fd, "system.posix_acl_default", nil)
	return err == nil && n > 0
}

// Flags returns the settable inode flags; 0 for what cannot be opened.
func (h Handle) Flags() (uint32, error) {
	if h.fd < 0 {
		return 0, nil
	}
	return getFlags(h.fd)
}

// SetFlags sets the settable inode flags and leaves the others as they are.
func (h Handle) SetFlags(flags uint32) error {
	if h.fd < 0 {
		return ErrUnsupported
	}
	have, err := unix.IoctlGetUint32(h.fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return errnoErr(err)
	}
	want := have&^SettableFlags | flags&SettableFlags
	if want == have {
		return nil
	}
	if err := unix.IoctlSetPointerInt(h.fd, unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return errnoErr(err)
	}
	if have, err = unix.IoctlGetUint32(h.fd, unix.FS_IOC_GETFLAGS); err == nil && have&SettableFlags != want&SettableFlags {
		return errors.Join(ErrUnsupported, errors.New("the file system ignored flags "+FlagNames((have^want)&SettableFlags)))
	}
	return nil
}
