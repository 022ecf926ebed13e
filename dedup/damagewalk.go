package dedup

import (
	"context"
	"errors"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// treeWalk goes through trees of nodes depth first, each node once, and tells which of them are harmed: that is, damaged
// or above damage. It remembers two bits for each node.
type treeWalk struct {
	s *Store
	// resolve has every reference to a chunk looked up; without it only those on the damage list count as harm.
	resolve bool
	// lost, when set, is told of references that lead nowhere. from is the node that has it; its dir is nil for a root.
	lost func(ctx context.Context, from found, c recipe.Child, why error) error
	// met, when set, is told of every chunk and node that is missed and that something refers to.
	met func(d digest.Digest)

	seen, harm map[container.ID]slotBits
	nowhere    map[digest.Digest]struct{} // nodes that have no place, and were told
	references int64
	blind      bool // a node could not be read: what is below it is not known
	stack      []treeStep
}

// treeStep is a node whose children are being walked.
type treeStep struct {
	at     found
	kids   []treeKid
	harmed bool
}

type treeKid struct {
	child recipe.Child
	at    found
}

func (s *Store) newTreeWalk() *treeWalk {
	return &treeWalk{s: s, seen: make(map[container.ID]slotBits), harm: make(map[container.ID]slotBits),
		nowhere: make(map[digest.Digest]struct{})}
}

// root walks the tree below a node, and reports whether it is harmed. A zero digest is a tree that is not there.
func (w *treeWalk) root(ctx context.Context, d digest.Digest) (harmed bool, err error) {
	if d.IsZero() {
		return false, nil
	}
	c := recipe.Child{Digest: d, Node: true}
	places, err := w.s.locate(ctx, []digest.Digest{d})
	if err != nil {
		return false, err
	}
	return w.from(ctx, c, places[0])
}

// from walks the tree below a node at a place.
func (w *treeWalk) from(ctx context.Context, c recipe.Child, at found) (harmed bool, err error) {
	w.stack = append(w.stack[:0], treeStep{kids: []treeKid{{c, at}}})
	w.references++
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		top := &w.stack[len(w.stack)-1]
		if len(top.kids) > 0 {
			k := top.kids[len(top.kids)-1]
			top.kids = top.kids[:len(top.kids)-1]
			if err := w.kid(ctx, k); err != nil {
				return false, err
			}
			continue
		}
		done := *top
		w.stack = w.stack[:len(w.stack)-1]
		if len(w.stack) == 0 {
			return done.harmed, nil
		}
		if done.harmed {
			w.harm[done.at.dir.ID()] = w.harm[done.at.dir.ID()].with(done.at.slot, uint32(done.at.dir.Rows()))
			w.stack[len(w.stack)-1].harmed = true
		}
	}
}

// kid enters a node below the last step, unless it was walked already.
func (w *treeWalk) kid(ctx context.Context, k treeKid) error {
	top := &w.stack[len(w.stack)-1]
	if w.s.damage.has(k.child.Digest) {
		top.harmed = true
		if w.met != nil {
			w.met(k.child.Digest)
		}
	}
	if why := k.at.fits(top.at, k.child); why != nil {
		top.harmed = true
		return w.tell(ctx, top.at, k.child, why)
	}
	id, slot := k.at.dir.ID(), k.at.slot
	if w.seen[id].has(slot) {
		top.harmed = top.harmed || w.harm[id].has(slot)
		return nil
	}
	w.seen[id] = w.seen[id].with(slot, uint32(k.at.dir.Rows()))
	return w.enter(ctx, k)
}

// enter reads a node and makes it the last step.
func (w *treeWalk) enter(ctx context.Context, k treeKid) error {
	rec, err := w.s.read(ctx, k.at)
	if KindOf(err) == NotFound && !w.s.containers.has(k.at.dir.ID()) { // a collection moved it since it was found
		places, e := w.s.locate(ctx, []digest.Digest{k.child.Digest})
		if e != nil {
			return e
		}
		if at := places[0]; at.fits(k.at, k.child) == nil {
			k.at = at
			w.seen[at.dir.ID()] = w.seen[at.dir.ID()].with(at.slot, uint32(at.dir.Rows()))
			rec, err = w.s.read(ctx, at)
		}
	}
	step := treeStep{at: k.at}
	var node recipe.Node
	if err == nil {
		if node, err = recipe.ParseClear(rec); err != nil {
			err = &Error{Kind: Damaged, Op: "read node", Object: k.child.Digest.String(), Err: err}
		}
	}
	switch kind := KindOf(err); {
	case kind == Damaged || kind == NotFound:
		w.blind, step.harmed = true, true
		if !w.s.damage.has(k.child.Digest) {
			err = w.tell(ctx, w.stack[len(w.stack)-1].at, k.child, err)
		} else {
			err = nil
		}
		w.stack = append(w.stack, step)
		return err
	case err != nil:
		return err
	}
	err = w.children(ctx, &step, node.Children)
	w.stack = append(w.stack, step)
	return err
}

// children finds the children of a node, and judges its chunks.
func (w *treeWalk) children(ctx context.Context, step *treeStep, kids []recipe.Child) error {
	w.references += int64(len(kids))
	var ds []digest.Digest
	var todo []recipe.Child
	for _, c := range kids {
		if !c.Node && w.s.damage.has(c.Digest) {
			step.harmed = true
			if w.met != nil {
				w.met(c.Digest)
			}
		} else if c.Node || w.resolve {
			ds, todo = append(ds, c.Digest), append(todo, c)
		}
	}
	if len(ds) == 0 {
		return nil
	}
	places, err := w.s.locate(ctx, ds)
	if err != nil {
		return err
	}
	for i, c := range todo {
		if c.Node {
			step.kids = append(step.kids, treeKid{c, places[i]})
			continue
		}
		why := places[i].fits(step.at, c)
		if why == nil && w.s.damage.badPlace(places[i].loc()) {
			why = errors.New("the only copy is damaged")
		}
		if why != nil {
			step.harmed = true
			if err := w.tell(ctx, step.at, c, why); err != nil {
				return err
			}
		}
	}
	return nil
}

var (
	errNowhere     = errors.New("it is not in the store")
	errNoDirectory = errors.New("its container cannot be read")
	errOtherThing  = errors.New("what is there is something else")
)

// fits reports why a place does not hold the child of a node; from.dir is nil for a root.
func (at found) fits(from found, c recipe.Child) error {
	switch {
	case at.dir == nil && at.damaged:
		return errNoDirectory
	case at.dir == nil:
		return errNowhere
	case !at.holds(c) || from.dir != nil && from.dir.Domain() != at.dir.Domain():
		return errOtherThing
	}
	return nil
}

// tell reports a reference that leads nowhere, once for each digest.
func (w *treeWalk) tell(ctx context.Context, from found, c recipe.Child, why error) error {
	if c.Node {
		w.blind = true
	}
	if _, ok := w.nowhere[c.Digest]; ok || w.lost == nil {
		return nil
	}
	w.nowhere[c.Digest] = struct{}{}
	return w.lost(ctx, from, c, why)
}
