package ntfs

import (
	"fmt"
	"io/fs"
	"strings"

	"www.velocidex.com/golang/go-ntfs/parser"

	"coffer/images/volume"
)

const (
	indexName = "$I30"
	blockLen  = 4096    // of an index, in all that Windows and mkntfs make
	maxIndex  = 1 << 30 // bytes of a directory's index
	lastEntry = 2       // flag of an entry that only ends a list
)

type dir struct{ *record }

var _ volume.Dir = dir{}

// child is an entry of a directory's index.
type child struct {
	name string
	id   uint64
}

// List implements volume.Dir.
func (d dir) List(yield func(volume.Entry) bool) (err error) {
	defer guard(&err)
	if more := d.streams("", yield); !more {
		return nil
	}
	return d.children(func(c child) bool {
		if !yield(volume.Entry{Name: c.name, Ino: c.id}) {
			return false
		}
		r, err := d.fs.open(c.id)
		return err != nil || r.streams(c.name, yield) // what is damaged is told by who opens it
	})
}

// Lookup implements volume.Dir.
func (d dir) Lookup(name string) (_ volume.Node, err error) {
	defer guard(&err)
	file, stream, isStream := strings.Cut(name, ":")
	r := d.record
	if file != "" {
		id := uint64(0)
		if err := d.children(func(c child) bool {
			if c.name == file {
				id = c.id
			}
			return id == 0
		}); err != nil {
			return nil, err
		}
		if id == 0 {
			return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
		}
		if !isStream {
			return d.fs.node(id)
		}
		if r, err = d.fs.open(id); err != nil {
			return nil, err
		}
	}
	if stream == "" || r.named(attrData, stream) == nil {
		return nil, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return r.file(stream)
}

// Open implements volume.Dir.
func (d dir) Open(e volume.Entry) (volume.Node, error) {
	if e.Ino&^idMask != 0 { // a stream
		return d.Lookup(e.Name)
	}
	return d.fs.node(e.Ino)
}

// streams yields the alternate streams of a record, as "name:stream".
func (r *record) streams(name string, yield func(volume.Entry) bool) bool {
	for _, a := range r.attrs {
		if a.Type().Value != attrData || !a.IsResident() && a.Runlist_vcn_start() != 0 {
			continue
		}
		stream := a.Name()
		if stream == "" || strings.ContainsAny(stream, "/\x00") || r.named(attrData, stream) != a {
			continue
		}
		if !yield(volume.Entry{Name: name + ":" + stream, Type: volume.ModeRegular, Ino: r.streamIno(a)}) {
			return false
		}
	}
	return true
}

// streamIno tells the streams of a file apart.
func (r *record) streamIno(a *parser.NTFS_ATTRIBUTE) uint64 {
	return r.attr.Ino | (uint64(a.Attribute_id())+1)<<48
}

// children yields what the directory's index has: the root's entries, and those of the blocks that are in use.
func (d dir) children(yield func(child) bool) error {
	root := d.named(attrIndexRoot, indexName)
	if root == nil {
		return corrupt("record %d: a directory without an index", d.attr.Ino)
	}
	index := d.fs.ctx.Profile.INDEX_ROOT(root.Data(d.fs.ctx), 0)
	if more, err := d.entries(index.Node(), int64(root.DataSize()), yield); err != nil || !more {
		return err
	}
	blocks := d.named(attrIndexAllocation, indexName)
	if blocks == nil {
		return nil
	}
	if n := index.Idxalloc_size_b(); n != blockLen {
		return fmt.Errorf("record %d: an index in blocks of %d bytes is %w", d.attr.Ino, n, volume.ErrUnsupported)
	}
	return d.blocks(blocks.DataSize(), yield)
}

// blocks yields the entries of the index blocks that the bitmap says are in use.
func (d dir) blocks(size int64, yield func(child) bool) error {
	if size > maxIndex {
		return corrupt("record %d: an index of %d bytes", d.attr.Ino, size)
	}
	index, err := d.stream(attrIndexAllocation, indexName)
	if err != nil {
		return err
	}
	bitmap, err := d.stream(attrBitmap, indexName)
	if err != nil {
		return err
	}
	used := make([]byte, (size/blockLen+7)/8)
	if n, err := bitmap.ReadAt(used, 0); n < len(used) {
		return corrupt("record %d: bitmap of the index: %w", d.attr.Ino, err)
	}
	for i := range size / blockLen {
		if used[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		block, err := parser.DecodeSTANDARD_INDEX_HEADER(d.fs.ctx, index, i*blockLen, blockLen)
		if err != nil {
			return corrupt("record %d: index block %d: %w", d.attr.Ino, i, err)
		}
		if !block.MagicNumber().IsValid() {
			return corrupt("record %d: index block %d", d.attr.Ino, i)
		}
		if more, err := d.entries(block.Node(), blockLen, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

// entries yields the entries of one node, which lies in size bytes.
func (d dir) entries(node *parser.INDEX_NODE_HEADER, size int64, yield func(child) bool) (more bool, err error) {
	at, end := node.Offset+int64(node.Offset_to_index_entry()), node.Offset+int64(node.Offset_to_end_index_entry())
	if end > size {
		return false, corrupt("record %d: index entries up to %d of %d", d.attr.Ino, end, size)
	}
	for at < end {
		e := d.fs.ctx.Profile.INDEX_RECORD_ENTRY(node.Reader, at)
		length := int64(e.SizeOfIndexEntry())
		if length < 16 || at+length > end {
			return false, corrupt("record %d: an index entry of %d bytes", d.attr.Ino, length)
		}
		if e.Flags()&lastEntry != 0 {
			return true, nil
		}
		if c, ok := d.child(e); ok && !yield(c) {
			return false, nil
		}
		at += length
	}
	return true, nil
}

// child returns what an entry stands for; not ok for the second, short name of a file, and for the file system's own.
func (d dir) child(e *parser.INDEX_RECORD_ENTRY) (child, bool) {
	f := e.File()
	c := child{name: f.Name(), id: e.MftReference() & idMask}
	if f.NameType().Name == "DOS" || c.id < firstUser && d.attr.Ino == rootRecord {
		return c, false
	}
	return c, c.name != "" && c.name != "." && c.name != ".." && !strings.ContainsAny(c.name, "/:\x00")
}
