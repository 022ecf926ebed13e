package savesettree

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
	"coffer/fusefs"
)

// Reading ahead through a tree of small files: cp, tar and rsync read them in the order of the tree, which is the order in
// which the store has them. Files that come next are asked for in the store, and those that the kernel knows already are
// put into its cache, so that most reads are no request at all.
//
// A reader whose reads are no requests is not seen. What he asks beside reading shows where he is: cp -a and rsync -X want
// the extended attributes of each file that they have read, and everybody lists the next directory.

const (
	// sweepNear is how many entries may lie between what was asked for and the next file of a sweep.
	sweepNear = 256
	// sweepMin is how many files in order make a sweep.
	sweepMin = 3
	// sweepBytes bounds what is asked for ahead of what is put into the kernel's cache; it is asked for in halves.
	sweepBytes = 1 << 20
	// fillBytes bounds what lies in the kernel's cache ahead of where the reader was seen.
	fillBytes = 1 << 20
	// fillBlind bounds what is put into the kernel's cache between two reads: nobody tells whether it is used, and who
	// only looks at attributes uses none of it.
	fillBlind = 16 << 20
	// sweepFiles bounds the number of files in either.
	sweepFiles = 512
)

// sweep follows one reader through a saveset. Two at a time are too many for it: then it does nothing.
type sweep struct {
	told atomic.Bool // the tree's goroutine shall look at it

	mu sync.Mutex // guards at
	at position

	front front // the tree's goroutine's own
}

// position is where the reader is.
type position struct {
	file  *file  // that was read last, or that lies in the kernel's cache and was asked about last
	run   int    // how many were read in order
	turn  uint64 // changes when the reader goes elsewhere
	reads uint64 // changes with each read
	end   uint64 // inode number by rank of the last file that was asked for in the store
}

// front is what lies before the reader.
type front struct {
	turn, reads uint64    // of the position that it was made for
	walk        []descent // where asking stands; empty: nowhere
	asked       queue     // files that were asked for in the store, in order
	given       queue     // files that were given to the kernel's cache, as far as the reader is not known to be past them
	blind       uint64    // bytes given since the last read
}

// descent is one directory on the way down to where asking stands.
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

// read notes that a file of one chunk is read.
func (s *sweep) read(f *file) (look bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.at
	switch {
	case p.file == nil:
	case f.ino == p.file.ino:
		return false
	case f.ino < p.file.ino || f.ino > max(p.file.ino, p.end)+sweepNear:
		*p = position{turn: p.turn + 1}
	}
	p.file = f
	p.run++
	p.reads++
	return p.run >= sweepMin
}

// passes notes that somebody asked for the extended attributes of a file. That never makes a sweep, and moves one only
// through files that were asked for.
func (s *sweep) passes(f *file) (look bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.at
	if p.run < sweepMin || f.ino <= p.file.ino || f.ino > p.end {
		return false
	}
	p.file = f
	return true
}

// lists notes that the kernel has taken a part of a listing, and holds the files in it.
func (s *sweep) lists() (look bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at.run >= sweepMin
}

func (s *sweep) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// askedUpTo notes the last file that was asked for in the store, unless the reader went elsewhere since.
func (s *sweep) askedUpTo(ino, turn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.turn == turn {
		s.at.end = ino
	}
}

// advance brings what lies before the reader nearer. An error goes to nobody: the reader who needs the file meets it
// himself.
func (s *sweep) advance(ctx context.Context, v View, cache fusefs.Cache) {
	p, a := s.position(), &s.front
	if p.turn != a.turn {
		*a = front{turn: p.turn}
	}
	if p.run < sweepMin {
		return
	}
	if p.reads != a.reads {
		a.reads, a.blind = p.reads, 0
	}
	a.asked.passed(p.file.ino)
	a.given.passed(p.file.ino)
	if len(a.asked.files) == 0 && p.end <= p.file.ino {
		if err := a.start(ctx, v, p.file); err != nil {
			a.walk = nil
			return
		}
	}
	s.ask(ctx, v)
	for cache != nil && a.mayGive(cache) && a.giveNext(ctx, v, cache) {
		now := s.position()
		if now.turn != a.turn {
			return // who goes elsewhere tells again
		}
		a.asked.passed(now.file.ino)
		a.given.passed(now.file.ino)
	}
	s.ask(ctx, v)
}

// mayGive tells whether the next file is one for the kernel's cache.
func (a *front) mayGive(cache fusefs.Cache) bool {
	if len(a.asked.files) == 0 {
		return false
	}
	w := &a.asked.files[0]
	return a.given.bytes+w.size <= fillBytes && a.blind+w.size <= fillBlind && len(a.given.files) < sweepFiles && cache.Holds(w.id)
}

// giveNext puts the next file into the kernel's cache. It returns false if that cannot be done, now or at all.
func (a *front) giveNext(ctx context.Context, v View, cache fusefs.Cache) bool {
	w := a.asked.files[0]
	chunk, err := v.Chunk(ctx, w.digest)
	if err != nil || uint64(len(chunk)) != w.size {
		a.asked.pop()
		return false
	}
	if !cache.Fill(w.id, chunk) {
		return false
	}
	a.given.push(a.asked.pop())
	a.blind += w.size
	return true
}

// start puts the walk behind a file.
func (a *front) start(ctx context.Context, v View, f *file) error {
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

// ask walks on, depth first, and asks the store for what it finds, until enough is asked for.
func (s *sweep) ask(ctx context.Context, v View) {
	a := &s.front
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
		}
	}
	if len(ds) > 0 {
		s.askedUpTo(a.asked.files[len(a.asked.files)-1].ino, a.turn)
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

// look has the tree's goroutine look at the saveset's sweep. It is a hint: while that has enough to do, it does nothing.
func (s *saveset) look() {
	if s.sweep.told.Swap(true) {
		return
	}
	select {
	case s.tree.sweeps <- s:
	default:
		s.sweep.told.Store(false)
	}
}

// advanceSweeps brings what comes next nearer to the readers.
func (t *Tree) advanceSweeps(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-t.sweeps:
			s.sweep.told.Store(false)
			_ = s.use(ctx, func(v View) error {
				s.sweep.advance(ctx, v, t.kernel())
				return nil
			})
		}
	}
}
