package server

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"coffer/api"
)

// tarPage is how many entries of a directory are held in memory at once.
const tarPage = 1000

// writeTar writes the object at root, and everything below it, as a POSIX tar: names relative to "/", nanosecond times,
// extended attributes (SCHILY.xattr records, which GNU tar and bsdtar restore), hard links, devices. Sockets have no
// form in tar and are left out.
func writeTar(ctx context.Context, w io.Writer, t Tree, root string, entry api.Entry) error {
	a := &tarWriter{tar: tar.NewWriter(w), tree: t, links: map[uint64]string{}}
	if root != "/" {
		if err := a.add(ctx, root, entry); err != nil {
			return err
		}
	}
	if entry.Type == api.EntryDir {
		if err := a.below(ctx, root); err != nil {
			return err
		}
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("tar of %s: %w", root, err)
	}
	return nil
}

type tarWriter struct {
	tar   *tar.Writer
	tree  Tree
	links map[uint64]string // link group → name of its first member
}

// below adds the entries of a directory, and theirs.
func (a *tarWriter) below(ctx context.Context, dir string) error {
	for after := ""; ; {
		entries, more, err := a.tree.List(ctx, dir, after, tarPage)
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		for i := range entries {
			p := path.Join(dir, entries[i].RawName())
			if err := a.add(ctx, p, entries[i]); err != nil {
				return err
			}
			if entries[i].Type != api.EntryDir {
				continue
			}
			if err := a.below(ctx, p); err != nil {
				return err
			}
		}
		if !more || len(entries) == 0 {
			return nil
		}
		after = entries[len(entries)-1].RawName()
	}
}

// add writes one entry with its content.
func (a *tarWriter) add(ctx context.Context, p string, e api.Entry) error {
	if e.Type == api.EntrySocket {
		return nil
	}
	h := a.header(p, e)
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("tar header of %s: %w", p, err)
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	f, err := a.tree.Open(ctx, p)
	if err != nil {
		return fmt.Errorf("open %s: %w", p, err)
	}
	err = errors.Join(copyExactly(a.tar, f, e.Size), f.Close())
	if err != nil {
		return fmt.Errorf("read %s: %w", p, err)
	}
	return nil
}

func (a *tarWriter) header(p string, e api.Entry) *tar.Header {
	name := strings.TrimPrefix(p, "/")
	h := &tar.Header{Name: name, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), Format: tar.FormatPAX,
		ModTime: time.Unix(e.MTimeSec, int64(e.MTimeNsec)), PAXRecords: map[string]string{}}
	for _, x := range e.Xattrs {
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	switch e.Type {
	case api.EntryDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case api.EntrySymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.RawTarget()
	case api.EntryChar, api.EntryBlock:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
		if e.Type == api.EntryBlock {
			h.Typeflag = tar.TypeBlock
		}
	case api.EntryFifo:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	if e.LinkGroup == 0 || e.Type == api.EntryDir {
		return h
	}
	first, known := a.links[e.LinkGroup]
	if !known {
		a.links[e.LinkGroup] = name
		return h
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return h
}
