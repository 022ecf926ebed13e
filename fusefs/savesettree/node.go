package savesettree

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"coffer/dedup/recipe"
	"coffer/fusefs"
)

const (
	blockSize = 4096
	sector    = 512
)

// node is what all entries of a saveset have. Devices, fifos and sockets are nodes and nothing more.
type node struct {
	set *saveset
	ino uint64 // by rank; hard links show another one
	e   recipe.Entry
}

var (
	_ fusefs.Node    = (*node)(nil)
	_ fusefs.Kinder  = (*node)(nil)
	_ fusefs.Xattrs  = (*node)(nil)
	_ fusefs.Flagged = (*node)(nil)
)

// newNode makes the node of an entry. parent is its directory.
func newNode(parent *dir, rank uint64, e recipe.Entry) fusefs.Node {
	detach(&e)
	n := node{set: parent.set, ino: parent.ino + 1 + rank, e: e}
	switch e.Mode & recipe.ModeType {
	case recipe.ModeDir:
		return &dir{node: n, parent: parent, rank: rank}
	case recipe.ModeRegular:
		return &file{node: n, parent: parent, rank: rank}
	case recipe.ModeSymlink:
		return &symlink{node: n}
	}
	return &n
}

// detach gives an entry memory of its own: it lives as long as the kernel remembers the file, and would keep the record of
// a whole leaf for that time.
func detach(e *recipe.Entry) {
	e.Name, e.Target = strings.Clone(e.Name), strings.Clone(e.Target)
	for i := range e.Xattrs { // the slice is the entry's already
		x := &e.Xattrs[i]
		x.Name, x.Value = strings.Clone(x.Name), bytes.Clone(x.Value)
	}
}

// ID implements fusefs.Node: a link group is one file, whatever its names.
func (n *node) ID() fusefs.ID {
	if n.e.LinkGroup != 0 {
		return fusefs.ID{Hi: n.set.base, Lo: n.e.LinkGroup}
	}
	return fusefs.ID{Lo: n.ino}
}

// shownIno is the inode number that stat shows. The numbers of link groups repeat from saveset to saveset of a task: the
// saveset's base spreads them.
func (n *node) shownIno() uint64 {
	if n.e.LinkGroup != 0 {
		return max(n.e.LinkGroup+n.set.base*0x9e3779b97f4a7c15, 1)
	}
	return n.ino
}

// Kind implements fusefs.Kinder.
func (n *node) Kind() (mode uint32, ino uint64) { return n.e.Mode, n.shownIno() }

// Attr implements fusefs.Node for all that has no content.
func (n *node) Attr(context.Context) (fusefs.Attr, error) { return n.attr(), nil }

func (n *node) attr() fusefs.Attr {
	at := fusefs.Time{Sec: n.e.MTime.Sec, Nsec: n.e.MTime.Nsec}
	a := fusefs.Attr{Ino: n.shownIno(), Mode: n.e.Mode, Nlink: 1, UID: n.e.UID, GID: n.e.GID, Rdev: n.e.Rdev,
		Size: n.e.Size, MTime: at, CTime: at}
	if n.e.LinkGroup != 0 {
		a.Nlink = 2 // at least: how many there are, no entry knows
	}
	return a
}

// XattrNames implements fusefs.Xattrs.
func (n *node) XattrNames() []string {
	if len(n.e.Xattrs) == 0 {
		return nil
	}
	names := make([]string, len(n.e.Xattrs))
	for i := range n.e.Xattrs {
		names[i] = n.e.Xattrs[i].Name
	}
	return names
}

// Xattr implements fusefs.Xattrs. Long values lie in chunks.
func (n *node) Xattr(ctx context.Context, name string) (value []byte, err error) {
	for i := range n.e.Xattrs {
		x := &n.e.Xattrs[i]
		if x.Name != name {
			continue
		}
		if x.Chunk.IsZero() {
			return x.Value, nil
		}
		err = n.set.use(ctx, func(v View) error {
			value, err = v.Chunk(ctx, x.Chunk)
			return err
		})
		return value, n.wrap("read attribute of", err)
	}
	return nil, fusefs.ErrNoXattr
}

// InodeFlags implements fusefs.Flagged.
func (n *node) InodeFlags() uint32 { return n.e.Flags }

// wrap tells an error where it happened.
func (n *node) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q in saveset %v of %s/%s: %w", op, n.e.Name, n.set.info.ID, n.set.info.Client, n.set.info.Task, err)
}

// symlink is a symbolic link.
type symlink struct{ node }

var _ fusefs.Symlink = (*symlink)(nil)

// Attr implements fusefs.Node.
func (l *symlink) Attr(context.Context) (fusefs.Attr, error) {
	a := l.attr()
	a.Size = uint64(len(l.e.Target))
	return a, nil
}

// Target implements fusefs.Symlink.
func (l *symlink) Target(context.Context) (string, error) { return l.e.Target, nil }
