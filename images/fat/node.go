package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	"coffer/images/volume"
)

// maxDir is the size of the largest directory that the format allows.
const maxDir = 65536 * 32

// Attributes of a directory entry.
const (
	attrVolume   = 0x08
	attrDir      = 0x10
	attrLongName = 0x0f
)

type dir struct {
	fs    *FS
	attr  volume.Attr
	first uint32
	root  bool
}

var _ volume.Dir = dir{}

// Attr implements volume.Node.
func (d dir) Attr() volume.Attr { return d.attr }

// content reads all of a directory, and tells where on the volume each of its entries lies.
func (d dir) content() (b []byte, place func(at int) int64, err error) {
	if d.root && d.fs.bits < 32 {
		b = make([]byte, d.fs.rootLen)
		return b, func(at int) int64 { return d.fs.rootAt + int64(at) }, d.fs.read(b, d.fs.rootAt)
	}
	runs, err := d.fs.chain(d.first, maxDir)
	if err != nil {
		return nil, nil, err
	}
	for _, x := range runs {
		at := len(b)
		b = append(b, make([]byte, int64(x.n)*d.fs.clusterLen)...)
		if err := d.fs.read(b[at:], d.fs.place(x.first)); err != nil {
			return nil, nil, err
		}
	}
	return b, func(at int) int64 {
		i := sort.Search(len(runs), func(i int) bool { return (runs[i].at+int64(runs[i].n))*d.fs.clusterLen > int64(at) })
		return d.fs.place(runs[i].first) + int64(at) - runs[i].at*d.fs.clusterLen
	}, nil
}

// each yields the entries of a directory.
func (d dir) each(yield func(name string, e []byte, ino uint64) bool) error {
	b, place, err := d.content()
	if err != nil {
		return err
	}
	var long longName
	for at := 0; at+32 <= len(b) && b[at] != 0; at += 32 {
		e := b[at : at+32]
		switch {
		case e[0] == 0xe5:
			long.reset()
		case e[11]&0x3f == attrLongName:
			long.add(e)
		case e[11]&attrVolume != 0:
			long.reset()
		default:
			name, ok := long.take(e)
			if !ok {
				name = shortName(e)
			}
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				continue
			}
			if !yield(name, e, uint64(place(at)/32)+firstIno) {
				return nil
			}
		}
	}
	return nil
}

// List implements volume.Dir.
func (d dir) List(yield func(volume.Entry) bool) error {
	return d.each(func(name string, e []byte, ino uint64) bool {
		kind := uint32(volume.ModeRegular)
		if e[11]&attrDir != 0 {
			kind = volume.ModeDir
		}
		return yield(volume.Entry{Name: name, Type: kind, Ino: ino})
	})
}

// Lookup implements volume.Dir.
func (d dir) Lookup(name string) (n volume.Node, err error) {
	err = d.each(func(got string, e []byte, ino uint64) bool {
		if got == name {
			n = d.fs.node(e, ino)
		}
		return n == nil
	})
	if err == nil && n == nil {
		err = fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return n, err
}

// Open implements volume.Dir.
func (d dir) Open(e volume.Entry) (volume.Node, error) {
	b := make([]byte, 32)
	if e.Ino < firstIno || e.Ino > 1<<40 {
		return nil, corrupt("entry %d", e.Ino)
	}
	if err := d.fs.read(b, int64(e.Ino-firstIno)*32); err != nil {
		return nil, err
	}
	return d.fs.node(b, e.Ino), nil
}

// firstIno comes after the root's number.
const firstIno = 2

// node opens a directory entry.
func (f *FS) node(e []byte, ino uint64) volume.Node {
	le := binary.LittleEndian
	first := uint32(le.Uint16(e[26:]))
	if f.bits == 32 {
		first |= uint32(le.Uint16(e[20:])) << 16
	}
	a := volume.Attr{Ino: ino, Nlink: 1, MTime: when(le.Uint16(e[24:]), le.Uint16(e[22:]))}
	if e[11]&attrDir != 0 {
		a.Mode = volume.ModeDir | 0o555
		return dir{f, a, first, first == 0}
	}
	a.Mode, a.Size = volume.ModeRegular|0o444, int64(le.Uint32(e[28:]))
	return &file{fs: f, attr: a, first: first}
}

// when is a date and a time in units of two seconds; before 1980 there is none.
func when(date, clock uint16) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&0xf), int(date&0x1f), int(clock>>11), int(clock>>5&0x3f), int(clock&0x1f)*2, 0, time.UTC)
}

// file is a regular file.
type file struct {
	fs    *FS
	attr  volume.Attr
	first uint32

	mu   sync.Mutex
	runs []run // guarded by mu; nil until somebody reads
}

var _ volume.File = (*file)(nil)

// Attr implements volume.Node.
func (f *file) Attr() volume.Attr { return f.attr }

// clusters returns where the file lies.
func (f *file) clusters() ([]run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runs != nil || f.attr.Size == 0 {
		return f.runs, nil
	}
	runs, err := f.fs.chain(f.first, f.attr.Size)
	if err != nil {
		return nil, err
	}
	if n := len(runs); n == 0 || (runs[n-1].at+int64(runs[n-1].n))*f.fs.clusterLen < f.attr.Size {
		return nil, corrupt("a file of %d bytes has too few clusters", f.attr.Size)
	}
	f.runs = runs
	return runs, nil
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, corrupt("offset %d", off)
	}
	if off >= f.attr.Size {
		return 0, io.EOF
	}
	runs, err := f.clusters()
	if err != nil {
		return 0, err
	}
	var eof error
	if int64(len(p)) > f.attr.Size-off {
		p, eof = p[:f.attr.Size-off], io.EOF
	}
	cluster := f.fs.clusterLen
	for done := 0; done < len(p); {
		at := off + int64(done)
		x := runs[sort.Search(len(runs), func(i int) bool { return (runs[i].at+int64(runs[i].n))*cluster > at })]
		skip := at - x.at*cluster
		part := p[done:][:min(int64(len(p)-done), int64(x.n)*cluster-skip)]
		if err := f.fs.read(part, f.fs.place(x.first)+skip); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), eof
}

// Extents implements volume.File: FAT has no holes.
func (f *file) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	if off < 0 || n < 0 || off > f.attr.Size-n {
		return corrupt("extents of %d bytes at %d, of %d", n, off, f.attr.Size)
	}
	if n > 0 {
		yield(n, false)
	}
	return nil
}

// longName is put together from the entries before the one that it names, the last part first.
type longName struct {
	parts [20][26]byte
	n     int  // parts that the first entry announced
	next  int  // number of the part that is missing; 0 = all are there
	sum   byte // of the short name that it belongs to
}

func (l *longName) reset() { l.n = 0 }

// add takes a part.
func (l *longName) add(e []byte) {
	part := int(e[0] & 0x3f)
	switch {
	case e[0]&0x40 != 0 && part >= 1 && part <= len(l.parts):
		l.n, l.next, l.sum = part, part, e[13]
	case l.n == 0 || part != l.next || e[13] != l.sum:
		l.n = 0
		return
	}
	if l.n == 0 || part < 1 || part > len(l.parts) {
		l.n = 0
		return
	}
	p := &l.parts[part-1]
	copy(p[0:], e[1:11])
	copy(p[10:], e[14:26])
	copy(p[22:], e[28:32])
	l.next = part - 1
}

// take returns the name, if all of it came and belongs to this entry.
func (l *longName) take(e []byte) (string, bool) {
	n := l.n
	l.n = 0
	if n == 0 || l.next != 0 || l.sum != checksum(e) {
		return "", false
	}
	var u []uint16
	for i := range n {
		for at := 0; at < 26; at += 2 {
			c := binary.LittleEndian.Uint16(l.parts[i][at:])
			if c == 0 {
				return string(utf16.Decode(u)), true
			}
			u = append(u, c)
		}
	}
	return string(utf16.Decode(u)), true
}

// checksum is that of a short name, as its long one repeats it.
func checksum(e []byte) (sum byte) {
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// shortName is the name in the entry itself.
func shortName(e []byte) string {
	stem, ext := oem(e[:8]), oem(e[8:11])
	if e[0] == 0x05 {
		stem = "σ" + oem(e[1:8]) // 0xE5, which would mean that the entry is deleted
	}
	if e[12]&0x08 != 0 {
		stem = strings.ToLower(stem)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext == "" {
		return stem
	}
	return stem + "." + ext
}

// upper is the upper half of code page 437.
var upper = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")

func oem(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		if c < 0x80 {
			s.WriteByte(c)
		} else {
			s.WriteRune(upper[c-0x80])
		}
	}
	return strings.TrimRight(s.String(), " ")
}
