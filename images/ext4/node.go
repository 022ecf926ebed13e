package ext4

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"

	"coffer/images/volume"
)

// maxDir is how large a directory may be; a million names of 255 bytes are a quarter of it.
const maxDir = 1 << 30

// maxLink is how long the target of a symbolic link may be.
const maxLink = 4096

type (
	dir  struct{ *inode }
	file struct{ *inode }
	link struct{ *inode }
)

var (
	_ volume.Dir  = dir{}
	_ volume.File = file{}
	_ volume.Link = link{}
)

// ReadAt implements io.ReaderAt.
func (f file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.readable(); err != nil {
		return 0, err
	}
	read := f.readAt
	if f.flag&flagInline != 0 {
		b, err := f.inline()
		if err != nil {
			return 0, err
		}
		read = func(p []byte, off int64) error {
			clear(p[copy(p, b[min(off, int64(len(b))):]):])
			return nil
		}
	}
	return readSized(p, off, f.attr.Size, read)
}

// Extents implements volume.File.
func (f file) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	if err := f.readable(); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > f.attr.Size-n {
		return corrupt("extents of %d bytes at %d, of %d", n, off, f.attr.Size)
	}
	if f.flag&flagInline != 0 {
		if n > 0 {
			yield(n, false)
		}
		return nil
	}
	for n > 0 {
		x, err := f.find(uint64(off / f.fs.blockSize))
		if err != nil {
			return err
		}
		length := min(int64(x.n)*f.fs.blockSize-off%f.fs.blockSize, n)
		if !yield(length, x.hole) {
			return nil
		}
		off, n = off+length, n-length
	}
	return nil
}

// Target implements volume.Link.
func (l link) Target() (string, error) {
	if err := l.readable(); err != nil {
		return "", err
	}
	switch {
	case l.attr.Size > maxLink:
		return "", corrupt("inode %d: a link of %d bytes", l.attr.Ino, l.attr.Size)
	case l.flag&flagInline != 0:
		b, err := l.inline()
		if err == nil && int64(len(b)) < l.attr.Size {
			err = corrupt("inode %d: %d bytes of a link of %d", l.attr.Ino, len(b), l.attr.Size)
		}
		return string(b), err
	case l.flag&flagExtents == 0 && l.attr.Size < inlineLen:
		return string(l.block()[:l.attr.Size]), nil
	}
	b := make([]byte, l.attr.Size)
	if err := l.readAt(b, 0); err != nil {
		return "", err
	}
	return string(b), nil
}

// Lookup implements volume.Dir.
func (d dir) Lookup(name string) (volume.Node, error) {
	ino := uint64(0)
	err := d.List(func(e volume.Entry) bool {
		if e.Name == name {
			ino = e.Ino
		}
		return ino == 0
	})
	if err != nil {
		return nil, err
	}
	if ino == 0 {
		return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return d.fs.node(uint32(ino))
}

// Open implements volume.Dir.
func (d dir) Open(e volume.Entry) (volume.Node, error) { return d.fs.node(uint32(e.Ino)) }

// List implements volume.Dir. A hashed directory is read like any other: its index lies in entries that are not in use.
func (d dir) List(yield func(volume.Entry) bool) error {
	if err := d.readable(); err != nil {
		return err
	}
	if d.attr.Size > maxDir {
		return corrupt("inode %d: a directory of %d bytes", d.attr.Ino, d.attr.Size)
	}
	if d.flag&flagInline != 0 {
		return d.listInline(yield)
	}
	b := make([]byte, d.fs.blockSize)
	for at := uint64(0); int64(at)*d.fs.blockSize < d.attr.Size; {
		x, err := d.find(at)
		if err != nil {
			return err
		}
		for i := range x.n {
			if int64(at+i)*d.fs.blockSize >= d.attr.Size || x.hole {
				break
			}
			if err := d.fs.readBlocks(b, x.block+i, 0); err != nil {
				return err
			}
			if more, err := d.entries(b, yield); err != nil || !more {
				return err
			}
		}
		at += x.n
	}
	return nil
}

// listInline lists a directory in its inode: its parent's number, entries, and more entries in the attribute.
func (d dir) listInline(yield func(volume.Entry) bool) error {
	if more, err := d.entries(d.block()[4:], yield); err != nil || !more {
		return err
	}
	rest, err := d.inlineAttr()
	if err != nil {
		return err
	}
	_, err = d.entries(rest, yield)
	return err
}

// entries yields the entries of a block.
func (d dir) entries(b []byte, yield func(volume.Entry) bool) (more bool, err error) {
	le := binary.LittleEndian
	for len(b) >= 8 {
		ino, size, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if size == 0xffff || size == 0 {
			size = 1 << 16 // a whole block of 64 KiB
		}
		if !d.fs.filetype {
			name |= int(b[7]) << 8
		}
		if size < 8 || size > len(b) || ino != 0 && 8+name > size {
			return false, corrupt("inode %d: directory entries", d.attr.Ino)
		}
		if e := b[8:size]; ino != 0 && nameable(string(e[:name])) {
			kind := uint32(0)
			if d.fs.filetype {
				kind = typeOf(b[7])
			}
			if !yield(volume.Entry{Name: string(e[:name]), Type: kind, Ino: uint64(ino)}) {
				return false, nil
			}
		}
		b = b[size:]
	}
	return true, nil
}

// nameable reports whether a name is one that a file can have, and not of the directory itself or its parent.
func nameable(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func typeOf(b byte) uint32 {
	types := [...]uint32{0, volume.ModeRegular, volume.ModeDir, volume.ModeChar, volume.ModeBlock, volume.ModeFifo, volume.ModeSocket, volume.ModeSymlink}
	if int(b) < len(types) {
		return types[b]
	}
	return 0
}
