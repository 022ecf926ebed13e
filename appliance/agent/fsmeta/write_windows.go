package fsmeta

import (
	"os"
	"time"

	"coffer/dedup/recipe"
)

// Mkdir makes the directory name in d.
func (d *Dir) Mkdir(name string) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	return os.Mkdir(p, 0o700)
}

// Create makes the regular file name in d, which must not exist, and opens it for writing and reading.
func (d *Dir) Create(name string, perm uint32) (File, error) {
	p, err := d.at(name)
	if err != nil {
		return File{}, err
	}
	// A read-only file could not be given its metadata.
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, os.FileMode(perm|0o200))
	return File{f}, err
}

// Symlink makes a symlink.
func (d *Dir) Symlink(target, name string) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	return os.Symlink(target, p)
}

// Link makes name in d another name of oldName in from.
func (d *Dir) Link(from *Dir, oldName, name string) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	old, err := from.at(oldName)
	if err != nil {
		return err
	}
	return os.Link(old, p)
}

// Mknod refuses.
func (d *Dir) Mknod(string, uint32, uint64) error { return ErrUnsupported }

// Rename moves oldName in d over name in d.
func (d *Dir) Rename(oldName, name string) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	old, err := d.at(oldName)
	if err != nil {
		return err
	}
	return os.Rename(old, p)
}

// Remove removes a name that is no directory.
func (d *Dir) Remove(name string) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	return os.Remove(p)
}

// RemoveDir removes an empty directory.
func (d *Dir) RemoveDir(name string) error { return d.Remove(name) }

// WriteAt writes as io.WriterAt does.
func (f File) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }

// Truncate sets the file's length.
func (f File) Truncate(size int64) error { return f.f.Truncate(size) }

// Handle is what metadata is set on.
type Handle struct {
	path string
	err  error
}

// Handle of the directory itself.
func (d *Dir) Handle() Handle { return Handle{path: d.path} }

// Named is the handle of a name in d.
func (d *Dir) Named(name string) Handle {
	p, err := d.at(name)
	return Handle{path: p, err: err}
}

// Handle of an open file, which is called name in d.
func (f File) Handle(d *Dir, name string) Handle { return d.Named(name) }

// Stat looks at the file.
func (h Handle) Stat(st *Stat) error {
	if h.err != nil {
		return h.err
	}
	return lstat(h.path, st)
}

// Chown does nothing: a saveset has no owners of this system.
func (h Handle) Chown(uid, gid uint32) error { return nil }

// Chmod sets or clears the read-only attribute.
func (h Handle) Chmod(mode uint32) error {
	if h.err != nil {
		return h.err
	}
	return os.Chmod(h.path, os.FileMode(mode&0o777))
}

// SetMTime sets the modification time; the access time stays.
func (h Handle) SetMTime(t recipe.Time) error {
	if h.err != nil {
		return h.err
	}
	return os.Chtimes(h.path, time.Time{}, time.Unix(t.Sec, int64(t.Nsec)))
}

// SetXattr refuses.
func (h Handle) SetXattr(string, []byte) error { return ErrUnsupported }

// RemoveXattr does nothing: there are none.
func (h Handle) RemoveXattr(string) error { return nil }

// Xattrs returns none.
func (h Handle) Xattrs(*Scratch) ([]recipe.Xattr, error) { return nil, nil }

// HasDefaultACL is false: ACLs are not kept on this system.
func (d *Dir) HasDefaultACL() bool { return false }

// Flags returns 0.
func (h Handle) Flags() (uint32, error) { return 0, nil }

// SetFlags refuses any flag.
func (h Handle) SetFlags(flags uint32) error {
	if flags == 0 {
		return nil
	}
	return ErrUnsupported
}
