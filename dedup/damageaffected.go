package dedup

import (
	"context"
	"io"
	"slices"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// Harmed returns the savesets that cannot be read whole: the next backup of their tasks must be a FULL, which asks for all
// that is missed. It costs a walk over the nodes of the savesets, and nothing while there is no damage.
func (s *Store) Harmed(ctx context.Context) (map[SavesetID]bool, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	if !s.damage.any.Load() {
		return nil, nil
	}
	if err := s.waitSettled(ctx); err != nil {
		return nil, err
	}
	w := s.newTreeWalk()
	out := make(map[SavesetID]bool)
	for _, m := range s.sets.list() {
		for _, root := range []digest.Digest{m.Root.Digest, m.Side.Digest} {
			harmed, err := w.root(ctx, root)
			if err != nil {
				return nil, wrap("list harmed savesets", m.ID.String(), err)
			}
			if harmed || m.State.Doubt != "" {
				out[m.ID] = true
			}
		}
	}
	return out, nil
}

// Affected walks all savesets and tells which of their files the damage list harms, at most limit paths a saveset. A
// saveset whose manifest or newest state is damaged is among them, unless that has a second copy.
func (s *Store) Affected(ctx context.Context, limit int) ([]Affected, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	if !s.damage.any.Load() {
		return nil, nil
	}
	if err := s.waitSettled(ctx); err != nil {
		return nil, err
	}
	a := &affected{s: s, walk: s.newTreeWalk(), counts: make(map[digest.Digest]int64)}
	out := slices.DeleteFunc(s.damage.harmedObjects(), func(a Affected) bool { return s.hasCopy(ctx, a.Object) })
	for _, m := range s.sets.list() {
		x, harmed, err := a.saveset(ctx, m, limit)
		if err != nil {
			return nil, wrap("list affected files", m.ID.String(), err)
		}
		if harmed {
			out = append(out, x)
		}
	}
	return out, nil
}

// harmedObjects returns the savesets whose manifests and states are on the list.
func (l *damageList) harmedObjects() []Affected {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Affected
	for _, r := range l.rows {
		if r.sort == damagedObject && !r.Saveset.IsZero() {
			out = append(out, Affected{Saveset: r.Saveset, Object: r.Object})
		}
	}
	return out
}

// affected is one search for the files that damage harms. It goes only where the walk over the nodes saw harm, and counts
// what is below a shared directory once.
type affected struct {
	s      *Store
	walk   *treeWalk
	counts map[digest.Digest]int64 // harmed entries below a directory's node
	paths  []string
	limit  int
}

func (a *affected) saveset(ctx context.Context, m Manifest, limit int) (Affected, bool, error) {
	x := Affected{Saveset: m.ID}
	var err error
	if x.Side, err = a.walk.root(ctx, m.Side.Digest); err != nil {
		return x, false, err
	}
	harmed, err := a.walk.root(ctx, m.Root.Digest)
	if err != nil || !harmed {
		return x, x.Side, err
	}
	a.paths, a.limit = nil, limit
	n, err := a.dir(ctx, m.Root.Digest, "")
	x.Paths, x.More = a.paths, n-int64(len(a.paths))
	return x, true, err
}

// dir lists and counts what is harmed in a directory, below the node with this digest. A node that cannot be read, or that
// is sealed, harms the directory itself.
func (a *affected) dir(ctx context.Context, d digest.Digest, path string) (n int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if n, ok := a.counts[d]; ok && len(a.paths) >= a.limit {
		return n, nil
	}
	defer func() {
		if err == nil {
			a.counts[d] = n
		}
	}()
	rec, node, err := a.node(ctx, d)
	if err != nil || rec == nil {
		return a.add(path), err
	}
	if node.Kind == recipe.DirInner {
		for _, c := range node.Children {
			if err := a.below(ctx, c.Digest, path, &n); err != nil {
				return n, err
			}
		}
		return n, nil
	}
	for it := recipe.NewDirIter(oneNode(rec), d); ; {
		e, _, err := it.Next(ctx)
		if err == io.EOF {
			return n, nil
		}
		if err != nil { // a leaf that is sealed, or makes no sense
			return n + a.add(path), ctx.Err()
		}
		if err := a.entry(ctx, &e, path, &n); err != nil {
			return n, err
		}
	}
}

// oneNode is a recipe.Source of one leaf.
type oneNode []byte

func (rec oneNode) Node(context.Context, digest.Digest) ([]byte, error) { return rec, nil }

func (a *affected) below(ctx context.Context, d digest.Digest, path string, n *int64) error {
	harmed, err := a.walk.root(ctx, d)
	if err != nil || !harmed {
		return err
	}
	more, err := a.dir(ctx, d, path)
	*n += more
	return err
}

// entry judges one entry: a directory by what is below it, all else by its content. Extended attributes count for both.
func (a *affected) entry(ctx context.Context, e *recipe.Entry, path string, n *int64) error {
	if path != "" {
		path += "/"
	}
	path += e.Name
	for _, x := range e.Xattrs {
		if a.s.damage.has(x.Chunk) {
			*n += a.add(path)
			break
		}
	}
	switch d := e.Content.Digest; {
	case d.IsZero():
		return nil
	case e.IsDir():
		return a.below(ctx, d, path, n)
	case e.Content.Kind == recipe.OneChunk:
		if a.s.damage.has(d) {
			*n += a.add(path)
		}
		return nil
	default:
		harmed, err := a.walk.root(ctx, d)
		if err == nil && harmed {
			*n += a.add(path)
		}
		return err
	}
}

// add lists a path while there is room; it is counted in any case.
func (a *affected) add(path string) int64 {
	if len(a.paths) < a.limit && !slices.Contains(a.paths[max(0, len(a.paths)-1):], path) {
		a.paths = append(a.paths, path)
	}
	return 1
}

// node reads a node; no record when it cannot be read.
func (a *affected) node(ctx context.Context, d digest.Digest) ([]byte, recipe.Node, error) {
	places, err := a.s.locate(ctx, []digest.Digest{d})
	if err != nil || places[0].dir == nil {
		return nil, recipe.Node{}, err
	}
	rec, err := a.s.read(ctx, places[0])
	if k := KindOf(err); k == Damaged || k == NotFound {
		return nil, recipe.Node{}, nil
	}
	if err != nil {
		return nil, recipe.Node{}, err
	}
	node, err := recipe.ParseClear(rec)
	if err != nil {
		return nil, recipe.Node{}, nil
	}
	return rec, node, nil
}
