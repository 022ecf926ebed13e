package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strings"
)

// List implements Store. It holds the names of one directory per level in memory.
func (d *Dir) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		l := lister{d: d, ctx: ctx, prefix: prefix, after: after, yield: yield}
		l.dir("")
	}
}

type lister struct {
	d             *Dir
	ctx           context.Context // of one List call
	prefix, after string
	yield         func(Info, error) bool
}

// dir lists what lies below a name that ends in a slash or is empty. It returns false when the listing is over.
func (l *lister) dir(base string) bool {
	if err := l.ctx.Err(); err != nil {
		return l.fail(err)
	}
	names, err := l.d.fs.List(filepath.Join(l.d.root, filepath.FromSlash(base)))
	if errors.Is(err, fs.ErrNotExist) && base != "" {
		return true // removed meanwhile
	}
	if err != nil {
		return l.fail(err)
	}
	entries, ok := l.entries(base, names)
	if !ok {
		return false
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name, "/") {
			if !l.dir(e.Name) {
				return false
			}
		} else if !l.yield(e, nil) {
			return false
		}
	}
	return true
}

// entries returns those of a directory that the listing wants, in the order of blob names: a directory sorts with the
// slash at its end.
func (l *lister) entries(base string, names []string) ([]Info, bool) {
	var list []Info
	for _, n := range names {
		if !validPart(n) || !l.mayHold(base+n) {
			continue
		}
		st, err := l.d.fs.Stat(filepath.Join(l.d.root, filepath.FromSlash(base+n)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, l.fail(err)
		}
		switch {
		case st.IsDir() && l.wantsDir(base+n+"/"):
			list = append(list, Info{Name: base + n + "/"})
		case !st.IsDir() && strings.HasPrefix(base+n, l.prefix) && base+n > l.after:
			list = append(list, Info{Name: base + n, Size: st.Size()})
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list, true
}

// mayHold saves the stat of names that neither are wanted nor lead to one.
func (l *lister) mayHold(name string) bool {
	return strings.HasPrefix(name, l.prefix) || strings.HasPrefix(l.prefix, name+"/")
}

// wantsDir tells whether a name below dir (which ends in a slash) can begin with prefix and follow after.
func (l *lister) wantsDir(dir string) bool {
	if !strings.HasPrefix(dir, l.prefix) && !strings.HasPrefix(l.prefix, dir) {
		return false
	}
	return dir > l.after || strings.HasPrefix(l.after, dir)
}

func (l *lister) fail(err error) bool {
	l.yield(Info{}, fmt.Errorf("list %q: %w", l.prefix, err))
	return false
}
