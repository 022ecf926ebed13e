package libvirt

import (
	"context"
	"io"
	"io/fs"
	"os"
)

// Files are the files of the host on which libvirtd runs. Paths are absolute. Errors wrap fs.ErrNotExist and
// fs.ErrPermission where these are the cause. Methods may be called from many goroutines.
type Files interface {
	// Open opens a file or block device for reading.
	Open(ctx context.Context, path string) (File, error)
	// Stat follows symlinks.
	Stat(ctx context.Context, path string) (fs.FileInfo, error)
	// ReadDir lists a directory, without "." and "..", in no order.
	ReadDir(ctx context.Context, path string) ([]fs.FileInfo, error)
	// Remove removes a file or socket, or an empty directory.
	Remove(ctx context.Context, path string) error
}

// File is an open file of the host. ReadAt may be called from many goroutines.
type File interface {
	io.ReaderAt
	Size() int64 // when it was opened
	Close() error
}

// Local are the files of this machine.
type Local struct{}

var _ Files = Local{}

// Open implements Files.
func (Local) Open(_ context.Context, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // Stat knows no size of a block device
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return localFile{f, size}, nil
}

type localFile struct {
	*os.File
	size int64
}

func (f localFile) Size() int64 { return f.size }

// Stat implements Files.
func (Local) Stat(_ context.Context, path string) (fs.FileInfo, error) { return os.Stat(path) }

// ReadDir implements Files.
func (Local) ReadDir(_ context.Context, path string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	out := make([]fs.FileInfo, 0, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it has just gone
			out = append(out, info)
		}
	}
	return out, nil
}

// Remove implements Files.
func (Local) Remove(_ context.Context, path string) error { return os.Remove(path) }

// maxSmall bounds what ReadFile takes into memory.
const maxSmall = 64 << 20

// ReadFile reads a whole small file (up to 64 MiB): variables of a firmware, the state of a TPM.
func ReadFile(ctx context.Context, files Files, path string) ([]byte, error) {
	f, err := files.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > maxSmall {
		return nil, failf(KindInvalid, "read "+path, "it has %d bytes; %d are the most", f.Size(), maxSmall)
	}
	return io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
}
