//go:build linux || darwin || freebsd

package fsmeta

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

// Dir is an open directory. Its methods may be called from many goroutines; Close comes last.
type Dir struct {
	fd int
}

// File is an open regular file. It is a value: copies are the same file. Methods may not run beside each other except
// ReadAt and WriteAt.
type File struct {
	fd int
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW | oNoATime

// OpenRoot opens "/".
func OpenRoot() (*Dir, error) { return open(unix.AT_FDCWD, "/", dirFlags) }

// OpenPath opens a directory by a path that whoever gave the order named: symlinks in it are followed.
func OpenPath(path string) (*Dir, error) {
	return open(unix.AT_FDCWD, path, dirFlags&^unix.O_NOFOLLOW)
}

func open(at int, name string, flags int) (*Dir, error) {
	fd, err := openat(at, name, flags, 0)
	if err != nil {
		return nil, errnoErr(err)
	}
	return &Dir{fd: fd}, nil
}

// openat retries where a signal interrupts and where O_NOATIME is not ours to ask for.
func openat(at int, name string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags, perm)
		switch {
		case err == unix.EINTR:
		case err == unix.EPERM && oNoATime != 0 && flags&oNoATime != 0:
			flags &^= oNoATime
		default:
			return fd, err
		}
	}
}

// OpenDir opens the directory name in d. A symlink is not followed: ErrNotDir.
func (d *Dir) OpenDir(name string) (*Dir, error) { return open(d.fd, name, dirFlags) }

// Close closes the directory.
func (d *Dir) Close() error {
	fd := d.fd
	d.fd = -1
	return unix.Close(fd)
}

// Lstat looks at name in d, symlinks not followed.
func (d *Dir) Lstat(name string, st *Stat) error {
	var raw unix.Stat_t
	for {
		err := unix.Fstatat(d.fd, name, &raw, unix.AT_SYMLINK_NOFOLLOW|atNoAutomount)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return errnoErr(err)
		}
		st.fill(&raw)
		return nil
	}
}

// Stat looks at the directory itself.
func (d *Dir) Stat(st *Stat) error { return fstat(d.fd, st) }

func fstat(fd int, st *Stat) error {
	var raw unix.Stat_t
	for {
		err := unix.Fstat(fd, &raw)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return errnoErr(err)
		}
		st.fill(&raw)
		return nil
	}
}

// Readlink returns the target of the symlink name in d.
func (d *Dir) Readlink(name string) (string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(d.fd, name, buf)
		if err != nil {
			return "", errnoErr(err)
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// OpenFile opens the regular file name in d for reading. It follows no symlink (ErrLink) and never waits, as opening a
// fifo would; what it is must be asked of File.Stat.
func (d *Dir) OpenFile(name string) (File, error) {
	fd, err := openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|oNoATime, 0)
	if err != nil {
		return File{-1}, errnoErr(err)
	}
	return File{fd}, nil
}

// Close closes the file.
func (f File) Close() error { return unix.Close(f.fd) }

// Stat looks at the file.
func (f File) Stat(st *Stat) error { return fstat(f.fd, st) }

// ReadAt reads as io.ReaderAt does.
func (f File) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; ; {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
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
			return done, io.EOF
		}
	}
}

// ReadOnce reads once from off: fewer bytes than p holds mean, on a regular file, that its end was met.
func (f File) ReadOnce(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(f.fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, errnoErr(err)
		}
		return n, nil
	}
}

// NextData returns the next part of the file, from off on, that holds data; io.EOF when only a hole follows. A file
// system that does not tell answers that all is data. Size is the file's.
func (f File) NextData(off, size int64) (start, end int64, err error) {
	if off >= size {
		return 0, 0, io.EOF
	}
	start, err = unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return 0, 0, io.EOF
	case err == unix.EINVAL || err == unix.EOPNOTSUPP || err == unix.ENOTTY:
		return off, size, nil
	case err != nil:
		return 0, 0, errnoErr(err)
	}
	end, err = unix.Seek(f.fd, start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, errnoErr(err)
	}
	if start >= size {
		return 0, 0, io.EOF
	}
	return start, min(end, size), nil
}

// errnoErr gives the errors that callers ask for a common name; others stay as they are.
func errnoErr(err error) error {
	if err == nil {
		return nil
	}
	if err == errIsLink {
		return fmt.Errorf("%w: %w", ErrLink, err)
	}
	switch err {
	case unix.ENOTDIR:
		return fmt.Errorf("%w: %w", ErrNotDir, err)
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Gone reports whether the error says that the file is not there (any more).
func Gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE)
}

// splitNames takes a NUL-separated list apart.
func splitNames(list []byte) []string {
	if len(list) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
}

// linuxDev encodes a device number as Linux' makedev does.
func linuxDev(major, minor uint32) uint64 {
	return uint64(major&0xfff)<<8 | uint64(major&^0xfff)<<32 | uint64(minor&0xff) | uint64(minor&^0xff)<<12
}

// deviceNumbers is the other way round.
func deviceNumbers(dev uint64) (major, minor uint32) {
	return uint32(dev>>8)&0xfff | uint32(dev>>32)&^0xfff, uint32(dev)&0xff | uint32(dev>>12)&^0xff
}

func isDevice(mode uint32) bool {
	t := mode & recipe.ModeType
	return t == recipe.ModeBlock || t == recipe.ModeChar
}
