package images

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// File is an image's file, or a block device, that is open for reading.
type File struct {
	f    *os.File
	size int64
}

var (
	_ Source = (*File)(nil)
	_ Mapper = (*File)(nil)
)

// OpenFile opens a file or block device. Its size is what it is now.
func OpenFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	i, err := NewFile(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

// NewFile takes over an open file; its offset is moved.
func NewFile(f *os.File) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeCharDevice != 0 || !st.Mode().IsRegular() && st.Mode()&os.ModeDevice == 0 {
		return nil, fmt.Errorf("open image %s: neither a file nor a block device", f.Name())
	}
	size, err := f.Seek(0, io.SeekEnd) // a block device has no size in its status
	if err != nil {
		return nil, err
	}
	return &File{f, size}, nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Size implements Source.
func (f *File) Size() int64 { return f.size }

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// BackingBeside returns an Options.Backing that opens backing files by their names, relative ones from the directory of the
// image that names them. Only for images that whoever wrote them may have any file of this machine read for. Without a format
// in the image, a backing file's name says it.
func BackingBeside(image string) func(name string, named Format) (Source, Format, error) {
	dir := filepath.Dir(image)
	return func(name string, named Format) (Source, Format, error) {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		f, err := OpenFile(path)
		if err != nil {
			return nil, "", err
		}
		dir = filepath.Dir(path)
		if named == "" {
			named = FormatOf(path)
		}
		return f, named, nil
	}
}
