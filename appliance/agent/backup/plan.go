package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/scan"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// planner goes through the tree in order and decides what is taken over from the parent run.
type planner struct {
	*job
	side     *recipe.SideIter
	cutoff   recipe.Time // what changed at or after it is read again
	b        *batch
	links    map[inode]*link
	groups   map[uint64]struct{}
	imageMet bool // a file was met that the task wants as a disk image
	hash     *digest.Hasher
}

func newPlanner(j *job) *planner {
	return &planner{job: j, b: newBatch(), links: map[inode]*link{}, groups: map[uint64]struct{}{},
		hash: digest.NewHasher(j.keys.Node)}
}

func newBatch() *batch { return &batch{items: make([]item, 0, batchItems)} }

func (p *planner) run(ctx context.Context, sc *scan.Scanner) error {
	var old *oldDir
	if parent := p.job.run.Parent(); parent != nil && !p.opts.Order.ReadAll && !parent.Side.Digest.IsZero() {
		p.side = recipe.NewSideIter(p.job.run, parent.Side.Digest)
		p.cutoff = toTime(parent.Started.Add(-margin))
		old = p.oldDir(parent.Root)
	}
	root, err := sc.Root()
	defer root.Release()
	if err != nil {
		return fmt.Errorf("read /: %w", err)
	}
	drained, err := p.walk(ctx, root, old)
	if err != nil {
		return err
	}
	p.missedImages()
	it := p.next()
	it.op, it.drained = opLeave, drained
	return p.flush(ctx)
}

func toTime(t time.Time) recipe.Time {
	return recipe.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

// walk plans what is in a directory. It reports whether the parent's directory holds nothing else.
func (p *planner) walk(ctx context.Context, d *scan.Dir, old *oldDir) (drained bool, err error) {
	p.rep.Current(d.Path())
	if images := p.imagesIn(d); images != nil {
		for i := range images {
			if err := p.step(ctx, d, images[i], old); err != nil {
				return false, err
			}
		}
	} else {
		for i := range d.Entries {
			if err := p.step(ctx, d, named{&d.Entries[i], d.Entries[i].Name, false}, old); err != nil {
				return false, err
			}
		}
	}
	if drained, err = old.end(ctx); err != nil {
		return false, fmt.Errorf("read the parent's %s: %w", d.Path(), err)
	}
	return drained, nil
}

// step plans one entry of a directory.
func (p *planner) step(ctx context.Context, d *scan.Dir, e named, old *oldDir) error {
	was, err := old.find(ctx, e.as)
	if err != nil {
		return fmt.Errorf("read the parent's %s: %w", d.PathOf(e.as), err)
	}
	if e.Sub != nil {
		return p.dir(ctx, e.Entry, was)
	}
	return p.entry(ctx, d, e, was)
}

// next adds an item to the batch. The pointer is good until the batch is flushed.
func (p *planner) next() *item {
	p.b.items = append(p.b.items, item{})
	return &p.b.items[len(p.b.items)-1]
}

func (it *item) fill(e *scan.Entry) {
	st := &e.Stat
	it.stat, it.name = st, e.Name
	it.e = recipe.Entry{Name: e.Name, Mode: st.Mode, UID: st.UID, GID: st.GID, MTime: st.MTime, Rdev: st.Rdev}
	it.side = recipe.SideRow{Dev: st.Dev, Ino: st.Ino, CTime: st.CTime}
}

// unchanged is the skip rule: type, ctime, mtime, size and inode are what the parent run saw, and none of it is so
// young that the file may have changed again without a trace.
func (p *planner) unchanged(st *fsmeta.Stat, was *oldEntry, image bool) bool {
	return was != nil && st.Ino == was.row.Ino && st.CTime == was.row.CTime && st.MTime == was.e.MTime &&
		st.Mode == was.e.Mode && (!st.IsRegular() || sameForm(st, &was.e, image)) &&
		fsmeta.Compare(st.CTime, p.cutoff) < 0 && fsmeta.Compare(st.MTime, p.cutoff) < 0
}

func (p *planner) entry(ctx context.Context, d *scan.Dir, e named, was *oldEntry) error {
	st := &e.Stat
	large := st.IsRegular() && st.Size >= chunk.SmallFile || e.image
	same := p.unchanged(st, was, e.image)
	if large && !same && len(p.b.items) > 0 {
		// A large file is a batch of its own, so that readers share the work.
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	if err := old(was).skip(ctx, p.side); err != nil {
		return err
	}
	it := p.next()
	it.fill(e.Entry)
	it.dir, it.e.Name, it.image = d, e.as, e.image
	if e.image && was != nil {
		it.oldImage(&was.e)
	}
	if st.Nlink > 1 {
		p.link(it, d)
	}
	if it.link != nil && !it.first {
		it.same = same && was.e.LinkGroup == it.link.group
		return p.flushFull(ctx)
	}
	if same {
		it.takeOver(&was.e)
		return p.flushFull(ctx)
	}
	p.capture(it, d)
	if st.IsRegular() {
		p.b.bytes += int(min(st.Size, chunk.SmallFile))
	}
	if large {
		return p.flush(ctx)
	}
	return p.flushFull(ctx)
}

// takeOver makes the item the parent's entry, but for the number of its link group.
func (it *item) takeOver(was *recipe.Entry) {
	it.e, it.same = *was, true
	group := uint64(0)
	if it.link != nil {
		group = it.link.group
	}
	if it.e.LinkGroup != group {
		it.e.LinkGroup, it.same = group, false
	}
}

func (p *planner) capture(it *item, d *scan.Dir) {
	d.Retain() // until a reader is done with it
	it.capture, it.side.Captured = true, true
	p.b.reads++
}

func (p *planner) dir(ctx context.Context, e *scan.Entry, was *oldEntry) error {
	sub := e.Sub
	err := sub.Open()
	defer sub.Release()
	if err != nil {
		p.rep.Warn("unreadable", sub.Path(), err)
	}
	it := p.next()
	it.fill(e)
	it.op, it.dir = opEnter, sub
	var below *oldDir
	if was != nil && was.e.IsDir() {
		below = p.oldDir(recipe.Ref{Digest: was.e.Content.Digest, Totals: was.below})
		it.e.Content, it.below = was.e.Content, was.below
	} else if err := old(was).skip(ctx, p.side); err != nil {
		return err
	}
	if below != nil && p.unchanged(&e.Stat, was, false) {
		it.e, it.same = was.e, true
	} else {
		p.capture(it, sub)
	}
	if err := p.flushFull(ctx); err != nil {
		return err
	}
	drained, err := p.walk(ctx, sub, below)
	if err != nil {
		return err
	}
	it = p.next()
	it.op, it.drained = opLeave, drained
	return p.flushFull(ctx)
}

// link finds the other names of the file. All names are one link group.
func (p *planner) link(it *item, d *scan.Dir) {
	key := inode{it.stat.Dev, it.stat.Ino}
	l := p.links[key]
	if l == nil {
		l = &link{group: p.group(d.PathOf(it.name)), left: it.stat.Nlink}
		p.links[key], it.first = l, true
	}
	if l.left--; l.left == 0 {
		delete(p.links, key)
	}
	it.link, it.e.LinkGroup = l, l.group
}

// group is the number of a link group: it follows from the first path, so that an unchanged tree has the same numbers
// again, and is unique in the saveset.
func (p *planner) group(path string) uint64 {
	d := p.hash.Sum([]byte(path))
	n := binary.LittleEndian.Uint64(d[:])
	for {
		if _, taken := p.groups[n]; n != 0 && !taken {
			p.groups[n] = struct{}{}
			return n
		}
		n++
	}
}

func (p *planner) flushFull(ctx context.Context) error {
	if len(p.b.items) < batchItems && p.b.bytes < batchBytes {
		return nil
	}
	return p.flush(ctx)
}

// flush hands the batch on: to the builder first, for its place in the order, and to the readers.
func (p *planner) flush(ctx context.Context) error {
	b := p.b
	if len(b.items) == 0 {
		return nil
	}
	p.b = newBatch()
	if b.reads > 0 {
		b.done = make(chan struct{})
	}
	if err := send(ctx, p.queue, b); err != nil || b.reads == 0 {
		return err
	}
	return send(ctx, p.reads, b)
}

func send[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
