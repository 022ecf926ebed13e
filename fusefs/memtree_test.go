//go:build linux

package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// memNode is a node of a tree in memory. All kinds of nodes share it; the wrappers below give it its abilities.
type memNode struct {
	attr   Attr
	xattrs map[string][]byte
	flags  uint32
	fail   error         // what its methods return
	block  chan struct{} // its methods wait until it is closed, or their context ends
}

func (n *memNode) ID() ID { return ID{Lo: n.attr.Ino} }

func (n *memNode) gate(ctx context.Context) error {
	if n.block != nil {
		select {
		case <-n.block:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return n.fail
}

func (n *memNode) Attr(context.Context) (Attr, error) { return n.attr, nil }

func (n *memNode) XattrNames() []string { return slices.Sorted(maps.Keys(n.xattrs)) }

func (n *memNode) Xattr(ctx context.Context, name string) ([]byte, error) {
	if v, ok := n.xattrs[name]; ok {
		return v, n.gate(ctx)
	}
	return nil, ErrNoXattr
}

func (n *memNode) InodeFlags() uint32 { return n.flags }

type memFile struct {
	*memNode
	data  []byte
	holes [][2]int64 // ranges, sorted
	reads atomic.Int64
}

func (f *memFile) Read(ctx context.Context, p []byte, off int64) ([]byte, error) {
	f.reads.Add(1)
	if err := f.gate(ctx); err != nil {
		return nil, err
	}
	if off >= int64(len(f.data)) {
		return nil, nil
	}
	return f.data[off:min(off+int64(len(p)), int64(len(f.data)))], nil
}

func (f *memFile) SeekData(_ context.Context, off int64) (int64, error) {
	for _, h := range f.holes {
		if off >= h[0] && off < h[1] {
			off = h[1]
		}
	}
	if off >= int64(len(f.data)) {
		return 0, ErrNoData
	}
	return off, nil
}

func (f *memFile) SeekHole(_ context.Context, off int64) (int64, error) {
	for _, h := range f.holes {
		if off < h[1] {
			return max(off, h[0]), nil
		}
	}
	return int64(len(f.data)), nil
}

type memLink struct {
	*memNode
	target string
}

func (l *memLink) Target(ctx context.Context) (string, error) { return l.target, l.gate(ctx) }

type memDir struct {
	*memNode
	volatile bool

	mu      sync.Mutex // guards entries, names and, once mounted, attr
	entries map[string]Node
	names   []string // sorted, once listed
	listed  atomic.Int64
}

func (d *memDir) Volatile() bool { return d.volatile }

func (d *memDir) Attr(context.Context) (Attr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attr, nil
}

func (d *memDir) Lookup(ctx context.Context, name string) (Node, error) {
	if err := d.gate(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.entries[name]; ok {
		return n, nil
	}
	return nil, fs.ErrNotExist
}

func (d *memDir) List(ctx context.Context, from uint64, yield func(Dirent) bool) error {
	d.listed.Add(1)
	if err := d.gate(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.names) != len(d.entries) {
		d.names = slices.Sorted(maps.Keys(d.entries))
	}
	for i := int(from); i < len(d.names); i++ {
		if !yield(Dirent{Name: d.names[i], Node: d.entries[d.names[i]], Next: uint64(i + 1)}) {
			return nil
		}
	}
	return nil
}

// memTree makes nodes with numbers of their own.
type memTree struct{ last uint64 }

func (t *memTree) node(mode uint32) *memNode {
	t.last++
	return &memNode{attr: Attr{Ino: 1000 + t.last, Mode: mode, Nlink: 1, MTime: Time{Sec: -1, Nsec: 999999999}}}
}

func (t *memTree) dir(entries map[string]Node) *memDir {
	if entries == nil {
		entries = map[string]Node{}
	}
	d := &memDir{memNode: t.node(0o40755), entries: entries}
	d.attr.Size = blockSize
	return d
}

func (t *memTree) file(data []byte) *memFile {
	f := &memFile{memNode: t.node(0o100644), data: data}
	f.attr.Size, f.attr.Blocks = uint64(len(data)), uint64(len(data)+511)/512
	return f
}

// punched is a file whose ranges are holes.
func (t *memTree) punched(data []byte, holes ...[2]int64) *memFile {
	f := t.file(data)
	sort.Slice(holes, func(i, j int) bool { return holes[i][0] < holes[j][0] })
	f.holes = holes
	for _, h := range holes {
		clear(f.data[h[0]:h[1]])
		f.attr.Blocks -= uint64(h[1]-h[0]) / 512
	}
	return f
}

func (t *memTree) link(target string) *memLink {
	l := &memLink{memNode: t.node(0o120777), target: target}
	l.attr.Size = uint64(len(target))
	return l
}

// wide is a directory of n small files.
func (t *memTree) wide(n int) *memDir {
	entries := map[string]Node{}
	for i := range n {
		entries[fmt.Sprintf("entry-%06d", i)] = t.file(fmt.Append(nil, i))
	}
	return t.dir(entries)
}

func pattern(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n] }
