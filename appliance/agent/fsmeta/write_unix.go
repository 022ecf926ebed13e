//go:build linux || darwin || freebsd

package fsmeta

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Mkdir makes the directory name in d, for its owner only.
func (d *Dir) Mkdir(name string) error { return errnoErr(unix.Mkdirat(d.fd, name, 0o700)) }

// Create makes the regular file name in d, which must not exist, and opens it for writing and reading.
func (d *Dir) Create(name string, perm uint32) (File, error) {
	fd, err := openat(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm&0o777)
	if err != nil {
		return File{-1}, errnoErr(err)
	}
	return File{fd}, nil
}

// Symlink makes a symlink.
func (d *Dir) Symlink(target, name string) error {
	return errnoErr(unix.Symlinkat(target, d.fd, name))
}

// Link makes name in d another name of oldName in from; symlinks are not followed.
func (d *Dir) Link(from *Dir, oldName, name string) error {
	return errnoErr(unix.Linkat(from.fd, oldName, d.fd, name, 0))
}

// Rename moves oldName in d over name in d.
func (d *Dir) Rename(oldName, name string) error {
	return errnoErr(unix.Renameat(d.fd, oldName, d.fd, name))
}

// Remove removes a name that is no directory.
func (d *Dir) Remove(name string) error { return errnoErr(unix.Unlinkat(d.fd, name, 0)) }

// RemoveDir removes an empty directory.
func (d *Dir) RemoveDir(name string) error {
	return errnoErr(unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR))
}

// WriteAt writes as io.WriterAt does.
func (f File) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; ; {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, errnoErr(err)
		}
		done += n
		if done == len(p) {
			return done, nil
		}
		if n == 0 {
			return done, io.ErrShortWrite
		}
	}
}

// Truncate sets the file's length; what it grows by is a hole.
func (f File) Truncate(size int64) error { return errnoErr(unix.Ftruncate(f.fd, size)) }

// Handle is what metadata is set on: an open file or directory, or a name that cannot be opened.
type Handle struct {
	fd   int // of the file itself, or -1
	at   int // of its directory
	name string
}

// Handle of the directory itself. In its parent the directory is called name.
func (d *Dir) Handle() Handle { return Handle{fd: d.fd, at: -1} }

// Named is the handle of a name in d; symlinks are not followed.
func (d *Dir) Named(name string) Handle { return Handle{fd: -1, at: d.fd, name: name} }

// Handle of an open file, which is called name in d.
func (f File) Handle(d *Dir, name string) Handle { return Handle{fd: f.fd, at: d.fd, name: name} }

// Chown sets the owner.
func (h Handle) Chown(uid, gid uint32) error {
	if h.fd >= 0 {
		return errnoErr(unix.Fchown(h.fd, int(uid), int(gid)))
	}
	return errnoErr(unix.Fchownat(h.at, h.name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW))
}

// Stat looks at the file.
func (h Handle) Stat(st *Stat) error {
	if h.fd >= 0 {
		return fstat(h.fd, st)
	}
	return (&Dir{fd: h.at}).Lstat(h.name, st)
}

const permBits = 0o7777

// wrapAttr names the attribute in errors.
func wrapAttr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s extended attribute %q: %w", op, name, errnoErr(err))
}
