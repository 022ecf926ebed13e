//go:build linux

package savesettreetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"

	"golang.org/x/sys/unix"
)

// Sink takes what Capture reads.
type Sink interface {
	recipe.Sink
	// PutChunk keeps a chunk and returns its digest. b is valid only during the call.
	PutChunk(ctx context.Context, b []byte) (digest.Digest, error)
}

// capturer builds the recipe of a real directory, as an agent does, but simply.
type capturer struct {
	sink  Sink
	h     *digest.Hasher
	links map[[2]uint64]uint64
}

const (
	testPiece = 300 << 10 // extents of large files
	testSmall = 512 << 10
)

// Capture takes a directory into the store and returns its recipe.
func (m *Store) Capture(ctx context.Context, dir string) (recipe.Ref, error) {
	return Capture(ctx, m, digest.NewHasher(digest.Derive(digest.DomainKey{1}).Node), dir)
}

// Capture reads a directory and returns its recipe, as an agent would have made it, metadata and holes included. h has
// the key of nodes. Needs root where the directory holds what others may not read.
func Capture(ctx context.Context, sink Sink, h *digest.Hasher, dir string) (recipe.Ref, error) {
	c := &capturer{sink: sink, h: h, links: map[[2]uint64]uint64{}}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return recipe.Ref{}, err
	}
	defer unix.Close(fd)
	return c.dir(ctx, fd)
}

func (c *capturer) dir(ctx context.Context, fd int) (recipe.Ref, error) {
	copied, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return recipe.Ref{}, err
	}
	f := os.NewFile(uintptr(copied), "dir")
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return recipe.Ref{}, err
	}
	slices.Sort(names)
	b := recipe.NewDirBuilder(c.sink, c.h)
	for _, name := range names {
		e, below, err := c.entry(ctx, fd, name)
		if err == nil {
			err = b.Add(ctx, e, below)
		}
		if err != nil {
			return recipe.Ref{}, fmt.Errorf("%q: %w", name, err)
		}
	}
	return b.Finish(ctx)
}

func (c *capturer) entry(ctx context.Context, dir int, name string) (e recipe.Entry, below recipe.Totals, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return e, below, err
	}
	e = recipe.Entry{Name: name, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		MTime: recipe.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}}
	if e.Xattrs, err = c.xattrs(ctx, dir, name); err != nil {
		return e, below, err
	}
	if key := [2]uint64{st.Dev, st.Ino}; st.Nlink > 1 && !e.IsDir() {
		if c.links[key] == 0 {
			c.links[key] = uint64(len(c.links)) + 1
		}
		e.LinkGroup = c.links[key]
	}
	switch e.Mode & recipe.ModeType {
	case recipe.ModeDir, recipe.ModeRegular:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return e, below, err
		}
		defer unix.Close(fd)
		if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil {
			e.Flags = uint32(flags) & 0xf0 // immutable, append-only, nodump, noatime
		}
		if e.IsDir() {
			ref, err := c.dir(ctx, fd)
			e.Content = recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}
			return e, ref.Totals, err
		}
		e.Size = uint64(st.Size)
		e.Content, err = c.content(ctx, fd, st.Size)
		return e, below, err
	case recipe.ModeSymlink:
		buf := make([]byte, 5000)
		n, err := unix.Readlinkat(dir, name, buf)
		e.Target = string(buf[:max(n, 0)])
		return e, below, err
	case recipe.ModeBlock, recipe.ModeChar:
		e.Rdev = st.Rdev
	}
	return e, below, nil
}

func (c *capturer) xattrs(ctx context.Context, dir int, name string) (xs []recipe.Xattr, err error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	p := fmt.Sprintf("/proc/self/fd/%d", fd)
	list, value := make([]byte, 64<<10), make([]byte, 64<<10)
	n, err := unix.Listxattr(p, list)
	if err != nil || n == 0 {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		n, err := unix.Getxattr(p, name, value)
		if err != nil {
			return nil, err
		}
		x := recipe.Xattr{Name: name, Value: bytes.Clone(value[:n])}
		if n > 1000 {
			d, err := c.sink.PutChunk(ctx, value[:n])
			if err != nil {
				return nil, err
			}
			x = recipe.Xattr{Name: name, Chunk: d, Size: uint32(n)}
		}
		xs = append(xs, x)
	}
	return xs, nil
}

func (c *capturer) content(ctx context.Context, fd int, size int64) (recipe.Content, error) {
	b := recipe.NewStreamBuilder(c.sink, c.h)
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = size, nil
		}
		if err != nil {
			return recipe.Content{}, err
		}
		if data > off {
			if err := b.Add(ctx, recipe.Extent{Hole: true, Length: uint64(data - off)}); err != nil {
				return recipe.Content{}, err
			}
		}
		if data == size {
			break
		}
		end, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return recipe.Content{}, err
		}
		if err := c.data(ctx, b, fd, data, min(end, size)); err != nil {
			return recipe.Content{}, err
		}
		off = end
	}
	content, _, err := b.Finish(ctx)
	return content, err
}

func (c *capturer) data(ctx context.Context, b *recipe.StreamBuilder, fd int, from, to int64) error {
	piece := int64(testPiece)
	if to-from < testSmall {
		piece = testSmall
	}
	buf := make([]byte, min(piece, to-from))
	for from < to {
		n, err := unix.Pread(fd, buf[:min(piece, to-from)], from)
		if err != nil {
			return err
		}
		d, err := c.sink.PutChunk(ctx, buf[:n])
		if err == nil {
			err = b.Add(ctx, recipe.Extent{Length: uint64(n), Digest: d})
		}
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}
