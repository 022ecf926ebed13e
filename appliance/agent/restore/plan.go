package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// file is a regular file on its way.
type file struct {
	dir    *dir
	e      recipe.Entry
	name   string       // in the directory
	group  *linkGroup   // nil for a file with one name
	left   atomic.Int32 // extents to come, of a file that is open
	mu     sync.Mutex   // guards all below
	f      fsmeta.File
	slot   slot
	opened bool
	failed bool
}

func (f *file) path() string { return f.dir.pathOf(f.name) }

// hasExtents reports whether the file may have several chunks, and holes.
func (f *file) hasExtents() bool {
	return f.e.Content.Kind == recipe.StreamTree || f.e.Content.Kind == recipe.ImageTree
}

// want is one place for one chunk.
type want struct {
	f    *file
	off  int64
	next int32 // the next want of the same chunk, or -1
	got  bool
}

// hole is a part of a file that has no chunk.
type hole struct {
	f        *file
	off, end int64
}

// batch is what a worker fetches at once.
type batch struct {
	items []uplink.FetchItem
	first map[digest.Digest]int32 // to wants
	wants []want
	empty []*file // files without content
	holes []hole  // to be compared
	bytes int
	files int
}

func newBatch() *batch { return &batch{first: map[digest.Digest]int32{}} }

func (b *batch) add(f *file, off int64, d digest.Digest, length uint32) {
	next, again := b.first[d]
	if !again {
		next = -1
		b.items = append(b.items, uplink.FetchItem{Digest: d, Length: length})
		b.bytes += int(length)
	}
	b.first[d] = int32(len(b.wants))
	b.wants = append(b.wants, want{f: f, off: off, next: next})
}

// linkGroup is a file with several names.
type linkGroup struct {
	dir  *dir // of the name that was restored; one of its pending things is the group
	name string
	f    *file // nil for a file that has no content
}

// lateLink is a further name of a file, lateFlags are inode flags of one: both come when all files are there.
type lateLink struct {
	dir   *dir
	name  string
	group *linkGroup
}

type lateFlags struct {
	dir   *dir
	name  string
	e     recipe.Entry
	fresh bool
}

// planner walks the recipe.
type planner struct {
	*job
	base   *dir
	b      *batch
	pace   pace
	meta   *applier
	groups map[uint64]*linkGroup
	links  []lateLink
	picked bool // something was
	used   map[string]bool

	mu    sync.Mutex // guards flags, which workers add to
	flags []lateFlags
}

func newPlanner(j *job, base *dir, pace pace) *planner {
	p := &planner{job: j, base: base, b: newBatch(), pace: pace, meta: newApplier(j), groups: map[uint64]*linkGroup{}}
	j.late = p.late
	return p
}

// late remembers the flags of a file with several names: an immutable file takes no link.
func (p *planner) late(f *file, name string, made fsmeta.Made) {
	if f.e.Flags == 0 {
		return
	}
	f.dir.pending.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flags = append(p.flags, lateFlags{dir: f.dir, name: name, e: f.e, fresh: made.Fresh})
}

func (p *planner) run(ctx context.Context, root recipe.Ref) error {
	sel := newSelection(p.order.Paths)
	if err := p.walk(ctx, root.Digest, "", sel, p.base); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for _, path := range sel.missing("", nil) {
		p.rep.Warn(codeMissing, path, errors.New("the saveset has no such path"))
	}
	if !p.picked {
		return report.Errorf(CodeNothing, "the saveset has nothing that is to be restored")
	}
	return p.flush(ctx)
}

// one restores a single entry into the base.
func (p *planner) one(ctx context.Context, e recipe.Entry) error {
	if err := p.entry(ctx, e, "/"+e.Name, p.base); err != nil {
		return err
	}
	return p.flush(ctx)
}

// walk restores what is picked of a directory's entries into d. Path is that of the directory in the saveset.
func (p *planner) walk(ctx context.Context, node digest.Digest, path string, sel *selection, d *dir) error {
	p.rep.Current(path)
	it := recipe.NewDirIter(p.job.run, node)
	for {
		e, _, err := it.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the saveset's %s/: %w", path, err)
		}
		sub, picked, leads := sel.child(e.Name)
		if !leads {
			continue
		}
		at := path + "/" + e.Name
		if !p.exclude.Empty() && p.exclude.Match(at, at[1:], e.IsDir()) {
			continue
		}
		picked = picked && p.include.Selects(at, e.IsDir())
		if e.IsDir() {
			err = p.directory(ctx, e, at, sub, picked, d)
		} else if picked {
			err = p.entry(ctx, e, at, d)
		}
		if err != nil {
			return err
		}
	}
}

func (p *planner) directory(ctx context.Context, e recipe.Entry, path string, sel *selection, picked bool, d *dir) error {
	if !picked && !p.include.MaySelectBelow(path) {
		return nil
	}
	if p.order.Flat {
		return p.walk(ctx, e.Content.Digest, path, sel, d)
	}
	if err := p.loadXattrs(ctx, &e, path); err != nil {
		return err
	}
	c := d.child(e, picked && !leads(p.order.Sources, path))
	if !picked {
		defer c.done(p.meta)
		return p.walk(ctx, e.Content.Digest, path, sel, c)
	}
	p.picked = true
	p.rep.Entries.Add(1)
	fd, err := c.open()
	if err != nil {
		c.done(p.meta)
		if !errors.Is(err, errReported) {
			p.rep.Warn(codeNotMade, c.path, fmt.Errorf("make directory: %w", err))
		}
		return nil // and nothing that is in it
	}
	defer c.close()
	defer c.done(p.meta) // while it is open
	if p.order.Verify && c.picked {
		p.meta.compare(c.path, fd.Handle(), &e)
	}
	return p.walk(ctx, e.Content.Digest, path, sel, c)
}

// entry restores one entry that is no directory.
func (p *planner) entry(ctx context.Context, e recipe.Entry, path string, d *dir) error {
	p.picked = true
	p.rep.Entries.Add(1)
	if err := p.loadXattrs(ctx, &e, path); err != nil {
		return err
	}
	name := e.Name
	if p.order.Flat {
		name = p.flatName(d, name)
	}
	at, err := d.open()
	if err != nil {
		if !errors.Is(err, errReported) {
			p.rep.Warn(codeNotMade, d.pathOf(name), err)
		}
		return nil
	}
	switch {
	case p.order.Verify:
		return p.verify(ctx, at, e, name, d)
	case p.keep(at, d, name):
		p.rep.Unchanged.Add(1)
		d.close()
		return nil
	case e.LinkGroup != 0 && p.groups[e.LinkGroup] != nil:
		d.close()
		d.pending.Add(1)
		p.links = append(p.links, lateLink{dir: d, name: name, group: p.groups[e.LinkGroup]})
		return nil
	case e.IsRegular():
		return p.regular(ctx, e, name, d)
	}
	defer d.close()
	p.special(at, e, name, d)
	return nil
}

// keep reports whether an existing file stays, which is asked before its content is fetched.
func (p *planner) keep(at *fsmeta.Dir, d *dir, name string) bool {
	if p.order.Existing != sms.ExistingKeep || d.isNew() {
		return false
	}
	var st fsmeta.Stat
	return at.Lstat(name, &st) == nil
}

// flatName keeps files of one name apart that come from several directories.
func (p *planner) flatName(d *dir, name string) string {
	if p.used == nil {
		p.used = map[string]bool{}
	}
	free := name
	for try := 1; p.used[free]; try++ {
		free = versionName(name, try)
	}
	p.used[free] = true
	if free != name {
		p.rep.Note(codeRenamed, d.pathOf(free), fmt.Errorf("another file is called %q, too", name))
	}
	return free
}

// group registers the first name of a file that has several.
func (p *planner) group(e *recipe.Entry, d *dir, name string, f *file) *linkGroup {
	if e.LinkGroup == 0 {
		return nil
	}
	g := &linkGroup{dir: d, name: name, f: f}
	p.groups[e.LinkGroup] = g
	return g
}

// regular puts a file into the batch. The directory is open for it.
func (p *planner) regular(ctx context.Context, e recipe.Entry, name string, d *dir) error {
	f := &file{dir: d, e: e, name: name}
	f.group = p.group(&e, d, name, f)
	d.pending.Add(1)
	if err := p.contents(ctx, f); err != nil {
		return err
	}
	p.b.files++
	return p.flushFull(ctx)
}

// contents adds what a file is made of to the batch.
func (p *planner) contents(ctx context.Context, f *file) error {
	switch f.e.Content.Kind {
	case recipe.NoContent:
		p.b.empty = append(p.b.empty, f)
		return nil
	case recipe.OneChunk:
		f.left.Store(1)
		p.b.add(f, 0, f.e.Content.Digest, uint32(f.e.Size))
		return nil
	}
	f.left.Store(1) // the planner's own, so that the file is not complete before all is known
	it := recipe.NewStreamIter(p.job.run, f.e.Content, f.e.Size)
	for {
		x, err := it.Next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the saveset's %s: %w", f.path(), err)
		}
		if x.Hole {
			if p.order.Verify {
				f.left.Add(1)
				p.b.holes = append(p.b.holes, hole{f, int64(x.Offset), int64(x.Offset + x.Length)})
			}
			continue
		}
		if full, _ := p.pace.limit(); len(p.b.items) > 0 && p.b.bytes+int(x.Length) > full {
			if err := p.flush(ctx); err != nil {
				return err
			}
		}
		f.left.Add(1)
		p.b.add(f, int64(x.Offset), x.Digest, uint32(x.Length))
	}
	p.b.empty = append(p.b.empty, f) // gives the planner's own back
	return nil
}

func (p *planner) flushFull(ctx context.Context) error {
	if bytes, files := p.pace.limit(); p.b.bytes < bytes && p.b.files < files {
		return nil
	}
	return p.flush(ctx)
}

func (p *planner) flush(ctx context.Context) error {
	b := p.b
	if len(b.wants) == 0 && len(b.empty) == 0 && len(b.holes) == 0 {
		return nil
	}
	p.b = newBatch()
	p.pace.gone(b.bytes, b.files)
	select {
	case p.work <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// special makes a symlink, device, fifo or socket.
func (p *planner) special(at *fsmeta.Dir, e recipe.Entry, name string, d *dir) {
	s, err := p.place(at, name, func(name string) error {
		if e.Mode&recipe.ModeType == recipe.ModeSymlink {
			return at.Symlink(e.Target, name)
		}
		return at.Mknod(name, e.Mode, e.Rdev)
	})
	if err != nil {
		p.notMade(d.pathOf(name), err)
		return
	}
	p.meta.dress(d.pathOf(name), at.Named(s.name), &e, d.fresh(0o600))
	if err := s.done(); err != nil {
		p.notMade(d.pathOf(name), err)
		return
	}
	if p.group(&e, d, s.name, nil) != nil {
		d.pending.Add(1)
	}
}

// notMade reports an entry that could not be restored, or was not because one exists.
func (j *job) notMade(path string, err error) {
	switch {
	case errors.Is(err, errKept), errors.Is(err, fs.ErrExist):
		j.rep.Unchanged.Add(1)
	case errors.Is(err, fsmeta.ErrUnsupported):
		j.rep.Warn(codeNotMade, path, fmt.Errorf("the target cannot hold such a file: %w", err))
	default:
		j.rep.Warn(codeNotMade, path, err)
	}
}

// finish does what comes after all files: links, flags, and so the last directories.
func (p *planner) finish() {
	for _, l := range p.links {
		p.link(l)
		l.dir.done(p.meta)
	}
	for _, l := range p.flags {
		p.setFlags(l)
		l.dir.done(p.meta)
	}
	for _, g := range p.groups {
		g.dir.done(p.meta)
	}
	p.base.done(p.meta)
	p.base.close()
}

// link makes a further name of a file.
func (p *planner) link(l lateLink) {
	err := p.makeLink(l)
	if err == nil || errors.Is(err, errReported) {
		return
	}
	if errors.Is(err, errKept) {
		p.rep.Unchanged.Add(1)
		return
	}
	p.rep.Warn(codeLink, l.dir.pathOf(l.name), fmt.Errorf("make a hard link to %s: %w", l.group.dir.pathOf(l.group.name), err))
}

func (p *planner) makeLink(l lateLink) error {
	from, to := l.group.dir, l.dir
	if f := l.group.f; f != nil {
		f.mu.Lock()
		failed, name := f.failed, f.slot.name
		f.mu.Unlock()
		if failed {
			return errors.New("that file was not restored")
		}
		l.group.name = name
	}
	src, err := from.open()
	if err != nil {
		return err
	}
	defer from.close()
	at, err := to.open()
	if err != nil {
		return err
	}
	defer to.close()
	s, err := p.place(at, l.name, func(name string) error { return at.Link(src, l.group.name, name) })
	if err != nil {
		return err
	}
	if s.final != "" && p.sameFile(at, s) {
		return at.Remove(s.name) // rename would leave both names
	}
	return s.done()
}

// sameFile reports whether both names of the slot are one file already.
func (p *planner) sameFile(at *fsmeta.Dir, s slot) bool {
	var a, b fsmeta.Stat
	return at.Lstat(s.name, &a) == nil && at.Lstat(s.final, &b) == nil && a.SameFile(&b)
}

func (p *planner) setFlags(l lateFlags) {
	at, err := l.dir.open()
	if err == nil {
		defer l.dir.close()
		var f fsmeta.File
		if f, err = at.OpenFile(l.name); err == nil {
			defer f.Close()
			p.meta.flags(l.dir.pathOf(l.name), f.Handle(at, l.name), &l.e, fsmeta.Made{Fresh: l.fresh})
			return
		}
	}
	p.rep.Warn(fsmeta.CodeFlags, l.dir.pathOf(l.name), fmt.Errorf("set inode flags: %w", err))
}
