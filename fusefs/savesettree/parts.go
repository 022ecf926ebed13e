package savesettree

import (
	"context"
	"errors"
	"strings"

	"coffer/dedup"
	"coffer/dedup/recipe"
	"coffer/fusefs"
	"coffer/fusefs/disktree"
)

// partsSuffix makes the name of the folder that shows what is inside a disk image. An entry of the saveset that has this name
// itself comes first.
const partsSuffix = ".parts"

// parts returns the folder of a disk image's file systems.
func (f *file) parts() fusefs.Node {
	id := fusefs.ID{Hi: 1<<63 | f.ino*0x9e3779b97f4a7c15>>1&^(disktree.IDs-1)}
	return disktree.New(disk{f}, id, fusefs.Time{Sec: f.e.MTime.Sec, Nsec: f.e.MTime.Nsec})
}

// hasParts returns the disk image that a node is, if it is one and shows its parts.
func (d *dir) hasParts(ctx context.Context, v View, n fusefs.Node) (*file, bool) {
	f, ok := n.(*file)
	if !ok || f.e.Content.Kind != recipe.ImageTree {
		return nil, false
	}
	_, _, err := recipe.Lookup(ctx, v, d.e.Content.Digest, f.e.Name+partsSuffix)
	return f, errors.Is(err, recipe.ErrNotFound)
}

// lookupParts finds the folder of a disk image by its name, where no entry has it.
func (d *dir) lookupParts(ctx context.Context, name string) (fusefs.Node, error) {
	image, ok := strings.CutSuffix(name, partsSuffix)
	if !ok || image == "" {
		return nil, notExist("look up", name)
	}
	n, err := d.Lookup(ctx, image)
	if err != nil {
		return nil, err
	}
	if f, ok := n.(*file); ok && f.e.Content.Kind == recipe.ImageTree {
		return f.parts(), nil
	}
	return nil, notExist("look up", name)
}

// disk is a disk image as disktree reads it.
type disk struct{ *file }

var _ disktree.Disk = disk{}

// Size implements disktree.Disk.
func (d disk) Size() int64 { return int64(d.e.Size) }

// ReadAt implements disktree.Disk.
func (d disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.wrap("read", d.read(ctx, func(r *dedup.File) error { return r.ReadAt(ctx, p, off) }))
}
