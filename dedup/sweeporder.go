package dedup

import (
	"context"
	"math"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

const (
	// maxRanked bounds the chunks whose order is kept at a time.
	maxRanked = 1 << 20
	// rankMem is what one of them takes in memory.
	rankMem = 40
	// unranked stands behind all ranks.
	unranked = math.MaxUint32
)

// ranking is the order in which chunks are copied: that of the newest saveset that has them.
type ranking struct {
	ranks map[uint64]uint32       // by eight bytes of a digest
	left  int                     // chunks without a rank
	next  uint32                  // the next rank
	first map[container.ID]uint32 // the lowest rank in each container
}

func newRanking() *ranking {
	return &ranking{ranks: make(map[uint64]uint32), first: make(map[container.ID]uint32)}
}

func (r *ranking) of(d *digest.Digest) uint32 {
	if n, ok := r.ranks[nodeKey(d)]; ok {
		return n
	}
	return unranked
}

// meet gives a chunk the next rank, if it is to have one and has none.
func (r *ranking) meet(d *digest.Digest) {
	if n, ok := r.ranks[nodeKey(d)]; ok && n == unranked {
		r.ranks[nodeKey(d)] = r.next
		r.next++
		r.left--
	}
}

// ranks finds the order of the live chunks of containers. Nodes keep the order that they lie in: it is theirs.
func (c *collection) ranks(ctx context.Context, kind container.Kind, ids []container.ID) (*ranking, error) {
	r := newRanking()
	if kind == container.Node {
		return r, nil
	}
	for _, id := range ids {
		dir, err := c.open(ctx, id)
		if err != nil {
			return nil, err
		}
		if dir == nil {
			continue
		}
		live, _ := c.marks.snapshot(id)
		for slot := range uint32(dir.Rows()) {
			if live.has(slot) {
				d := dir.Digest(slot)
				r.ranks[nodeKey(&d)] = unranked
			}
		}
	}
	r.left = len(r.ranks)
	if err := c.rank(ctx, r); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := c.firstRank(ctx, r, id); err != nil {
			return nil, err
		}
	}
	c.report.Memory = max(c.report.Memory, c.marks.memory()+c.find.memory()+int64(len(r.ranks))*rankMem+int64(len(c.old))*judgedMem)
	return r, nil
}

func (c *collection) firstRank(ctx context.Context, r *ranking, id container.ID) error {
	dir, err := c.open(ctx, id)
	if err != nil || dir == nil {
		return err
	}
	first := uint32(unranked)
	for slot := range uint32(dir.Rows()) {
		d := dir.Digest(slot)
		first = min(first, r.of(&d))
	}
	r.first[id] = first
	return nil
}

// rank walks savesets in order, the newest first, until every chunk has its rank.
func (c *collection) rank(ctx context.Context, r *ranking) error {
	w := orderedWalk{c: c, ranks: r, seen: make(map[container.ID]slotBits), frames: newFrameCache(c.s.opts.NodeMemory)}
	live, _ := c.s.sets.all()
	for i := len(live) - 1; i >= 0 && r.left > 0; i-- {
		if err := w.tree(ctx, live[i].Root.Digest); err != nil {
			return err
		}
	}
	return nil
}

// orderedWalk goes through recipes in the order of their bytes. A subtree that it met before it leaves out.
type orderedWalk struct {
	c      *collection
	ranks  *ranking
	seen   map[container.ID]slotBits
	frames *frameCache
}

// tree walks one tree. The nodes on the way down are on a stack of its own: trees may be deep.
func (w *orderedWalk) tree(ctx context.Context, root digest.Digest) error {
	stack := [][]recipe.Child{{{Digest: root, Node: true}}}
	for len(stack) > 0 && w.ranks.left > 0 {
		top := len(stack) - 1
		kids := stack[top]
		if len(kids) == 0 {
			stack = stack[:top]
			continue
		}
		kid := kids[0]
		stack[top] = kids[1:]
		if !kid.Node {
			w.ranks.meet(&kid.Digest)
			continue
		}
		var below []recipe.Child
		err := w.c.s.givingWay(ctx, func() (err error) {
			below, err = w.enter(ctx, kid.Digest)
			return err
		})
		if err != nil {
			return err
		}
		stack = append(stack, below)
	}
	return nil
}

// enter returns the children of a node; none for one that was met before, or that does not read: order is no matter of
// safety.
func (w *orderedWalk) enter(ctx context.Context, d digest.Digest) ([]recipe.Child, error) {
	out := make([]place, 1)
	if err := w.c.find.find(ctx, []digest.Digest{d}, out); err != nil {
		return nil, err
	}
	p := out[0]
	if p.kind != container.Node || w.seen[p.id].has(p.slot) {
		return nil, nil
	}
	w.seen[p.id] = w.seen[p.id].with(p.slot, 0)
	dir, err := w.c.find.directory(ctx, p.id)
	if err != nil || dir == nil || int64(p.slot) >= int64(dir.Rows()) {
		return nil, err
	}
	frame := dir.Row(p.slot).Frame
	plain, err := w.frames.get(ctx, Loc{p.id, frame}, func(ctx context.Context) ([]byte, error) {
		return w.c.s.decode(ctx, dir, frame)
	})
	if err != nil {
		return nil, ctx.Err()
	}
	node, err := nodeIn(plain, dir, nodePlace{p, d})
	if err != nil {
		return nil, nil
	}
	return node.Children, nil
}
