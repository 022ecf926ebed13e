package savesettree

import (
	"context"
	"io"
	"sync"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
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
// which the store has them.

const (
	// sweepNear is how many entries may lie between two files of a sweep.
	sweepNear = 256
	// sweepMin is how many files in order make a sweep.
	sweepMin = 3
	// sweepLow and sweepHigh bound the bytes of small files that are asked for ahead of the reader.
	sweepLow, sweepHigh = 512 << 10, 1 << 20
	// sweepFiles bounds the number of files that are asked for at once.
	sweepFiles = 512
)

// ahead follows one reader through a saveset. Two at a time are too many for it: then it does nothing.
type ahead struct {
	mu    sync.Mutex // guards what follows; who finds it taken goes on without
	last  uint64     // inode number by rank of the file that was read last
	run   int
	walk  []descent // where asking ahead stands; empty: nowhere
	asked []wanted  // files that were asked for and not read yet, in order
	bytes uint64    // their sizes
}

// descent is one directory on the way down to where asking ahead stands.
type descent struct {
	it  *recipe.RankIter
	ino uint64 // of the directory
}

type wanted struct{ ino, size uint64 }

// read notes that a file of one chunk is read.
func (a *ahead) read(ctx context.Context, v View, f *file) {
	if !a.mu.TryLock() {
		return
	}
	defer a.mu.Unlock()
	if f.ino == a.last {
		return
	}
	if f.ino < a.last || f.ino > a.last+sweepNear {
		a.run, a.walk, a.asked, a.bytes = 0, nil, nil, 0
	}
	a.last = f.ino
	a.run++
	a.passed(f.ino)
	if a.run < sweepMin || a.bytes >= sweepLow {
		return
	}
	if len(a.asked) == 0 {
		if err := a.start(ctx, v, f); err != nil {
			a.walk = nil
			return
		}
	}
	v.ReadAhead(a.more(ctx, v))
}

// passed drops what the reader has behind him.
func (a *ahead) passed(ino uint64) {
	n := 0
	for n < len(a.asked) && a.asked[n].ino <= ino {
		a.bytes -= a.asked[n].size
		n++
	}
	a.asked = a.asked[n:]
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

// more walks on, depth first, until enough is asked for.
func (a *ahead) more(ctx context.Context, v View) (ds []digest.Digest) {
	for len(a.walk) > 0 && a.bytes < sweepHigh && len(ds) < sweepFiles {
		top := a.walk[len(a.walk)-1]
		e, _, rank, err := top.it.Next(ctx)
		switch {
		case err == io.EOF:
			a.walk = a.walk[:len(a.walk)-1]
		case err != nil:
			a.walk = nil
		case e.IsDir():
			a.walk = append(a.walk, descent{recipe.NewRankIter(v, e.Content.Digest), top.ino + 1 + rank})
		case e.Content.Kind == recipe.OneChunk:
			ds = append(ds, e.Content.Digest)
			a.asked = append(a.asked, wanted{top.ino + 1 + rank, e.Size})
			a.bytes += e.Size
		}
	}
	return ds
}
