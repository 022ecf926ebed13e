package images

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Format names an image format, as qemu-img does.
type Format string

// The formats. Open reads Raw and Qcow2; the others are for package qemuimg.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHD   Format = "vpc"
	VHDX  Format = "vhdx"
)

// FormatOf returns the format that a file's name stands for; Raw where it stands for none.
func FormatOf(name string) Format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".qcow2", ".qcow":
		return Qcow2
	case ".vmdk":
		return VMDK
	case ".vhd", ".vpc":
		return VHD
	case ".vhdx":
		return VHDX
	}
	return Raw
}

// Source is where the bytes of an image lie. ReadAt may be called from many goroutines.
type Source interface {
	io.ReaderAt
	Size() int64 // bytes; does not change
}

// Mapper is a Source or Disk that knows its holes.
type Mapper interface {
	// Extents yields the extents of a range that lies inside Size, in order and without gaps, until yield returns false.
	// A hole reads as zeros; data may do so, too.
	Extents(off, n int64, yield func(n int64, hole bool) bool) error
}

// Disk is what a machine sees of an image. Its methods may be called from many goroutines. ReadAt fills p up to the end of the
// disk, where it returns io.EOF, as io.ReaderAt says.
type Disk interface {
	Source
	Mapper
	// Format is that of the image, of the topmost where there is a chain.
	Format() Format
	// Close closes what Options.Backing has opened, not the Source given to Open.
	Close() error
}

// ErrUnsupported is wrapped by errors about images that are whole, but not readable here; qemu-img may convert them.
var ErrUnsupported = errors.New("not supported")

// ErrMalformed is wrapped by errors about images that break the rules of their format.
var ErrMalformed = errors.New("malformed image")

// Options of Open.
type Options struct {
	Format Format // empty means Raw
	// Backing opens the backing file that an image names, and tells what its format is; named is the format that the image
	// says, or empty. A Source that is an io.Closer is closed with the disk. nil = no backing file is opened, and an image
	// that has one is refused.
	Backing func(name string, named Format) (Source, Format, error)
}

// maxChain is how many images may lie behind each other: a chain that names itself ends there.
const maxChain = 64

// Open reads the head of an image. An error wraps ErrUnsupported, ErrMalformed, or is the Source's or Backing's.
func Open(src Source, o Options) (Disk, error) { return open(src, o, 0) }

func open(src Source, o Options, depth int) (Disk, error) {
	switch o.Format {
	case Raw, "":
		return raw{src}, nil
	case Qcow2:
		if depth == maxChain {
			return nil, fmt.Errorf("%w: more than %d backing files", ErrMalformed, maxChain)
		}
		return openQcow2(src, o, depth)
	}
	return nil, fmt.Errorf("images of format %q are %w: convert them with qemu-img", o.Format, ErrUnsupported)
}

// raw is a disk without a format.
type raw struct{ Source }

var _ Disk = raw{}

func (raw) Format() Format { return Raw }
func (raw) Close() error   { return nil }

// Extents implements Mapper. A Source that knows no holes is all data.
func (r raw) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	if m, ok := r.Source.(Mapper); ok {
		return m.Extents(off, n, yield)
	}
	if n > 0 {
		yield(n, false)
	}
	return nil
}
