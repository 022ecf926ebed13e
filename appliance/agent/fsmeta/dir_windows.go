package fsmeta

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"

	"coffer/dedup/recipe"
)

// Dir is a directory. Windows has no calls that take a directory's handle and a name, so that it is a path here; the
// root directory, which holds the drives, is the empty one.
type Dir struct {
	path string // with the prefix that lifts the limit of 260 characters; "" for the root
}

// File is an open regular file.
type File struct {
	f *os.File
}

const longPrefix = `\\?\`

// OpenRoot returns the directory of the drives.
func OpenRoot() (*Dir, error) { return &Dir{}, nil }

// OpenPath opens a directory by its path in a saveset: /C/Users.
func OpenPath(path string) (*Dir, error) {
	d := &Dir{path: nativePath(path)}
	return d, d.check()
}

// check makes sure that d is a directory.
func (d *Dir) check() error {
	if d.path == "" {
		return nil
	}
	info, err := os.Lstat(d.path)
	if err == nil && !info.IsDir() {
		err = ErrNotDir
	}
	return err
}

// SavesetPath turns C:\Users into /C/Users; other paths only get forward slashes.
func SavesetPath(native string) string {
	p := strings.ReplaceAll(strings.TrimPrefix(native, longPrefix), `\`, "/")
	if len(p) >= 2 && p[1] == ':' {
		p = "/" + strings.ToUpper(p[:1]) + p[2:]
	}
	return p
}

func nativePath(p string) string {
	p = strings.Trim(p, "/")
	if p == "" {
		return ""
	}
	drive, rest, _ := strings.Cut(p, "/")
	return longPrefix + strings.TrimSuffix(drive, ":") + `:\` + strings.ReplaceAll(rest, "/", `\`)
}

// MakePath makes the directory with all that lead to it.
func MakePath(path string) (*Dir, error) {
	d := &Dir{path: nativePath(path)}
	return d, os.MkdirAll(d.path, 0o755)
}

// at is the path of a name. A name that Windows would read as more than a name is refused.
func (d *Dir) at(name string) (string, error) {
	if d.path == "" {
		return longPrefix + strings.TrimSuffix(name, ":") + `:\`, nil
	}
	if strings.ContainsAny(name, `\:*?"<>|`) || strings.TrimRight(name, ". ") != name {
		return "", fmt.Errorf("%q is no name on Windows: %w", name, ErrUnsupported)
	}
	return filepath.Join(d.path, name), nil
}

// OpenDir opens the directory name in d. A symlink or junction is not followed: ErrNotDir.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	p, err := d.at(name)
	if err != nil {
		return nil, err
	}
	sub := &Dir{path: p}
	return sub, sub.check()
}

// Close does nothing.
func (d *Dir) Close() error { return nil }

// Names appends all names of the directory, in no order.
func (d *Dir) Names(_ *Scratch, names []Named) ([]Named, error) {
	if d.path == "" {
		return drives(names)
	}
	f, err := os.Open(d.path)
	if err != nil {
		return names, err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	for _, name := range list {
		names = append(names, Named{Name: name})
	}
	return names, err
}

func drives(names []Named) ([]Named, error) {
	mask, err := windows.GetLogicalDrives()
	for i := range 26 {
		if mask&(1<<i) != 0 {
			names = append(names, Named{Name: string(rune('A' + i))})
		}
	}
	return names, err
}

// Lstat looks at name in d, symlinks not followed.
func (d *Dir) Lstat(name string, st *Stat) error {
	p, err := d.at(name)
	if err != nil {
		return err
	}
	return lstat(p, st)
}

// Stat looks at the directory itself.
func (d *Dir) Stat(st *Stat) error {
	if d.path == "" {
		*st = Stat{Mode: recipe.ModeDir | 0o755, Nlink: 1}
		return nil
	}
	return lstat(d.path, st)
}

func lstat(p string, st *Stat) error {
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	st.fill(info)
	return nil
}

func (s *Stat) fill(info fs.FileInfo) {
	t := recipe.Time{Sec: info.ModTime().Unix(), Nsec: uint32(info.ModTime().Nanosecond())}
	*s = Stat{Mode: uint32(info.Mode().Perm()), Nlink: 1, MTime: t, CTime: t}
	switch mode := info.Mode(); {
	case mode.IsDir():
		s.Mode |= recipe.ModeDir
	case mode&(fs.ModeSymlink|fs.ModeIrregular) != 0:
		s.Mode |= recipe.ModeSymlink
	default:
		s.Mode |= recipe.ModeRegular
		s.Size = uint64(info.Size())
		s.Allocated = s.Size
	}
	// NTFS keeps the time of a change of attributes, but os does not show it; the creation time tells a file that
	// replaced another.
	if raw, ok := info.Sys().(*syscall.Win32FileAttributeData); ok {
		s.Ino = uint64(raw.CreationTime.Nanoseconds())
	}
}

// Readlink returns the target of the symlink name in d.
func (d *Dir) Readlink(name string) (string, error) {
	p, err := d.at(name)
	if err != nil {
		return "", err
	}
	return os.Readlink(p)
}

// OpenFile opens the regular file name in d for reading.
func (d *Dir) OpenFile(name string) (File, error) {
	p, err := d.at(name)
	if err != nil {
		return File{}, err
	}
	f, err := os.Open(p)
	return File{f}, err
}

// Close closes the file.
func (f File) Close() error { return f.f.Close() }

// Stat looks at the file.
func (f File) Stat(st *Stat) error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	st.fill(info)
	return nil
}

// ReadAt reads as io.ReaderAt does.
func (f File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// ReadOnce reads from off; fewer bytes than p holds mean that the file's end was met.
func (f File) ReadOnce(p []byte, off int64) (int, error) {
	n, err := f.f.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// NextData answers that all of the file is data.
func (f File) NextData(off, size int64) (start, end int64, err error) {
	if off >= size {
		return 0, 0, io.EOF
	}
	return off, size, nil
}

// Xattrs returns none: alternate data streams and ACLs are not kept.
func (d *Dir) Xattrs(*Scratch) ([]recipe.Xattr, error) { return nil, nil }

// Xattrs returns none: alternate data streams and ACLs are not kept.
func (f File) Xattrs(*Scratch) ([]recipe.Xattr, error) { return nil, nil }

// LXattrs returns none.
func (d *Dir) LXattrs(string, *Scratch) ([]recipe.Xattr, error) { return nil, nil }

// Flags returns 0.
func (d *Dir) Flags() (uint32, error) { return 0, nil }

// Flags returns 0.
func (f File) Flags() (uint32, error) { return 0, nil }

// Mount tells nothing.
func (d *Dir) Mount() (Mount, error) { return Mount{Type: "windows"}, nil }

// Gone reports whether the error says that the file is not there (any more).
func Gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
