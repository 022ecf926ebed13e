package recipe

import (
	"bytes"
	"encoding/binary"
)

// The field mask of an entry. Part of the format: a field's bit is set exactly when the field is not zero.
const (
	maskContent   = 0x003 // the ContentKind, but for an ImageTree
	maskNsec      = 0x004
	maskUID       = 0x008
	maskGID       = 0x010
	maskTarget    = 0x020
	maskXattrs    = 0x040
	maskLinkGroup = 0x080
	maskRdev      = 0x100
	maskFlags     = 0x200
	maskImage     = 0x400 // an ImageTree; the bits of maskContent are not set then
	maskKnown     = 0x7ff
)

func (e *Entry) mask() uint64 {
	m := contentMask(e.Content.Kind)
	set := func(bit uint64, on bool) {
		if on {
			m |= bit
		}
	}
	set(maskNsec, e.MTime.Nsec != 0)
	set(maskUID, e.UID != 0)
	set(maskGID, e.GID != 0)
	set(maskTarget, e.Target != "")
	set(maskXattrs, len(e.Xattrs) != 0)
	set(maskLinkGroup, e.LinkGroup != 0)
	set(maskRdev, e.Rdev != 0)
	set(maskFlags, e.Flags != 0)
	return m
}

func contentMask(k ContentKind) uint64 {
	if k == ImageTree {
		return maskImage
	}
	return uint64(k)
}

// maskedContent is the content kind that a mask says; one that no writer makes is an unknown kind.
func maskedContent(m uint64) ContentKind {
	k := ContentKind(m & maskContent)
	if m&maskImage != 0 {
		k += ImageTree
	}
	return k
}

// addEntry appends a checked entry to a directory leaf: its body bytes and its children.
func (p *pending) addEntry(e *Entry, below Totals) {
	m := e.mask()
	b := appendUvarint(p.body, m)
	b = appendUvarint(b, uint64(len(e.Name)))
	b = append(b, e.Name...)
	b = appendUvarint(b, uint64(e.Mode))
	b = appendUvarint(b, zigzag(e.MTime.Sec))
	if m&maskNsec != 0 {
		b = binary.LittleEndian.AppendUint32(b, e.MTime.Nsec)
	}
	if m&maskUID != 0 {
		b = appendUvarint(b, uint64(e.UID))
	}
	if m&maskGID != 0 {
		b = appendUvarint(b, uint64(e.GID))
	}
	if m&(maskTarget|maskLinkGroup|maskRdev|maskFlags) != 0 {
		b = e.appendRare(b, m)
	}
	switch e.Content.Kind {
	case OneChunk, StreamTree, ImageTree:
		p.addChild(&Child{Digest: e.Content.Digest, Node: e.Content.Kind != OneChunk, Length: e.Size})
	case DirTree:
		b = appendUvarint(b, below.Entries)
		p.addChild(&Child{Digest: e.Content.Digest, Node: true, Length: below.Bytes})
	}
	if m&maskXattrs != 0 {
		b = p.appendXattrs(b, e.Xattrs)
	}
	p.body = b
}

// appendRare appends the fields that few entries have.
func (e *Entry) appendRare(b []byte, m uint64) []byte {
	if m&maskTarget != 0 {
		b = appendUvarint(b, uint64(len(e.Target)))
		b = append(b, e.Target...)
	}
	if m&maskLinkGroup != 0 {
		b = binary.LittleEndian.AppendUint64(b, e.LinkGroup)
	}
	if m&maskRdev != 0 {
		b = appendUvarint(b, e.Rdev)
	}
	if m&maskFlags != 0 {
		b = appendUvarint(b, uint64(e.Flags))
	}
	return b
}

func (p *pending) appendXattrs(b []byte, xs []Xattr) []byte {
	b = appendUvarint(b, uint64(len(xs)))
	for i := range xs {
		x := &xs[i]
		b = appendUvarint(b, uint64(len(x.Name)))
		b = append(b, x.Name...)
		if !x.Chunk.IsZero() {
			b = append(b, 1)
			p.addChild(&Child{Digest: x.Chunk, Length: uint64(x.Size)})
			continue
		}
		b = appendUvarint(b, uint64(len(x.Value))<<1)
		b = append(b, x.Value...)
	}
	return b
}

// entryReader reads the entries of a directory leaf in order and checks each.
type entryReader struct {
	body     cursor
	children childList
	// text is the body as a string: the strings of all entries are parts of it, one allocation for a leaf. It is
	// empty in quick reading, which makes neither strings nor xattrs.
	text  string
	quick bool

	name     []byte // of the entry read last
	prevFrom int    // where the name before it lies; prevTo 0: there is none
	prevTo   int
}

func newEntryReader(p *clearPart) entryReader {
	return entryReader{body: cursor{b: p.body}, children: p.children, quick: true}
}

// keep makes the reader return strings and xattrs.
func (r *entryReader) keep() {
	r.quick = false
	r.text = string(r.body.b)
}

func (r *entryReader) more() bool { return r.body.off < len(r.body.b) }

// str returns a part of the body as a string.
func (r *entryReader) str(from, to int) string {
	if r.text != "" {
		return r.text[from:to]
	}
	return string(r.body.b[from:to])
}

// next reads one entry and what is below it, if it is a directory.
func (r *entryReader) next(e *Entry, below *Totals) error {
	*e, *below = Entry{}, Totals{}
	c := &r.body
	m := c.uvarint()
	if m&^maskKnown != 0 || maskedContent(m) > ImageTree {
		return fail(UnknownField, "field mask 0x%x of an entry", m)
	}
	from, to := c.span(MaxName)
	if err := r.setName(from, to); err != nil {
		return err
	}
	if !r.quick {
		e.Name = r.str(from, to)
	}
	e.Mode = r.mode()
	e.MTime.Sec = c.varint()
	if m&maskNsec != 0 {
		e.MTime.Nsec = c.u32()
	}
	if m&maskUID != 0 {
		e.UID = r.num32()
	}
	if m&maskGID != 0 {
		e.GID = r.num32()
	}
	if m&(maskTarget|maskLinkGroup|maskRdev|maskFlags) != 0 {
		r.rare(e, m)
	}
	if err := r.content(e, below, maskedContent(m)); err != nil {
		return err
	}
	if m&maskXattrs != 0 {
		if err := r.xattrs(e); err != nil {
			return err
		}
	}
	return r.verdict(e, m)
}

// setName checks the name that lies at from:to and that it comes after the one before.
func (r *entryReader) setName(from, to int) error {
	r.name = r.body.b[from:to]
	if r.body.bad {
		return fail(Malformed, "an entry is cut short")
	}
	if !nameOK(r.name) {
		return CheckName(string(r.name))
	}
	if r.prevTo > 0 && bytes.Compare(r.name, r.body.b[r.prevFrom:r.prevTo]) <= 0 {
		return fail(BadOrder, "%q after %q", r.name, r.body.b[r.prevFrom:r.prevTo])
	}
	r.prevFrom, r.prevTo = from, to
	return nil
}

// mode reads the sixteen bits of st_mode.
func (r *entryReader) mode() uint32 {
	v := r.body.uvarint()
	if v>>16 != 0 {
		r.body.fail()
	}
	return uint32(v)
}

// num32 reads a number that has 32 bits and is not zero, for its mask bit said so.
func (r *entryReader) num32() uint32 {
	v := r.body.uvarint()
	if v == 0 || v>>32 != 0 {
		r.body.fail()
	}
	return uint32(v)
}

func (r *entryReader) rare(e *Entry, m uint64) {
	c := &r.body
	if m&maskTarget != 0 {
		from, to := c.span(MaxTarget)
		if from == to || bytes.IndexByte(c.b[from:to], 0) >= 0 {
			c.fail()
		}
		if !r.quick {
			e.Target = r.str(from, to)
		}
	}
	if m&maskLinkGroup != 0 {
		e.LinkGroup = c.u64()
		c.bad = c.bad || e.LinkGroup == 0
	}
	if m&maskRdev != 0 {
		e.Rdev = c.uvarint()
		c.bad = c.bad || e.Rdev == 0
	}
	if m&maskFlags != 0 {
		e.Flags = r.num32()
	}
}

// content takes the entry's content from the children.
func (r *entryReader) content(e *Entry, below *Totals, k ContentKind) error {
	e.Content.Kind = k
	if k == NoContent {
		return nil
	}
	var child Child
	if !r.children.next(&child) || child.Node != (k != OneChunk) {
		return fail(Malformed, "%q has %v, and no child for it", r.name, k)
	}
	e.Content.Digest = child.Digest
	if k == DirTree {
		*below = Totals{Entries: r.body.uvarint(), Bytes: child.Length}
		if below.Entries > MaxTotal {
			return fail(Malformed, "%q has %d entries", r.name, below.Entries)
		}
		return nil
	}
	e.Size = child.Length
	if e.Size == 0 {
		return fail(Malformed, "%q has %v of 0 bytes", r.name, k)
	}
	return nil
}

func (r *entryReader) xattrs(e *Entry) error {
	c := &r.body
	n := c.uvarint()
	if n == 0 || n > MaxXattrs || n > uint64(c.left()/3) { // name length, name, value
		return fail(Malformed, "%q has %d xattrs in %d bytes", r.name, n, c.left())
	}
	if !r.quick {
		e.Xattrs = make([]Xattr, n)
	}
	var prev []byte
	for i := range int(n) {
		from, to := c.span(MaxName)
		name := c.b[from:to]
		if len(name) == 0 || bytes.IndexByte(name, 0) >= 0 || bytes.Compare(name, prev) <= 0 {
			return fail(Malformed, "%q has xattr %q after %q", r.name, name, prev)
		}
		prev = name
		var x Xattr
		if err := r.xattrValue(&x); err != nil {
			return err
		}
		if !r.quick {
			x.Name = r.str(from, to)
			e.Xattrs[i] = x
		}
	}
	return nil
}

func (r *entryReader) xattrValue(x *Xattr) error {
	c := &r.body
	v := c.uvarint()
	if v == 1 {
		var child Child
		if !r.children.next(&child) || child.Node {
			return fail(Malformed, "%q has an xattr in a chunk, and no child for it", r.name)
		}
		x.Chunk, x.Size = child.Digest, uint32(child.Length)
		return nil
	}
	n := v >> 1
	if v&1 != 0 || n > MaxInline || n > uint64(c.left()) {
		return fail(Malformed, "%q has an xattr of %d bytes", r.name, n)
	}
	end := c.off + int(n)
	x.Value = c.b[c.off:end:end]
	c.off = end
	return nil
}

// verdict checks what depends on several fields.
func (r *entryReader) verdict(e *Entry, m uint64) error {
	link := e.Mode&ModeType == ModeSymlink
	switch {
	case r.body.bad || m&maskNsec != 0 && e.MTime.Nsec == 0 || e.MTime.Nsec >= 1e9:
		return fail(Malformed, "a number or length of entry %q is wrong", r.name)
	case !typeOK(e.Mode) || !contentOK(e.Mode, e.Content.Kind):
		return fail(Malformed, "entry %q has mode 0%o and %v", r.name, e.Mode, e.Content.Kind)
	case link != (m&maskTarget != 0) || m&maskRdev != 0 && !isDevice(e.Mode):
		return fail(Malformed, "entry %q with mode 0%o has fields 0x%x", r.name, e.Mode, m)
	}
	return nil
}
