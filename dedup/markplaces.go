package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// place is where the index says that a chunk or node lies.
type place struct {
	id   container.ID
	slot uint32
	kind container.Kind
}

// rowsWorthLoading is how many chunks of one question must lie in a container for its directory to be loaded: a directory
// costs as much as some hundred look-ups, and what was asked for together is followed by its neighbours.
const rowsWorthLoading = 64

// sampleStep is the part of many chunks that is looked up to learn where they lie: one in so many.
const sampleStep = 32

// minRow is the fewest bytes that a chunk takes in its container: its row.
const minRow = 44

// placeFinder finds canonical places for walks over whole savesets. It has directories of its own, within a budget, so that
// a walk does not drive out what runs and readers use. Safe for concurrent use.
type placeFinder struct {
	s    *Store
	dirs *dirCache
}

func newPlaceFinder(s *Store) *placeFinder {
	return &placeFinder{s: s, dirs: newDirCache(s.blob, s.ring, s.opts.LocalityMemory, s.canonical)}
}

// find fills out[i] for those of ds that the index names in a container that can be read; out[i].kind stays 0 for the
// others. Places from the index are hints: see marks.agrees.
//
// A look-up in the index costs twenty times one in a directory. Of many chunks, therefore, a few are looked up first: they
// tell where the others are likely to lie.
func (f *placeFinder) find(ctx context.Context, ds []digest.Digest, out []place) error {
	todo := make([]int, len(ds))
	for i := range ds {
		todo[i], out[i] = i, place{}
	}
	todo = f.near(ds, todo, out)
	if len(todo) >= 2*rowsWorthLoading {
		var few, others []int
		for j, i := range todo {
			if j%sampleStep == 0 {
				few = append(few, i)
			} else {
				others = append(others, i)
			}
		}
		hits, err := f.ask(ctx, ds, few, out)
		if err != nil {
			return err
		}
		f.load(ctx, hits)
		todo = f.near(ds, others, out)
	}
	_, err := f.ask(ctx, ds, todo, out)
	return err
}

// near finds those of todo that lie in loaded directories, and returns the others.
func (f *placeFinder) near(ds []digest.Digest, todo []int, out []place) (rest []int) {
	sub, at := make([]digest.Digest, len(todo)), make([]found, len(todo))
	for j, i := range todo {
		sub[j] = ds[i]
	}
	f.dirs.find(sub, at)
	var last container.ID
	good := false
	rest = todo[:0]
	for j, i := range todo {
		dir := at[j].dir
		if dir == nil || !at[j].canonical || dir.Kind() != container.Data {
			rest = append(rest, i)
			continue
		}
		if dir.ID() != last {
			last, good = dir.ID(), !f.s.containers.overtaken(dir.ID())
		}
		if good {
			out[i] = place{dir.ID(), at[j].slot, container.Data}
		} else {
			rest = append(rest, i)
		}
	}
	return rest
}

// ask asks the index for those of todo, and returns how many chunks it found in each data container.
func (f *placeFinder) ask(ctx context.Context, ds []digest.Digest, todo []int, out []place) (map[container.ID]int, error) {
	if len(todo) == 0 {
		return nil, ctx.Err()
	}
	sub, locs, ok := make([]digest.Digest, len(todo)), make([]index.Loc, len(todo)), make([]bool, len(todo))
	for j, i := range todo {
		sub[j] = ds[i]
	}
	if err := f.s.index.Lookup(ctx, sub, locs, ok); err != nil {
		return nil, wrap("look up index", "", err)
	}
	hits := make(map[container.ID]int)
	var last container.ID
	size := int64(0)
	for j, i := range todo {
		if !ok[j] {
			continue
		}
		if l := locs[j]; l.Container != last {
			last, size = l.Container, 0
			if f.s.containers.readable(l.Container) {
				size = f.s.containers.size(l.Container)
			}
		}
		if int64(locs[j].Slot) >= size/minRow {
			continue
		}
		out[i] = place{locs[j].Container, locs[j].Slot, locs[j].Kind}
		if locs[j].Kind == container.Data {
			hits[locs[j].Container]++
		}
	}
	return hits, nil
}

// load loads the directories of containers that hold many of the chunks of which a few were asked for.
func (f *placeFinder) load(ctx context.Context, hits map[container.ID]int) {
	for id, n := range hits {
		if n*sampleStep >= rowsWorthLoading && f.s.canonical(id) {
			_, _ = f.dirs.load(ctx, id) // only to be faster
		}
	}
}

// directory returns a container's directory; nil when it is gone or damaged.
func (f *placeFinder) directory(ctx context.Context, id container.ID) (*container.Directory, error) {
	if !f.s.containers.readable(id) {
		return nil, nil
	}
	dir, err := f.dirs.load(ctx, id)
	if err == nil {
		return dir, nil
	}
	return f.s.unreadable(ctx, id, err)
}

func (f *placeFinder) memory() int64 {
	f.dirs.mu.Lock()
	defer f.dirs.mu.Unlock()
	return f.dirs.bytes
}
