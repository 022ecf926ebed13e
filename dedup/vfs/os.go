package vfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

const (
	fileMode = 0o600
	dirMode  = 0o700
)

// OS returns the operating system's file system.
func OS() FS { return osFS{} }

type osFS struct{}

var _ FS = osFS{}

// osFile adds Size to os.File; the methods that differ per system are in os_linux.go and os_other.go.
type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, fileMode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Create(name string) (File, error)        { return open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }
func (osFS) Open(name string) (File, error)          { return open(name, os.O_RDONLY) }
func (osFS) OpenReadWrite(name string) (File, error) { return open(name, os.O_RDWR) }
func (osFS) Rename(oldname, newname string) error    { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error                { return os.Remove(name) }
func (osFS) Mkdir(name string) error                 { return os.Mkdir(name, dirMode) }
func (osFS) MkdirAll(dir string) error               { return os.MkdirAll(dir, dirMode) }
func (osFS) Stat(name string) (fs.FileInfo, error)   { return os.Stat(name) }

func (osFS) List(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (osFS) RenameNew(oldname, newname string) error { return renameNew(oldname, newname) }

// linkNew is RenameNew where the system has no such call: a hard link fails when its name is taken, too. It is atomic
// for readers; a crash between its two steps leaves both names.
func linkNew(oldname, newname string) error {
	if err := os.Link(oldname, newname); err != nil {
		return err
	}
	return os.Remove(oldname)
}

// checkedRename is RenameNew where the file system has no hard links either: it holds against other users of this
// package's names only as long as there is one writer, which the store's lock sees to.
func checkedRename(oldname, newname string) error {
	if _, err := os.Lstat(newname); err == nil {
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: fs.ErrExist}
	}
	return os.Rename(oldname, newname)
}

func (osFS) Free(dir string) (int64, error) { return free(filepath.Clean(dir)) }
