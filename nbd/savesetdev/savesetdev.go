// Package savesetdev makes block devices of the files of savesets: disk images, and any other regular file.
//
// It owns the way from a path to a Device and nothing else: who holds the saveset's lease while the device is open, and the
// key of a sealed one, is the caller's. Devices are read only.
package savesetdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/nbd"
)

// Kind says why there is no device.
type Kind uint8

const (
	Other    Kind = iota // the saveset cannot be read: the cause says why
	NotFound             // there is no such path
	NoDisk               // the path is no regular file, or an empty one
)

// String returns the kind's words; unknown kinds print as hex.
func (k Kind) String() string {
	switch k {
	case Other:
		return "other"
	case NotFound:
		return "not found"
	case NoDisk:
		return "no disk"
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is the typed error of the package.
type Error struct {
	Kind Kind
	Path string
	Err  error
}

func (e *Error) Error() string {
	s := "disk " + e.Path
	if e.Kind != Other {
		s += ": " + e.Kind.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain, Other when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Other
}

// Clean returns a path in the form that exports have: parts with single slashes between them, none before or behind. It
// refuses (Kind NotFound) what cannot be a path of a saveset.
func Clean(path string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", &Error{Kind: NotFound, Path: path}
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 || strings.ContainsRune(path, 0) {
		return "", &Error{Kind: NotFound, Path: path}
	}
	return strings.Join(parts, "/"), nil
}

// Find returns the entry at a path below the root directory of a saveset. Kinds NotFound, NoDisk.
func Find(ctx context.Context, src recipe.Source, root digest.Digest, path string) (recipe.Entry, error) {
	name, err := Clean(path)
	if err != nil {
		return recipe.Entry{}, err
	}
	dir := root
	parts := strings.Split(name, "/")
	for i, part := range parts {
		e, _, err := recipe.Lookup(ctx, src, dir, part)
		switch {
		case errors.Is(err, recipe.ErrNotFound):
			return recipe.Entry{}, &Error{Kind: NotFound, Path: path}
		case err != nil:
			return recipe.Entry{}, &Error{Path: path, Err: err}
		case i == len(parts)-1 && e.IsRegular() && e.Size > 0:
			return e, nil
		case i == len(parts)-1:
			return recipe.Entry{}, &Error{Kind: NoDisk, Path: path}
		case !e.IsDir():
			return recipe.Entry{}, &Error{Kind: NotFound, Path: path}
		}
		dir = e.Content.Digest
	}
	return recipe.Entry{}, &Error{Kind: NotFound, Path: path}
}

// Disks returns the names of the disk images in the root directory of a saveset, at most limit.
func Disks(ctx context.Context, src recipe.Source, root digest.Digest, limit int) (names []string, err error) {
	it := recipe.NewDirIter(src, root)
	for len(names) < limit {
		e, _, err := it.Next(ctx)
		if err != nil {
			return names, ignoreEnd(err)
		}
		if e.IsRegular() && e.Content.Kind == recipe.ImageTree {
			names = append(names, e.Name)
		}
	}
	return names, nil
}

// Device is a file of a saveset. Methods may be called from many goroutines.
type Device struct{ file *dedup.File }

var (
	_ nbd.Device     = (*Device)(nil)
	_ nbd.Mapper     = (*Device)(nil)
	_ nbd.Lender     = (*Device)(nil)
	_ nbd.BlockSizer = (*Device)(nil)
)

// Open returns the device of the file at a path below the root directory of a saveset. Kinds NotFound, NoDisk.
func Open(ctx context.Context, src dedup.FileSource, root digest.Digest, path string) (*Device, error) {
	e, err := Find(ctx, src, root, path)
	if err != nil {
		return nil, err
	}
	return OpenEntry(src, e)
}

// OpenEntry is Open for an entry that the caller has found.
func OpenEntry(src dedup.FileSource, e recipe.Entry) (*Device, error) {
	f, err := dedup.OpenFile(src, e)
	if err != nil {
		return nil, &Error{Path: e.Name, Err: err}
	}
	return &Device{f}, nil
}

// Size implements nbd.Device.
func (d *Device) Size() int64 { return d.file.Size() }

// ReadAt implements nbd.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.file.ReadAt(ctx, p, off)
}

// Lend implements nbd.Lender.
func (d *Device) Lend(ctx context.Context, off, n int64) ([]byte, error) {
	return d.file.Lend(ctx, off, n)
}

// Extents implements nbd.Mapper. A hole reads as zeroes.
func (d *Device) Extents(ctx context.Context, off, n int64, yield func(n int64, f nbd.ExtentFlags) bool) error {
	return d.file.Extents(ctx, off, n, func(n int64, hole bool) bool {
		if hole {
			return yield(n, nbd.Hole|nbd.Zero)
		}
		return yield(n, 0)
	})
}

// BlockSizes implements nbd.BlockSizer: any request will do.
func (d *Device) BlockSizes() (minimum, preferred, maximum uint32) { return 1, 4096, 0 }

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
