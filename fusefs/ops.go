//go:build linux

package fusefs

import (
	"context"
	"encoding/binary"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// fsIocGetflags is FS_IOC_GETFLAGS of linux/fs.h on 64-bit machines; the answer is 4 bytes all the same.
const fsIocGetflags = 0x80086601

// SEEK_DATA and SEEK_HOLE of linux/fs.h.
const (
	seekData = 3
	seekHole = 4
)

// Lookup finds a name. What does not exist in a directory that never changes, never will: that is remembered, too.
func (s *server) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent := s.inodes.get(h.NodeId)
	dir, ok := parent.(Dir)
	if !ok {
		return notA(parent, fuse.ENOTDIR)
	}
	st := s.run("lookup", cancel, h.NodeId, name, func(ctx context.Context) error {
		n, err := dir.Lookup(ctx, name)
		if err != nil {
			return err
		}
		return s.enter(ctx, dir, h.NodeId, name, n, out)
	})
	if st == fuse.ENOENT {
		out.NodeId = 0
		out.SetEntryTimeout(entryFor(dir))
		return fuse.OK
	}
	return st
}

// enter fills the answer for a node found in dir, and counts the kernel's reference to it.
func (s *server) enter(ctx context.Context, dir Dir, parent uint64, name string, n Node, out *fuse.EntryOut) error {
	a, err := n.Attr(ctx)
	if err != nil {
		return err
	}
	out.NodeId = s.inodes.add(n, parent, name)
	fill(&out.Attr, &a)
	out.SetEntryTimeout(entryFor(dir))
	out.SetAttrTimeout(attrFor(n))
	return nil
}

// notA is the answer where a node has not the ability that a request needs.
func notA(n Node, otherwise fuse.Status) fuse.Status {
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	return otherwise
}

// Forget ends the kernel's references to an inode.
func (s *server) Forget(num, n uint64) { s.inodes.forget(num, n) }

// GetAttr answers stat.
func (s *server) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := s.inodes.get(in.NodeId)
	if n == nil {
		return notA(n, fuse.OK)
	}
	return s.run("getattr", cancel, in.NodeId, "", func(ctx context.Context) error {
		a, err := n.Attr(ctx)
		if err != nil {
			return err
		}
		fill(&out.Attr, &a)
		out.SetTimeout(attrFor(n))
		return nil
	})
}

// Readlink answers readlink.
func (s *server) Readlink(cancel <-chan struct{}, h *fuse.InHeader) (target []byte, st fuse.Status) {
	n := s.inodes.get(h.NodeId)
	link, ok := n.(Symlink)
	if !ok {
		return nil, notA(n, fuse.EINVAL)
	}
	st = s.run("readlink", cancel, h.NodeId, "", func(ctx context.Context) error {
		t, err := link.Target(ctx)
		target = []byte(t)
		return err
	})
	return target, st
}

// GetXAttr answers getxattr. cp -a and rsync ask for ACLs that hardly any file has: those answers touch nothing.
func (s *server) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (size uint32, st fuse.Status) {
	n := s.inodes.get(h.NodeId)
	x, ok := n.(Xattrs)
	if !ok || !slices.Contains(x.XattrNames(), name) {
		return 0, notA(n, fuse.ENODATA)
	}
	var value []byte
	if st = s.run("getxattr", cancel, h.NodeId, name, func(ctx context.Context) (err error) {
		value, err = x.Xattr(ctx, name)
		return err
	}); !st.Ok() {
		return 0, st
	}
	return reply(dest, value)
}

// ListXAttr answers listxattr.
func (s *server) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := s.inodes.get(h.NodeId)
	x, ok := n.(Xattrs)
	if !ok {
		return 0, notA(n, fuse.OK)
	}
	var list []byte
	for _, name := range x.XattrNames() {
		list = append(append(list, name...), 0)
	}
	return reply(dest, list)
}

// reply copies an attribute's answer; an empty dest asks for the size.
func reply(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// Open tells the kernel, where it understands that, never to ask again: there is no state per open file, and what is
// cached stays true.
func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if _, ok := s.inodes.get(in.NodeId).(File); !ok {
		return notA(s.inodes.get(in.NodeId), fuse.EACCES)
	}
	if s.noOpen {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Flush is what close(2) asks for: nothing is written here, and the kernel need not ask again.
func (s *server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read answers reads, which the kernel makes large and ahead of time where a program reads in order.
func (s *server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (res fuse.ReadResult, st fuse.Status) {
	n := s.inodes.get(in.NodeId)
	f, ok := n.(File)
	if !ok {
		return nil, notA(n, fuse.EINVAL)
	}
	buf = buf[:min(len(buf), int(in.Size))]
	var data []byte
	if st = s.run("read", cancel, in.NodeId, "", func(ctx context.Context) (err error) {
		data, err = f.Read(ctx, buf, int64(in.Offset))
		return err
	}); !st.Ok() {
		return nil, st // a result beside an error would hide it
	}
	return fuse.ReadResultData(data), fuse.OK
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the other ones itself.
func (s *server) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := s.inodes.get(in.NodeId)
	f, ok := n.(File)
	if !ok {
		return notA(n, fuse.EINVAL)
	}
	return s.run("lseek", cancel, in.NodeId, "", func(ctx context.Context) error {
		off, err := seek(ctx, f, int64(in.Offset), in.Whence)
		out.Offset = uint64(off)
		return err
	})
}

func seek(ctx context.Context, f File, off int64, whence uint32) (int64, error) {
	a, err := f.Attr(ctx)
	if err != nil {
		return 0, err
	}
	if off < 0 || uint64(off) >= a.Size {
		return 0, ErrNoData
	}
	sk, ok := f.(Seeker)
	switch {
	case whence == seekData && ok:
		return sk.SeekData(ctx, off)
	case whence == seekHole && ok:
		return sk.SeekHole(ctx, off)
	case whence == seekHole:
		return int64(a.Size), nil
	}
	return off, nil
}

// Ioctl answers lsattr's question and refuses all others.
func (s *server) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, out []byte) fuse.Status {
	if in.Cmd != fsIocGetflags || len(out) < 4 {
		return fuse.Status(syscall.ENOTTY)
	}
	n := s.inodes.get(in.NodeId)
	if n == nil {
		return notA(n, fuse.OK)
	}
	var flags uint32
	if f, ok := n.(Flagged); ok {
		flags = f.InodeFlags()
	}
	clear(out)
	binary.NativeEndian.PutUint32(out, flags)
	return fuse.OK
}

// StatFs answers df.
func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: maxNameLen}
	if s.space != nil {
		sp := s.space()
		out.Blocks, out.Bfree, out.Bavail = sp.Total/blockSize, sp.Free/blockSize, sp.Free/blockSize
		out.Files = sp.Files
	}
	return fuse.OK
}
