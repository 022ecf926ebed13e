package disktree

import (
	"context"
	"io"

	"coffer/fusefs"
	"coffer/images/volume"
)

const blockSize, sector = 4096, 512

// shownIno is the inode number that stat shows: those of file systems repeat from one to the next, and programs that copy take
// two files with one number for one.
func shownIno(id fusefs.ID) uint64 { return max(id.Lo+id.Hi*0x9e3779b97f4a7c15, 1) }

// node is what all entries of a file system have.
type node struct {
	v *vol
	n volume.Node
}

// newNode makes the node of a file.
func newNode(v *vol, n volume.Node) fusefs.Node {
	switch n := n.(type) {
	case volume.Dir:
		return &dir{node{v, n}, n}
	case volume.File:
		return &file{node{v, n}, n}
	case volume.Link:
		return &link{node{v, n}, n}
	}
	return &node{v, n}
}

// ID implements fusefs.Node.
func (n *node) ID() fusefs.ID { return fusefs.ID{Hi: n.v.id.Hi, Lo: n.n.Attr().Ino} }

// Attr implements fusefs.Node.
func (n *node) Attr(context.Context) (fusefs.Attr, error) { return n.attr(), nil }

func (n *node) attr() fusefs.Attr {
	a := n.n.Attr()
	at := fusefs.TimeOf(a.MTime)
	return fusefs.Attr{Ino: shownIno(n.ID()), Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Rdev: a.Rdev,
		Size: uint64(a.Size), Blocks: (uint64(a.Size) + sector - 1) / sector, MTime: at, CTime: at}
}

// dir is a directory.
type dir struct {
	node
	d volume.Dir
}

var _ fusefs.Dir = (*dir)(nil)

// Lookup implements fusefs.Dir.
func (d *dir) Lookup(_ context.Context, name string) (fusefs.Node, error) {
	n, err := d.d.Lookup(name)
	if err != nil {
		return nil, d.v.wrap("look up", err)
	}
	return newNode(d.v, n), nil
}

// List implements fusefs.Dir. Positions are counts of entries. One that cannot be opened is listed all the same: whoever opens
// it is told why.
func (d *dir) List(ctx context.Context, from uint64, yield func(fusefs.Dirent) bool) error {
	at := uint64(0)
	err := d.d.List(func(e volume.Entry) bool {
		if at++; at <= from {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		n, err := d.d.Open(e)
		if err != nil {
			return yield(fusefs.Dirent{Name: e.Name, Node: &broken{d.v, e, err}, Next: at})
		}
		return yield(fusefs.Dirent{Name: e.Name, Node: newNode(d.v, n), Next: at})
	})
	if err == nil {
		err = ctx.Err()
	}
	return d.v.wrap("list", err)
}

// broken is a name whose file cannot be opened.
type broken struct {
	v   *vol
	e   volume.Entry
	err error
}

// ID implements fusefs.Node.
func (b *broken) ID() fusefs.ID { return fusefs.ID{Hi: b.v.id.Hi, Lo: b.e.Ino} }

// Attr implements fusefs.Node.
func (b *broken) Attr(context.Context) (fusefs.Attr, error) {
	return fusefs.Attr{}, b.v.wrap("open", b.err)
}

// file is a regular file.
type file struct {
	node
	f volume.File
}

var (
	_ fusefs.File   = (*file)(nil)
	_ fusefs.Seeker = (*file)(nil)
)

// Read implements fusefs.File.
func (f *file) Read(_ context.Context, p []byte, off int64) ([]byte, error) {
	n, err := f.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return nil, f.v.wrap("read", err)
	}
	return p[:n], nil
}

// SeekData implements fusefs.Seeker.
func (f *file) SeekData(_ context.Context, off int64) (int64, error) {
	at, err := f.seek(off, false)
	if err == nil && at == f.f.Attr().Size {
		err = fusefs.ErrNoData
	}
	return at, err
}

// SeekHole implements fusefs.Seeker.
func (f *file) SeekHole(_ context.Context, off int64) (int64, error) { return f.seek(off, true) }

// seek returns where the first extent of a kind begins, or the file's end.
func (f *file) seek(off int64, hole bool) (int64, error) {
	at := off
	err := f.f.Extents(off, f.f.Attr().Size-off, func(n int64, isHole bool) bool {
		if isHole == hole {
			return false
		}
		at += n
		return true
	})
	return at, f.v.wrap("look at extents", err)
}

// link is a symbolic link.
type link struct {
	node
	l volume.Link
}

var _ fusefs.Symlink = (*link)(nil)

// Target implements fusefs.Symlink.
func (l *link) Target(context.Context) (string, error) {
	t, err := l.l.Target()
	return t, l.v.wrap("read link", err)
}

// root is the topmost directory of a file system, which is opened when something of it is asked for.
type root struct {
	v  *vol
	at fusefs.Time
}

var _ fusefs.Dir = (*root)(nil)

// ID implements fusefs.Node: a file system has no inode 0.
func (r *root) ID() fusefs.ID { return fusefs.ID{Hi: r.v.id.Hi} }

// Attr implements fusefs.Node, without opening the file system: a damaged one must not spoil the listing of the others.
func (r *root) Attr(context.Context) (fusefs.Attr, error) {
	return fusefs.Attr{Ino: shownIno(r.ID()), Mode: volume.ModeDir | 0o755, Size: blockSize, MTime: r.at, CTime: r.at}, nil
}

func (r *root) dir(ctx context.Context) (*dir, error) {
	f, err := r.v.open(ctx)
	if err != nil {
		return nil, err
	}
	d, err := f.Root()
	if err != nil {
		return nil, r.v.wrap("open the root", err)
	}
	return &dir{node{r.v, d}, d}, nil
}

// Lookup implements fusefs.Dir.
func (r *root) Lookup(ctx context.Context, name string) (fusefs.Node, error) {
	d, err := r.dir(ctx)
	if err != nil {
		return nil, err
	}
	return d.Lookup(ctx, name)
}

// List implements fusefs.Dir.
func (r *root) List(ctx context.Context, from uint64, yield func(fusefs.Dirent) bool) error {
	d, err := r.dir(ctx)
	if err != nil {
		return err
	}
	return d.List(ctx, from, yield)
}
