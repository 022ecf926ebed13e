package savesettree

import (
	"context"
	"io"
	"slices"
	"sync"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// Reading ahead inside a large file.

// readAhead notes a read of a large file and, if it is one of a sequence, has the chunks after it brought in.
func (f *file) readAhead(ctx context.Context, v View, off, end uint64) {
	from, to := f.step(int64(off), end)
	if from >= to {
		return
	}
	extents, err := f.extents(ctx, v, from, to)
	if err != nil {
		return // the reader who needs them meets the error himself
	}
	var ds []digest.Digest
	for _, x := range extents {
		if x.Offset >= to {
			break
		}
		if !x.Hole {
			ds = append(ds, x.Digest)
		}
	}
	v.ReadAhead(ds)
}

// step advances the place of reading and returns the range that shall be brought in, empty for none.
func (f *file) step(off int64, end uint64) (from, to uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &f.place
	if d := off - p.last; d < -nearby || d > nearby {
		*p = place{}
	}
	p.last = off
	p.run++
	if p.run < 2 && off > 0 {
		return 0, 0
	}
	if from, to = max(p.ahead, end), min(end+streamAhead, f.e.Size); to < from+streamAhead/4 && to < f.e.Size {
		return 0, 0 // little to gain yet
	}
	p.ahead = max(to, p.ahead)
	return from, to
}

// Reading ahead through a tree of small files: cp, tar and rsync read them in the order of the tree, which is the order in
// which the store has them. Files that come next are asked for in the store, and those that the kernel knows already are
// put into its cache, so that most reads are no request at all.

const (
	// sweepNear is how many entries may lie between what was asked for and the next file of a sweep.
	sweepNear = 256
	// sweepMin is how many files in order make a sweep.
	sweepMin = 3
	// sweepBytes bounds what is asked for ahead of what is put into the kernel's cache; it is asked for in halves.
	sweepBytes = 1 << 20
	// fillBytes bounds what is put into the kernel's cache after one request: nobody tells whether it is used.
	fillBytes = 1 << 20
	// sweepFiles bounds the number of files in either.
	sweepFiles = 512
)

// ahead follows one reader through a saveset. Two at a time are too many for it: then it does nothing.
type ahead struct {
	mu    sync.Mutex // guards what follows; who finds it taken goes on without
	last  uint64     // inode number by rank of the file that was read last
	run   int
	walk  []descent // where asking ahead stands; empty: nowhere
	asked queue     // files that were asked for in the store, in order
	given queue     // files that were given to the kernel's cache, as far as nobody is known to be past them
	end   uint64    // inode number by rank of the last file that was asked for
}

// descent is one directory on the way down to where asking ahead stands.
type descent struct {
	it  *recipe.RankIter
	ino uint64 // of the directory
}

// wanted is a small file that will be read soon.
type wanted struct {
	ino    uint64
	id     fusefs.ID
	digest digest.Digest
	size   uint64
}

// queue is a list of files and the sum of their sizes.
type queue struct {
	files []wanted
	bytes uint64
}

func (q *queue) push(w wanted) {
	q.files = append(q.files, w)
	q.bytes += w.size
}

func (q *queue) pop() wanted {
	w := q.files[0]
	q.files = q.files[1:]
	q.bytes -= w.size
	return w
}

// passed drops what a reader at ino has behind him.
func (q *queue) passed(ino uint64) {
	for len(q.files) > 0 && q.files[0].ino <= ino {
		q.pop()
	}
}

// read notes that a file of one chunk is read, and returns the files that may be put into the kernel's cache.
func (a *ahead) read(ctx context.Context, v View, f *file, cache fusefs.Cache) []wanted {
	if !a.mu.TryLock() {
		return nil
	}
	defer a.mu.Unlock()
	if f.ino == a.last {
		return nil
	}
	if f.ino < a.last || f.ino > max(a.last, a.end)+sweepNear {
		a.run, a.walk, a.asked, a.given, a.end = 0, nil, queue{}, queue{}, 0
	}
	a.last = f.ino
	a.run++
	a.asked.passed(f.ino)
	a.given.passed(f.ino)
	if a.run < sweepMin {
		return nil
	}
	if len(a.asked.files) == 0 && a.end <= f.ino {
		if err := a.start(ctx, v, f); err != nil {
			a.walk = nil
			return nil
		}
	}
	a.more(ctx, v)
	fill := a.give(cache)
	a.more(ctx, v)
	return fill
}

// give takes the next files that the kernel holds off the list, for its cache.
func (a *ahead) give(cache fusefs.Cache) []wanted {
	n := len(a.given.files)
	for cache != nil && len(a.asked.files) > 0 && a.given.bytes+a.asked.files[0].size <= fillBytes &&
		len(a.given.files) < sweepFiles && cache.Holds(a.asked.files[0].id) {
		a.given.push(a.asked.pop())
	}
	return slices.Clone(a.given.files[n:])
}

// start puts the walk behind a file.
func (a *ahead) start(ctx context.Context, v View, f *file) error {
	a.walk = nil
	for d, rank := f.parent, f.rank; d != nil; d, rank = d.parent, d.rank {
		it := recipe.NewRankIter(v, d.digest())
		if err := it.SeekRank(ctx, rank+1); err != nil {
			return err
		}
		a.walk = append([]descent{{it, d.ino}}, a.walk...)
	}
	return nil
}

// more walks on, depth first, and asks the store for what it finds, until enough is asked for.
func (a *ahead) more(ctx context.Context, v View) {
	if a.asked.bytes > sweepBytes/2 {
		return
	}
	var ds []digest.Digest
	for len(a.walk) > 0 && a.asked.bytes < sweepBytes && len(ds) < sweepFiles {
		top := a.walk[len(a.walk)-1]
		e, _, rank, err := top.it.Next(ctx)
		ino := top.ino + 1 + rank
		switch {
		case err == io.EOF:
			a.walk = a.walk[:len(a.walk)-1]
		case err != nil:
			a.walk = nil
		case e.IsDir():
			a.walk = append(a.walk, descent{recipe.NewRankIter(v, e.Content.Digest), ino})
		case e.Content.Kind == recipe.OneChunk && e.LinkGroup == 0:
			ds = append(ds, e.Content.Digest)
			a.asked.push(wanted{ino: ino, id: fusefs.ID{Lo: ino}, digest: e.Content.Digest, size: e.Size})
			a.end = ino
		}
	}
	if len(ds) > 0 {
		v.ReadAhead(ds)
	}
}

// UseCache implements fusefs.Caching: files can be put into the kernel's cache from now on.
func (d *listDir) UseCache(c fusefs.Cache) { d.tree.cache.Store(&c) }

// kernel returns the mount's cache, nil without a mount.
func (t *Tree) kernel() fusefs.Cache {
	if c := t.cache.Load(); c != nil {
		return *c
	}
	return nil
}

// filling is a list of files for the kernel's cache.
type filling struct {
	set   *saveset
	files []wanted
}

// fill hands files to the goroutine that puts them into the kernel's cache. It is a hint: while that is busy, it does
// nothing.
func (s *saveset) fill(files []wanted) {
	if len(files) == 0 {
		return
	}
	select {
	case s.tree.fills <- filling{s, files}:
	default:
	}
}

// fillCache puts files into the kernel's cache.
func (t *Tree) fillCache(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-t.fills:
			_ = f.set.use(ctx, func(v View) error { return f.run(ctx, v, t.kernel()) })
		}
	}
}

// run returns an error to nobody: the reader who needs the file meets it himself.
func (f *filling) run(ctx context.Context, v View, cache fusefs.Cache) error {
	for i := range f.files {
		w := &f.files[i]
		chunk, err := v.Chunk(ctx, w.digest)
		if err != nil {
			return err
		}
		if uint64(len(chunk)) != w.size || !cache.Fill(w.id, chunk) {
			return nil
		}
	}
	return nil
}
