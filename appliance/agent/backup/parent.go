package backup

import (
	"context"
	"io"

	"coffer/dedup/recipe"
)

// oldEntry is an entry of the parent run with its side row.
type oldEntry struct {
	e     recipe.Entry
	below recipe.Totals
	row   recipe.SideRow
}

// old is an oldEntry whose directory, if it is one, is not walked.
type oldSkip struct{ was *oldEntry }

func old(was *oldEntry) oldSkip { return oldSkip{was} }

// skip passes over the side rows of what is below the entry.
func (o oldSkip) skip(ctx context.Context, side *recipe.SideIter) error {
	if o.was == nil || !o.was.e.IsDir() || o.was.below.Entries == 0 {
		return nil
	}
	return side.Skip(ctx, o.was.below.Entries)
}

// oldDir goes through a directory of the parent run beside the new one. The nil oldDir is empty.
//
// INVARIANT: the side stream stands at the row of the directory's next entry; rows of what is below an entry are passed
// over by whoever was given the entry, whether it walks there or not.
type oldDir struct {
	it      *recipe.DirIter
	side    *recipe.SideIter
	cur     oldEntry
	have    bool   // cur is not used yet; its row is read
	left    uint64 // rows of this directory, all that is below included, that were not passed over
	dropped bool   // some entry was not asked for
}

func (p *planner) oldDir(dir recipe.Ref) *oldDir {
	return &oldDir{it: recipe.NewDirIter(p.job.run, dir.Digest), side: p.side, left: dir.Totals.Entries}
}

// find returns the entry of this name, or nil. Names must ascend.
func (o *oldDir) find(ctx context.Context, name string) (*oldEntry, error) {
	for o != nil {
		if !o.have {
			if o.left == 0 {
				return nil, nil
			}
			if err := o.next(ctx); err != nil {
				return nil, err
			}
		}
		if o.cur.e.Name > name {
			return nil, nil
		}
		o.have = false
		if o.cur.e.IsDir() {
			o.left -= min(o.left, o.cur.below.Entries)
		}
		if o.cur.e.Name == name {
			return &o.cur, nil
		}
		o.dropped = true
		if err := old(&o.cur).skip(ctx, o.side); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// next reads an entry and its side row.
func (o *oldDir) next(ctx context.Context) (err error) {
	if o.cur.e, o.cur.below, err = o.it.Next(ctx); err == nil {
		o.cur.row, err = o.side.Next(ctx)
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF // the totals promise more
	}
	if err != nil {
		return err
	}
	o.have = true
	o.left--
	return nil
}

// end passes over what is left, and reports whether every entry was asked for.
func (o *oldDir) end(ctx context.Context) (drained bool, err error) {
	if o == nil {
		return false, nil
	}
	drained = !o.dropped && !o.have && o.left == 0
	if o.left > 0 {
		err = o.side.Skip(ctx, o.left)
	}
	return drained, err
}
