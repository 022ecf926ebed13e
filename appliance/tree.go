package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"coffer/api"
	"coffer/api/server"
	"coffer/dedup"
	"coffer/dedup/recipe"
)

// tree shows an open saveset to the API.
type tree struct{ view reading }

var _ server.Tree = (*tree)(nil)

// Close implements server.Tree.
func (t *tree) Close() error { return apiError(t.view.Close()) }

// root is the entry of "/", of which a saveset keeps no metadata.
func (t *tree) root() (recipe.Entry, recipe.Totals) {
	r := t.view.Manifest().Root
	return recipe.Entry{Mode: recipe.ModeDir | 0o755, Content: recipe.Content{Kind: recipe.DirTree, Digest: r.Digest}}, r.Totals
}

// find walks down to the entry at path.
func (t *tree) find(ctx context.Context, path string) (recipe.Entry, recipe.Totals, error) {
	e, below := t.root()
	rest := strings.Trim(path, "/")
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if !e.IsDir() {
			return e, below, notThere(path)
		}
		var err error
		e, below, err = recipe.Lookup(ctx, t.view, e.Content.Digest, name)
		if errors.Is(err, recipe.ErrNotFound) {
			return e, below, notThere(path)
		}
		if err != nil {
			return e, below, apiError(fmt.Errorf("look up %q: %w", path, err))
		}
	}
	return e, below, nil
}

func notThere(path string) error {
	text, _ := api.Text(path)
	return api.Errorf(api.CodeNotFound, "there is no %s in the saveset", text)
}

// Stat implements server.Tree.
func (t *tree) Stat(ctx context.Context, path string) (api.Entry, error) {
	e, below, err := t.find(ctx, path)
	if err != nil {
		return api.Entry{}, err
	}
	return t.entry(ctx, e, below)
}

// List implements server.Tree.
func (t *tree) List(ctx context.Context, path, after string, limit int) ([]api.Entry, bool, error) {
	dir, _, err := t.find(ctx, path)
	if err != nil {
		return nil, false, err
	}
	if !dir.IsDir() {
		text, _ := api.Text(path)
		return nil, false, api.Errorf(api.CodeBadRequest, "%s is not a directory", text)
	}
	it := recipe.NewDirIter(t.view, dir.Content.Digest)
	if after != "" {
		if err := it.SeekAfter(ctx, after); err != nil {
			return nil, false, apiError(err)
		}
	}
	var out []api.Entry
	for {
		e, below, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, false, nil
		}
		if err != nil {
			return nil, false, apiError(fmt.Errorf("list %q: %w", path, err))
		}
		if len(out) == limit {
			return out, true, nil
		}
		entry, err := t.entry(ctx, e, below)
		if err != nil {
			return nil, false, err
		}
		out = append(out, entry)
	}
}

// entry converts an entry, and reads the long values of its extended attributes.
func (t *tree) entry(ctx context.Context, e recipe.Entry, below recipe.Totals) (api.Entry, error) {
	out := api.Entry{Type: entryType(e.Mode), Mode: e.Mode &^ recipe.ModeType, UID: e.UID, GID: e.GID, Size: int64(e.Size), LinkGroup: e.LinkGroup}
	out.SetName(e.Name)
	out.SetMTime(e.MTime.Sec, e.MTime.Nsec)
	switch out.Type {
	case api.EntryDir:
		out.Size, out.EntryCount = int64(below.Bytes), int64(below.Entries)
	case api.EntrySymlink:
		out.SetTarget(e.Target)
	case api.EntryChar, api.EntryBlock:
		out.Major, out.Minor = unix.Major(e.Rdev), unix.Minor(e.Rdev)
	}
	for _, x := range e.Xattrs {
		value := x.Value
		if !x.Chunk.IsZero() {
			var err error
			if value, err = t.view.Chunk(ctx, x.Chunk); err != nil {
				return out, apiError(fmt.Errorf("read attribute %s of %q: %w", x.Name, e.Name, err))
			}
		}
		out.Xattrs = append(out.Xattrs, api.Xattr{Name: x.Name, Value: value})
	}
	return out, nil
}

func entryType(mode uint32) api.EntryType {
	switch mode & recipe.ModeType {
	case recipe.ModeDir:
		return api.EntryDir
	case recipe.ModeSymlink:
		return api.EntrySymlink
	case recipe.ModeChar:
		return api.EntryChar
	case recipe.ModeBlock:
		return api.EntryBlock
	case recipe.ModeFifo:
		return api.EntryFifo
	case recipe.ModeSocket:
		return api.EntrySocket
	}
	return api.EntryFile
}

// Open implements server.Tree.
func (t *tree) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	e, _, err := t.find(ctx, path)
	if err != nil {
		return nil, err
	}
	if !e.IsRegular() {
		text, _ := api.Text(path)
		return nil, api.Errorf(api.CodeBadRequest, "%s is not a regular file", text)
	}
	f, err := dedup.OpenFile(t.view, e)
	if err != nil {
		return nil, apiError(err)
	}
	return &content{ctx: ctx, file: f}, nil
}

// content reads a file from its beginning, holes as zeros. It is one reader's, not for concurrent use.
type content struct {
	ctx  context.Context // of the call that reads: io.Reader has no place for it
	file *dedup.File
	at   int64
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	left := c.file.Size() - c.at
	if left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), left)]
	if err := c.file.ReadAt(c.ctx, p, c.at); err != nil {
		return 0, apiError(err)
	}
	c.at += int64(len(p))
	return len(p), nil
}

// Close implements io.Closer.
func (c *content) Close() error { return nil }
