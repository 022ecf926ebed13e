//go:build linux

package fusefs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Positions that the kernel sees: 0 is the start, 1 comes after ".", 2 after "..", and firstPos + Next after an entry.
const firstPos = 2

// OpenDir tells the kernel to keep listings, as Open does for contents. A listing that it keeps is checked against the
// directory's mtime, which volatile directories change.
func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if _, ok := s.inodes.get(in.NodeId).(Dir); !ok {
		return notA(s.inodes.get(in.NodeId), fuse.ENOTDIR)
	}
	if s.noOpenDir {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReadDir lists names only.
func (s *server) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(cancel, in, out, func(_ context.Context, _ Dir, d Dirent, e fuse.DirEntry) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus lists names with the answers of the lookups that would follow.
func (s *server) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(cancel, in, out, func(ctx context.Context, dir Dir, d Dirent, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if d.Node == nil {
			return true // "." and "..": the kernel knows them
		}
		if err := s.enter(ctx, dir, in.NodeId, d.Name, d.Node, entry); err != nil {
			// NodeId 0: the kernel asks again when somebody wants this entry, and then tells them of the error.
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

// list walks through a directory from the kernel's position on. An error ends the listing; if there are entries before
// it, they are answered first, and the error comes with the next request.
func (s *server) list(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList,
	add func(context.Context, Dir, Dirent, fuse.DirEntry) bool) fuse.Status {
	n := s.inodes.get(in.NodeId)
	dir, ok := n.(Dir)
	if !ok {
		return notA(n, fuse.ENOTDIR)
	}
	added := 0
	st := s.run("readdir", cancel, in.NodeId, "", func(ctx context.Context) error {
		pos := in.Offset
		for ; pos < firstPos; pos++ {
			name := []string{".", ".."}[pos]
			if !add(ctx, dir, Dirent{}, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR, Ino: fuse.FUSE_UNKNOWN_INO, Off: pos + 1}) {
				return nil
			}
			added++
		}
		return dir.List(ctx, pos-firstPos, func(d Dirent) bool {
			e, ok := s.dirent(ctx, d)
			if !ok {
				return true
			}
			if !add(ctx, dir, d, e) {
				return false
			}
			added++
			return true
		})
	})
	if added > 0 {
		return fuse.OK
	}
	return st
}

// dirent puts an entry in the kernel's form. A name that Linux cannot hold (another system's may be longer) is left out:
// the kernel would refuse the whole listing.
func (s *server) dirent(ctx context.Context, d Dirent) (fuse.DirEntry, bool) {
	if len(d.Name) > maxNameLen {
		s.log.Warn("mounted file system: name too long to be shown", "name", d.Name[:40], "bytes", len(d.Name))
		return fuse.DirEntry{}, false
	}
	e := fuse.DirEntry{Name: d.Name, Off: firstPos + d.Next}
	if k, ok := d.Node.(Kinder); ok {
		e.Mode, e.Ino = k.Kind()
		return e, true
	}
	a, err := d.Node.Attr(ctx)
	if err != nil {
		e.Ino = fuse.FUSE_UNKNOWN_INO
		return e, true // DT_UNKNOWN: whoever needs the type asks, and learns of the error
	}
	e.Mode, e.Ino = a.Mode, a.Ino
	return e, true
}
