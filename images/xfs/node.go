package xfs

import (
	"fmt"
	"io"
	"io/fs"
	"strings"

	"coffer/images/volume"
)

const (
	maxLink   = 1024    // bytes of a symbolic link's target
	dirData   = 1 << 35 // bytes of a directory's file, before its index begins
	unusedTag = 0xffff
)

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
	if off < 0 {
		return 0, corrupt("offset %d", off)
	}
	if off >= f.attr.Size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.attr.Size-off {
		p, eof = p[:f.attr.Size-off], io.EOF
	}
	if err := f.readAt(p, off); err != nil {
		return 0, err
	}
	return len(p), eof
}

// Extents implements volume.File.
func (f file) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	if off < 0 || n < 0 || off > f.attr.Size-n {
		return corrupt("extents of %d bytes at %d, of %d", n, off, f.attr.Size)
	}
	for n > 0 {
		x, err := f.find(uint64(off / f.fs.blockSize))
		if err != nil {
			return err
		}
		length := min(int64(min(x.n, 1<<32))*f.fs.blockSize-off%f.fs.blockSize, n)
		if !yield(length, x.hole) {
			return nil
		}
		off, n = off+length, n-length
	}
	return nil
}

// Target implements volume.Link. In version 5 each block of a target has a head.
func (l link) Target() (string, error) {
	size := l.attr.Size
	switch {
	case size > maxLink:
		return "", corrupt("inode %d: a link of %d bytes", l.attr.Ino, size)
	case l.form == formLocal:
		return string(l.fork[:size]), nil
	case !l.fs.v5:
		b := make([]byte, size)
		err := l.readAt(b, 0)
		return string(b), err
	}
	const head = 56
	var target []byte
	b := make([]byte, l.fs.blockSize)
	for at := int64(0); int64(len(target)) < size; at += l.fs.blockSize {
		if err := l.readAt(b, at); err != nil {
			return "", err
		}
		n := int64(be.Uint32(b[8:]))
		if string(b[:4]) != "XSLM" || n < 1 || n > min(l.fs.blockSize-head, size-int64(len(target))) || be.Uint32(b[4:]) != uint32(len(target)) {
			return "", corrupt("inode %d: a link's block", l.attr.Ino)
		}
		target = append(target, b[head:head+n]...)
	}
	return string(target), nil
}

// Lookup implements volume.Dir.
func (d dir) Lookup(name string) (volume.Node, error) {
	ino, found := uint64(0), false
	err := d.List(func(e volume.Entry) bool {
		if e.Name == name {
			ino, found = e.Ino, true
		}
		return !found
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return d.fs.node(ino)
}

// Open implements volume.Dir.
func (d dir) Open(e volume.Entry) (volume.Node, error) { return d.fs.node(e.Ino) }

// List implements volume.Dir: it goes through the blocks of entries, whatever index is behind them.
func (d dir) List(yield func(volume.Entry) bool) error {
	if d.form == formLocal {
		return d.short(yield)
	}
	b := make([]byte, d.fs.dirSize)
	for off := int64(0); off < min(d.attr.Size, dirData); {
		x, err := d.find(uint64(off / d.fs.blockSize))
		if err != nil {
			return err
		}
		if x.hole {
			skip := int64(min(x.n, 1<<32)) * d.fs.blockSize
			off += max(skip/d.fs.dirSize, 1) * d.fs.dirSize
			continue
		}
		if err := d.readAt(b, off); err != nil {
			return err
		}
		if more, err := d.block(b, yield); err != nil || !more {
			return err
		}
		off += d.fs.dirSize
	}
	return nil
}

// short lists a directory in its inode: a count, how many numbers need eight bytes, the parent, and entries.
func (d dir) short(yield func(volume.Entry) bool) error {
	b := d.fork[:min(d.attr.Size, int64(len(d.fork)))]
	if len(b) < 6 {
		return corrupt("inode %d: a directory of %d bytes", d.attr.Ino, len(b))
	}
	count, wide := int(b[0]), b[1] > 0
	inoLen := 4
	if wide {
		inoLen, count = 8, max(count, int(b[1]))
	}
	b = b[2:]
	if len(b) < inoLen {
		return corrupt("inode %d: directory entries", d.attr.Ino)
	}
	b = b[inoLen:]
	for range count {
		if len(b) < 3 {
			return corrupt("inode %d: directory entries", d.attr.Ino)
		}
		name := int(b[0])
		at := 3 + name
		kind := uint32(0)
		if d.fs.ftype {
			at++
		}
		if name == 0 || at+inoLen > len(b) {
			return corrupt("inode %d: directory entries", d.attr.Ino)
		}
		if d.fs.ftype {
			kind = typeOf(b[at-1])
		}
		ino := uint64(be.Uint32(b[at:]))
		if wide {
			ino = be.Uint64(b[at:])
		}
		if s := string(b[3 : 3+name]); nameable(s) && !yield(volume.Entry{Name: s, Type: kind, Ino: ino}) {
			return nil
		}
		b = b[at+inoLen:]
	}
	return nil
}

// block yields the entries of a block.
func (d dir) block(b []byte, yield func(volume.Entry) bool) (more bool, err error) {
	head, end := 16, len(b)
	single := false
	switch magic := string(b[:4]); {
	case magic == "XD2B" && !d.fs.v5, magic == "XDB3" && d.fs.v5:
		single = true
	case magic == "XD2D" && !d.fs.v5, magic == "XDD3" && d.fs.v5:
	default:
		return false, corrupt("inode %d: no block of a directory", d.attr.Ino)
	}
	if d.fs.v5 {
		head = 64
	}
	if single { // an index lies at its end
		leaves := int64(be.Uint32(b[len(b)-8:]))
		if leaves*8+8 > int64(len(b)-head) {
			return false, corrupt("inode %d: an index of %d entries", d.attr.Ino, leaves)
		}
		end -= 8 + int(leaves)*8
	}
	for b = b[head:end]; len(b) >= 8; {
		if be.Uint16(b) == unusedTag {
			n := int(be.Uint16(b[2:]))
			if n < 8 || n > len(b) || n%8 != 0 {
				return false, corrupt("inode %d: %d bytes that are not used", d.attr.Ino, n)
			}
			b = b[n:]
			continue
		}
		if len(b) < 16 {
			return false, corrupt("inode %d: directory entries", d.attr.Ino)
		}
		ino, name := be.Uint64(b), int(b[8])
		n, kind := 9+name+2, uint32(0)
		if d.fs.ftype {
			n++
		}
		if n = (n + 7) &^ 7; name == 0 || n > len(b) {
			return false, corrupt("inode %d: directory entries", d.attr.Ino)
		}
		if d.fs.ftype {
			kind = typeOf(b[9+name])
		}
		if s := string(b[9 : 9+name]); nameable(s) && !yield(volume.Entry{Name: s, Type: kind, Ino: ino}) {
			return false, nil
		}
		b = b[n:]
	}
	return true, nil
}

// nameable reports whether a name is one that a file can have, and not of the directory itself or its parent.
func nameable(name string) bool {
	return name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

func typeOf(b byte) uint32 {
	types := [...]uint32{0, volume.ModeRegular, volume.ModeDir, volume.ModeChar, volume.ModeBlock, volume.ModeFifo, volume.ModeSocket, volume.ModeSymlink}
	if int(b) < len(types) {
		return types[b]
	}
	return 0
}
