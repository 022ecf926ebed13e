package dedup

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

const (
	// walkBatch is how many nodes are taken at a time: they are read in the order in which they are stored, a frame once.
	walkBatch = 32 << 10
	// walkWorkers bounds the goroutines of a walk.
	walkWorkers = 2
)

// nodePlace is a node that a walk still has to enter.
type nodePlace struct {
	place
	digest digest.Digest
}

// walk goes through recipes from roots downward, in no order. It reads clear parts only, so that sealed nodes are no
// matter. Its functions are called one at a time.
type walk struct {
	find *placeFinder
	// reach is told of each chunk and node met, and reports whether a node is to be entered.
	reach func(p place, d *digest.Digest) bool
	// lost is told of a chunk or node that is not found or cannot be read; an error ends the walk.
	lost func(d digest.Digest, node bool, cause error) error
	// met is told the number of nodes that were entered.
	met func(nodes int)

	mu      sync.Mutex
	pending []nodePlace // guarded by mu
	highest int         // guarded by mu: most that were pending
}

// from adds roots.
func (w *walk) from(ctx context.Context, roots []digest.Digest) error {
	kids := make([]recipe.Child, len(roots))
	for i, d := range roots {
		kids[i] = recipe.Child{Digest: d, Node: true}
	}
	return w.take(ctx, kids)
}

// take finds children and tells of each.
func (w *walk) take(ctx context.Context, kids []recipe.Child) error {
	ds, places := make([]digest.Digest, len(kids)), make([]place, len(kids))
	for i := range kids {
		ds[i] = kids[i].Digest
	}
	if err := w.find.find(ctx, ds, places); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range kids {
		if p := places[i]; p.kind == 0 || (p.kind == container.Node) != kids[i].Node {
			if err := w.lost(ds[i], kids[i].Node, nil); err != nil {
				return err
			}
		} else if w.reach(p, &ds[i]) && kids[i].Node {
			w.pending = append(w.pending, nodePlace{p, ds[i]})
		}
	}
	w.highest = max(w.highest, len(w.pending))
	return nil
}

// run enters nodes until none is left.
func (w *walk) run(ctx context.Context) error {
	for {
		batch := w.batch()
		if len(batch) == 0 {
			return nil
		}
		if err := w.enter(ctx, batch); err != nil {
			return err
		}
	}
}

// batch takes the nodes that were added last, in the order of storage: so the rest stays small.
func (w *walk) batch() []nodePlace {
	w.mu.Lock()
	defer w.mu.Unlock()
	from := max(0, len(w.pending)-walkBatch)
	batch := slices.Clone(w.pending[from:])
	w.pending = w.pending[:from]
	slices.SortFunc(batch, func(a, b nodePlace) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.slot, b.slot))
	})
	return batch
}

// enter reads nodes, which are in the order of storage, frame by frame.
func (w *walk) enter(ctx context.Context, batch []nodePlace) error {
	var g errgroup.Group
	g.SetLimit(min(walkWorkers, runtime.GOMAXPROCS(0)))
	var dir *container.Directory
	for len(batch) > 0 {
		if err := stopped(ctx); err != nil {
			_ = g.Wait()
			return err
		}
		if dir == nil || dir.ID() != batch[0].id {
			var err error
			if dir, err = w.find.directory(ctx, batch[0].id); err != nil {
				_ = g.Wait()
				return err
			}
		}
		n := sameFrame(dir, batch)
		part, from := batch[:n], dir
		batch = batch[n:]
		g.Go(func() error {
			return w.find.s.givingWay(ctx, func() error { return w.enterFrame(ctx, from, part) })
		})
	}
	return g.Wait()
}

// sameFrame returns how many of the first nodes lie in the frame of the first one, or in no frame at all.
func sameFrame(dir *container.Directory, batch []nodePlace) int {
	if dir == nil || int64(batch[0].slot) >= int64(dir.Rows()) {
		return 1
	}
	f := dir.Frame(dir.Row(batch[0].slot).Frame)
	n := 1
	for n < len(batch) && batch[n].id == batch[0].id && batch[n].slot < f.FirstSlot+f.Chunks {
		n++
	}
	return n
}

// enterFrame enters nodes of one frame.
func (w *walk) enterFrame(ctx context.Context, dir *container.Directory, nodes []nodePlace) error {
	var kids []recipe.Child
	var plain []byte
	var err error
	if dir != nil && int64(nodes[0].slot) < int64(dir.Rows()) {
		plain, err = w.find.s.decode(ctx, dir, dir.Row(nodes[0].slot).Frame)
	}
	if err != nil && KindOf(err) != Damaged && KindOf(err) != NotFound {
		return err
	}
	for _, n := range nodes {
		node, bad := nodeIn(plain, dir, n)
		if bad != nil || err != nil {
			if err := w.report(n.digest, cmp.Or(err, bad)); err != nil {
				return err
			}
			continue
		}
		kids = append(kids, node.Children...)
	}
	if err := w.take(ctx, kids); err != nil {
		return err
	}
	w.told(len(nodes))
	return nil
}

func (w *walk) report(d digest.Digest, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost(d, true, err)
}

func (w *walk) told(nodes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.met != nil {
		w.met(nodes)
	}
}

// nodeIn finds a node in its decoded frame.
func nodeIn(plain []byte, dir *container.Directory, n nodePlace) (recipe.Node, error) {
	if plain == nil || int64(n.slot) >= int64(dir.Rows()) || dir.Digest(n.slot) != n.digest {
		return recipe.Node{}, &Error{Kind: NotFound, Op: "read node", Object: n.digest.String()}
	}
	row := dir.Row(n.slot)
	end := int64(row.Offset) + int64(row.Length)
	if end > int64(len(plain)) {
		return recipe.Node{}, &Error{Kind: Damaged, Op: "read node", Object: n.digest.String()}
	}
	node, err := recipe.ParseClear(plain[row.Offset:end])
	return node, wrap("read node", n.digest.String(), err)
}

// memory is what the nodes that waited took at most.
func (w *walk) memory() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(w.highest) * 56
}
