package savesettree

import (
	"context"
	"errors"
	"io"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// dir is a directory inside a saveset.
type dir struct {
	node
	parent *dir   // nil for the saveset's root
	rank   uint64 // in parent
}

var _ fusefs.Dir = (*dir)(nil)

// Attr implements fusefs.Node. One link means: how many subdirectories there are is not known (find understands that).
func (d *dir) Attr(context.Context) (fusefs.Attr, error) {
	a := d.attr()
	a.Size, a.Blocks = blockSize, blockSize/sector
	return a, nil
}

// Lookup implements fusefs.Dir.
func (d *dir) Lookup(ctx context.Context, name string) (n fusefs.Node, err error) {
	err = d.set.use(ctx, func(v View) error {
		e, _, rank, err := recipe.LookupRank(ctx, v, d.e.Content.Digest, name)
		if err != nil {
			return err
		}
		n = newNode(d, rank, e)
		return nil
	})
	if errors.Is(err, recipe.ErrNotFound) {
		return d.lookupParts(ctx, name)
	}
	return n, d.wrap("look up in", err)
}

// List implements fusefs.Dir. Positions are twice the ranks: any of them is found without reading what comes before. An odd one
// stands between a disk image and the folder of its parts.
func (d *dir) List(ctx context.Context, from uint64, yield func(fusefs.Dirent) bool) error {
	if from > 0 && d.set.sweep.lists() {
		d.set.look()
	}
	return d.wrap("list", d.set.use(ctx, func(v View) error {
		it := recipe.NewRankIter(v, d.e.Content.Digest)
		if from > 0 {
			if err := it.SeekRank(ctx, from/2); err != nil {
				return err
			}
		}
		for {
			e, below, rank, err := it.Next(ctx)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			n, next := newNode(d, rank, e), 2*(rank+1+below.Entries)
			disk, ok := d.hasParts(ctx, v, n)
			if !ok {
				if !yield(fusefs.Dirent{Name: e.Name, Node: n, Next: next}) {
					return nil
				}
				continue
			}
			if from != next-1 && !yield(fusefs.Dirent{Name: disk.e.Name, Node: n, Next: next - 1}) {
				return nil
			}
			if !yield(fusefs.Dirent{Name: disk.e.Name + partsSuffix, Node: disk.parts(), Next: next}) {
				return nil
			}
		}
	}))
}

func (d *dir) digest() digest.Digest { return d.e.Content.Digest }
