//go:build linux

// Package nastytree makes directory trees that hold everything a backup program gets wrong: all types of files, odd
// names, paths beyond 4,096 bytes, hard links across directories, sparse and huge files, attributes, ACLs, capabilities,
// inode flags, times far away, modes that nobody may read; and it changes such a tree in every way that tells one
// generation from the next. The same options make the same tree, so that a second copy serves as the expected one.
//
// It needs root. What a file system cannot hold is left out and named in Made.Skipped.
package nastytree

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Options say what is made. The zero value makes all but the costly parts.
type Options struct {
	Seed    uint64 // content and times follow from it
	Wide    int    // entries of the directory "wide"; 0 = 1,000
	Huge    bool   // sparse file of 1 TiB with 1 MiB of data; needs a file system for such sizes
	NoLong  bool   // leave out "deep", whose paths go beyond 4,096 bytes (rsync cannot go there)
	NoFlags bool   // leave out "flags", whose immutable files need Clean before they can be removed
}

// Made tells about a tree that was made or changed.
type Made struct {
	Skipped []string // what the file system or the kernel refused, sorted
	Log     []string // what Mutate did, in order
}

// The directories at the top of a tree.
const (
	Files    = "files"    // sizes around every boundary, random and compressible
	Wide     = "wide"     // many entries, most of them empty
	Sparse   = "sparse"   // holes at the start, the middle, the end, islands past 4 GiB, "huge"
	Links    = "links"    // hard links across directories, of symlinks, fifos and devices, too
	Modes    = "modes"    // 000, 0400, 0555, setuid, setgid, sticky
	Owners   = "owners"   // ids up to 2^32-2
	Times    = "times"    // before 1970, after 2038, single nanoseconds
	Xattrs   = "xattrs"   // values of 4,000 bytes, empty ones, odd names, on every type
	ACLs     = "acls"     // access and default
	Caps     = "caps"     // file capabilities
	Names    = "names"    // bytes that are not UTF-8, newlines, 255 bytes, glob characters
	Deep     = "deep"     // 20 directories of 250 bytes each
	Special  = "special"  // devices, fifo, socket
	Symlinks = "symlinks" // dangling, looping, 4,095 bytes long
	Changing = "changing" // what Mutate works on, besides "wide"
	Flags    = "flags"    // chattr
)

// Make fills the existing, empty directory dir.
func Make(dir string, o Options) (Made, error) {
	if o.Wide == 0 {
		o.Wide = 1000
	}
	m, root, err := open(dir, o)
	if err != nil {
		return Made{}, fmt.Errorf("make a nasty tree: %w", err)
	}
	defer root.close()
	for _, s := range m.sections() {
		d := root.mkdir(s.name)
		s.fill(d)
		d.close()
	}
	m.finish(root)
	return m.result("make a nasty tree")
}

type section struct {
	name string
	fill func(d *node)
}

func (m *maker) sections() []section {
	all := []section{
		{Files, m.files}, {Wide, m.wide}, {Sparse, m.sparse}, {Links, m.links}, {Modes, m.modes}, {Owners, m.owners},
		{Times, m.timesFar}, {Xattrs, m.xattrs}, {ACLs, m.acls}, {Caps, m.caps}, {Names, m.names}, {Deep, m.deep},
		{Special, m.special}, {Symlinks, m.symlinks}, {Changing, m.changing}, {Flags, m.chattr},
	}
	return slices.DeleteFunc(all, func(s section) bool {
		return s.name == Deep && m.o.NoLong || s.name == Flags && m.o.NoFlags
	})
}

func open(dir string, o Options) (*maker, *node, error) {
	if os.Geteuid() != 0 {
		return nil, nil, errors.New("needs root")
	}
	m := newMaker(o)
	root := m.top(dir)
	return m, root, m.err
}

func (m *maker) result(op string) (Made, error) {
	if m.err != nil {
		return Made{}, fmt.Errorf("%s: %w", op, m.err)
	}
	slices.Sort(m.skipped)
	return Made{Skipped: slices.Compact(m.skipped), Log: m.log}, nil
}
