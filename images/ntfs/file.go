package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"coffer/images/volume"
)

// file is one stream of a record.
type file struct {
	attr   volume.Attr
	data   *stream // nil = no bytes
	broken error   // why it is not read
}

var _ volume.File = (*file)(nil)

// file opens a stream; "" is the content of the file itself.
func (r *record) file(stream string) (volume.Node, error) {
	f := &file{attr: r.regular()}
	a := r.named(attrData, stream)
	if a == nil {
		return f, nil // a record may have no content at all
	}
	if stream != "" {
		f.attr.Ino = r.streamIno(a)
	}
	if f.attr.Size = a.DataSize(); f.attr.Size < 0 || f.attr.Size > 1<<60 {
		return nil, corrupt("record %d has %d bytes", r.attr.Ino, uint64(f.attr.Size))
	}
	if uint64(*a.Flags())&attrEncrypted != 0 {
		f.broken = fmt.Errorf("record %d: an encrypted file is %w", r.attr.Ino, volume.ErrUnsupported)
		return f, nil
	}
	data, err := r.stream(attrData, stream)
	if err != nil {
		return nil, err
	}
	f.data = data
	return f, nil
}

// regular returns the attributes of a file.
func (r *record) regular() volume.Attr {
	a := r.attr
	a.Mode = volume.ModeRegular | 0o444
	return a
}

// Attr implements volume.Node.
func (f *file) Attr() volume.Attr { return f.attr }

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (_ int, err error) {
	defer guard(&err)
	if f.broken != nil {
		return 0, f.broken
	}
	if f.data == nil {
		return 0, io.EOF
	}
	return f.data.ReadAt(p, off)
}

// Extents implements volume.File.
func (f *file) Extents(off, n int64, yield func(n int64, hole bool) bool) (err error) {
	defer guard(&err)
	if f.broken != nil {
		return f.broken
	}
	if off < 0 || n < 0 || off > f.attr.Size-n {
		return corrupt("extents of %d bytes at %d, of %d", n, off, f.attr.Size)
	}
	if f.data != nil {
		f.data.extents(off, n, yield)
	}
	return nil
}

// Tags of reparse points ([MS-FSCC] 2.1.2.1).
const (
	tagMountPoint = 0xa0000003
	tagSymlink    = 0xa000000c
)

// link is a symbolic link or junction.
type link struct {
	*record
	target string
}

var _ volume.Link = link{}

// Target implements volume.Link.
func (l link) Target() (string, error) { return l.target, nil }

// reparse tells whether a record is a link, and where it leads. Other reparse points have content that only a driver of
// Windows can give: files of that kind say so when they are read.
func (r *record) reparse() (target string, ok bool, err error) {
	a := r.named(attrReparse, "")
	if a == nil {
		return "", false, nil
	}
	b := make([]byte, min(a.DataSize(), 16<<10))
	if n, err := a.Data(r.fs.ctx).ReadAt(b, 0); n < len(b) || n < 8 {
		return "", false, corrupt("record %d: reparse point: %w", r.attr.Ino, errors.Join(err, io.ErrUnexpectedEOF))
	}
	tag, paths := binary.LittleEndian.Uint32(b), 8+8
	switch tag {
	case tagSymlink:
		paths += 4 // flags
	case tagMountPoint:
	default:
		if r.entry.Flags().IsSet("DIRECTORY") {
			return "", false, nil
		}
		return "", false, fmt.Errorf("record %d: a file behind reparse tag %#x is %w", r.attr.Ino, tag, volume.ErrUnsupported)
	}
	if len(b) < paths {
		return "", false, corrupt("record %d: reparse point", r.attr.Ino)
	}
	le := binary.LittleEndian
	for _, at := range []int{12, 8} { // the name to print, else the one to use
		off, n := paths+int(le.Uint16(b[at:])), int(le.Uint16(b[at+2:]))
		if off+n > len(b) {
			return "", false, corrupt("record %d: reparse point", r.attr.Ino)
		}
		if n > 0 {
			return fromWindows(b[off : off+n]), true, nil
		}
	}
	return "", false, corrupt("record %d: a link to nowhere", r.attr.Ino)
}

// fromWindows turns a path in UTF-16 into one with slashes.
func fromWindows(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[i*2:])
	}
	return strings.ReplaceAll(strings.TrimPrefix(string(utf16.Decode(u)), `\??\`), `\`, "/")
}
