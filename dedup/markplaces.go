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
func (f *placeFinder) find(ctx context.Context, ds []digest.Digest, out []place) error {
	near := make([]found, len(ds))
	f.dirs.find(ds, near)
	var rest []digest.Digest
	var at []int
	for i := range ds {
		dir := near[i].dir
		if dir != nil && near[i].canonical && dir.Kind() == container.Data && !f.s.containers.overtaken(dir.ID()) {
			out[i] = place{dir.ID(), near[i].slot, container.Data}
			continue
		}
		out[i] = place{}
		rest, at = append(rest, ds[i]), append(at, i)
	}
	if len(rest) == 0 {
		return nil
	}
	return f.ask(ctx, rest, at, out)
}

// ask asks the index, and loads the directories of containers that had many of the chunks.
func (f *placeFinder) ask(ctx context.Context, ds []digest.Digest, at []int, out []place) error {
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := f.s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return wrap("look up index", "", err)
	}
	hits := make(map[container.ID]int)
	var last container.ID
	size := int64(0)
	for i := range ds {
		if !ok[i] {
			continue
		}
		if l := locs[i]; l.Container != last {
			last, size = l.Container, 0
			if f.s.containers.readable(l.Container) {
				size = f.s.containers.size(l.Container)
			}
		}
		if int64(locs[i].Slot) >= size/minRow {
			continue
		}
		out[at[i]] = place{locs[i].Container, locs[i].Slot, locs[i].Kind}
		if locs[i].Kind == container.Data {
			hits[locs[i].Container]++
		}
	}
	for id, n := range hits {
		if n >= rowsWorthLoading {
			_, _ = f.dirs.load(ctx, id) // only to be faster
		}
	}
	return ctx.Err()
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
