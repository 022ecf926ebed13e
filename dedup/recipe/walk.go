package recipe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"coffer/dedup/digest"
)

// MaxDepth is how many directories deep a Walker goes; what is deeper is refused as TooLong, for each level costs
// memory.
const MaxDepth = 1 << 16

// Step is one entry that a Walker meets.
type Step struct {
	Depth int // 0 for the entries of the root directory
	Entry Entry
	Below Totals  // of a directory; zero for all others
	Side  SideRow // zero without a side stream
}

// Walker goes through a whole tree depth first, in name order, a directory before what is in it, and reads nodes as
// it needs them. With a side stream it reads each entry's row along. Not safe for concurrent use.
type Walker struct {
	src   Source
	side  *SideIter // nil without a side stream
	dirs  []*DirIter
	depth int      // open directories: dirs[:depth]
	names []string // of the entries that lead to the last step, its own included
	down  Step     // the directory that the next Next enters; Entry.Name is "" if there is none
	err   error
}

// NewWalker returns a Walker before the first entry of the tree whose root directory's node is root. side is the
// root of the side stream that belongs to it, or zero.
func NewWalker(src Source, root, side digest.Digest) *Walker {
	w := &Walker{src: src}
	if !side.IsZero() {
		w.side = NewSideIter(src, side)
	}
	w.err = w.enter(root, nil)
	return w
}

// enter puts an iterator over a directory on the stack.
func (w *Walker) enter(dir digest.Digest, totals *Totals) error {
	if w.depth == MaxDepth {
		return fail(TooLong, "directories are more than %d deep", MaxDepth)
	}
	if w.depth == len(w.dirs) {
		w.dirs = append(w.dirs, new(DirIter))
	}
	w.dirs[w.depth].reset(w.src, dir, totals)
	w.depth++
	w.names = append(w.names, "")
	return nil
}

// Next returns the next entry; io.EOF at the end. After any other error it returns it again.
func (w *Walker) Next(ctx context.Context) (Step, error) {
	var s Step
	if w.err == nil {
		w.err = w.next(ctx, &s)
	}
	if w.err != nil {
		return Step{}, w.err
	}
	return s, nil
}

func (w *Walker) next(ctx context.Context, s *Step) error {
	if w.down.Entry.Name != "" {
		below := w.down.Below
		if err := w.enter(w.down.Entry.Content.Digest, &below); err != nil {
			return err
		}
		w.down = Step{}
	}
	for {
		err := w.dirs[w.depth-1].next(ctx, &s.Entry, &s.Below)
		if err == nil {
			break
		}
		if err != io.EOF {
			return fmt.Errorf("directory %q: %w", strings.Join(w.names[:w.depth-1], "/"), err)
		}
		if w.depth == 1 {
			return w.end(ctx)
		}
		w.depth--
		w.names = w.names[:w.depth]
	}
	return w.met(ctx, s)
}

// met completes the step of an entry.
func (w *Walker) met(ctx context.Context, s *Step) (err error) {
	s.Depth = w.depth - 1
	w.names[s.Depth] = s.Entry.Name
	if w.side != nil {
		if s.Side, err = w.side.Next(ctx); err != nil {
			return fmt.Errorf("side row of %q: %w", w.Path(), noEOF(err))
		}
	}
	if s.Entry.IsDir() {
		w.down = *s
	}
	return nil
}

// end checks that the side stream ends with the tree.
func (w *Walker) end(ctx context.Context) error {
	if w.side == nil {
		return io.EOF
	}
	_, err := w.side.Next(ctx)
	if err == nil {
		err = fail(Mismatch, "side stream has more rows than the tree has entries")
	}
	return err
}

// noEOF turns an end that comes too early into an error that nobody takes for the end of the walk.
func noEOF(err error) error {
	if err == io.EOF {
		return fail(Mismatch, "side stream has fewer rows than the tree has entries")
	}
	return err
}

// Path returns the path of the last step, names joined by '/', without one at its start.
func (w *Walker) Path() string { return strings.Join(w.names, "/") }

// SkipDir makes the next Next leave out what is in the directory of the last step, its side rows too. Nodes that
// lie wholly within it are not read. It does nothing after a step that is no directory.
func (w *Walker) SkipDir(ctx context.Context) error {
	if w.err != nil || w.down.Entry.Name == "" {
		return w.err
	}
	n := w.down.Below.Entries
	w.down = Step{}
	if w.side != nil {
		if err := w.side.Skip(ctx, n); err != nil {
			w.err = noEOF(err)
		}
	}
	return w.err
}

// Walk calls fn for every entry of a tree, as a Walker meets them, with its path. fn may return SkipDir for a
// directory to leave out what is in it; any other error ends the walk and is returned as it is.
func Walk(ctx context.Context, src Source, root, side digest.Digest, fn func(path string, s Step) error) error {
	w := NewWalker(src, root, side)
	for {
		s, err := w.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		err = fn(w.Path(), s)
		if errors.Is(err, SkipDir) {
			err = w.SkipDir(ctx)
		}
		if err != nil {
			return err
		}
	}
}
