package backup

import (
	"context"
	"fmt"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// maxPending is how many entries of a directory in which nothing changed are kept before it is built after all.
const maxPending = 4096

// builder makes tree and side stream of the items, in their order.
type builder struct {
	*job
	hash   *digest.Hasher
	into   recipe.Sink
	side   *recipe.SideBuilder
	levels []*level // the open directories; those beyond depth are for reuse
	depth  int
}

// level is a directory that is being built. While all is as the parent has it, entries only wait.
type level struct {
	dir     item
	same    bool
	pending []pending
	tree    *recipe.DirBuilder
	built   bool // tree is in use
}

type pending struct {
	e     recipe.Entry
	below recipe.Totals
}

func newBuilder(j *job) *builder {
	b := &builder{job: j, hash: digest.NewHasher(j.keys.Node)}
	b.into = j.sink(j.run)
	b.side = recipe.NewSideBuilder(b.into, b.hash)
	b.push(item{}) // the root, which has no entry
	return b
}

func (b *builder) run(ctx context.Context) (root, side recipe.Ref, err error) {
	for {
		var next *batch
		select {
		case next = <-b.queue:
		case <-ctx.Done():
			return root, side, context.Cause(ctx)
		}
		if next == nil {
			break
		}
		done, err := b.batch(ctx, next)
		if err != nil {
			return root, side, fmt.Errorf("build the recipe: %w", err)
		}
		root = done
	}
	if b.depth != 0 {
		return root, side, context.Canceled // the planner gave up
	}
	if side, err = b.side.Finish(ctx); err != nil {
		return root, side, fmt.Errorf("build the side stream: %w", err)
	}
	return root, side, nil
}

// batch adds the items of a batch. It returns the root when that is done, which is with the last item of all.
func (b *builder) batch(ctx context.Context, next *batch) (root recipe.Ref, err error) {
	if next.done != nil {
		select {
		case <-next.done:
		case <-ctx.Done():
			return root, context.Cause(ctx)
		}
	}
	same := uint64(0)
	for i := range next.items {
		it := &next.items[i]
		if it.op == opLeave {
			root, err = b.leave(ctx, it)
		} else {
			err = b.item(ctx, it)
		}
		if err != nil {
			return root, err
		}
		if it.same {
			same++
		}
	}
	b.rep.Unchanged.Add(same)
	return root, nil
}

func (b *builder) top() *level { return b.levels[b.depth-1] }

func (b *builder) push(dir item) {
	if b.depth == len(b.levels) {
		b.levels = append(b.levels, &level{})
	}
	l := b.levels[b.depth]
	b.depth++
	l.dir, l.same, l.pending, l.built = dir, dir.e.Content.Kind == recipe.DirTree, l.pending[:0], false
}

// item adds an entry, or opens a directory, whose entry is added when it is complete.
func (b *builder) item(ctx context.Context, it *item) error {
	if it.link != nil {
		it.takeLink()
	}
	if it.failed {
		b.top().same = false
		return b.start(ctx, b.top())
	}
	b.rep.Entries.Add(1)
	if err := b.side.Add(ctx, it.side, it.e.Name); err != nil {
		return err
	}
	if it.op == opEnter {
		b.push(*it)
		return nil
	}
	return b.add(ctx, b.top(), it.e, recipe.Totals{}, it.same)
}

// takeLink lets the further names of a file have what its first name has.
func (it *item) takeLink() {
	l := it.link
	if it.first {
		l.e, l.side, l.failed = it.e, it.side, it.failed
		return
	}
	name := it.e.Name
	it.e, it.side, it.failed = l.e, l.side, l.failed
	it.e.Name = name
}

// leave completes the innermost directory and adds its entry to the one above it; of the root it returns the reference.
func (b *builder) leave(ctx context.Context, it *item) (root recipe.Ref, err error) {
	l := b.top()
	ref := recipe.Ref{Digest: l.dir.e.Content.Digest, Totals: l.dir.below}
	kept := l.same && !l.built && it.drained
	if !kept {
		if err := b.start(ctx, l); err != nil {
			return ref, err
		}
		if ref, err = l.tree.Finish(ctx); err != nil {
			return ref, err
		}
	}
	b.depth--
	if b.depth == 0 {
		return ref, nil
	}
	same := l.dir.same && ref.Digest == l.dir.e.Content.Digest
	e := l.dir.e
	e.Content = recipe.Content{Kind: recipe.DirTree, Digest: ref.Digest}
	return recipe.Ref{}, b.add(ctx, b.top(), e, ref.Totals, same)
}

func (b *builder) add(ctx context.Context, l *level, e recipe.Entry, below recipe.Totals, same bool) error {
	l.same = l.same && same
	if !l.built && l.same && len(l.pending) < maxPending {
		l.pending = append(l.pending, pending{e, below})
		return nil
	}
	if err := b.start(ctx, l); err != nil {
		return err
	}
	return l.tree.Add(ctx, e, below)
}

// start begins to build a directory with the entries that waited.
func (b *builder) start(ctx context.Context, l *level) error {
	if l.built {
		return nil
	}
	if l.tree == nil {
		l.tree = recipe.NewDirBuilder(b.into, b.hash)
	}
	l.built = true
	for i := range l.pending {
		if err := l.tree.Add(ctx, l.pending[i].e, l.pending[i].below); err != nil {
			return err
		}
	}
	clear(l.pending)
	l.pending = l.pending[:0]
	return nil
}
