package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// parcel is chunks as the store is to have them (plain, or sealed), one after the other, on their way to a sender.
type parcel struct {
	refs []frame.Ref
	buf  []byte
	from *pool // that buf goes back to
	have func(ctx context.Context) ([]bool, error)
}

// reader captures what the planner could not take over.
type reader struct {
	*job
	lane  uplink.Lane
	hash  *digest.Hasher
	sc    fsmeta.Scratch
	cut   *cutting
	boxes *seal.Sealer // nil: nothing is sealed
	box   []byte       // sealed last
	cur   *parcel      // being filled; nil when no buffer is held
	spent struct{ source, hashing, network time.Duration }
	last  time.Time
	bytes uint64
	files uint64
}

func newReader(j *job, i int) *reader {
	r := &reader{job: j, lane: j.run.Lane(i % j.lanes()), hash: digest.NewHasher(j.keys.Data)}
	if j.opts.Key != nil {
		r.boxes = seal.NewSealer(*j.opts.Key)
	}
	return r
}

func (r *reader) run(ctx context.Context) error {
	for {
		select {
		case b, ok := <-r.reads:
			if !ok {
				return nil
			}
			if err := r.batch(ctx, b); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// batch captures the items of a batch and sends what was read on its way.
func (r *reader) batch(ctx context.Context, b *batch) error {
	r.start()
	for i := range b.items {
		it := &b.items[i]
		if !it.capture {
			continue
		}
		err := r.item(ctx, it)
		it.dir.Release()
		if err != nil {
			return err
		}
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	r.lap(&r.spent.network)
	close(b.done)
	r.account()
	return nil
}

// start begins to measure.
func (r *reader) start() { r.last = time.Now() }

// account hands in what was counted since the last time.
func (r *reader) account() {
	r.rep.Source.Add(int64(r.spent.source))
	r.rep.Hashing.Add(int64(r.spent.hashing))
	r.rep.Network.Add(int64(r.spent.network))
	r.rep.BytesRead.Add(r.bytes)
	r.rep.Files.Add(r.files)
	r.spent.source, r.spent.hashing, r.spent.network, r.bytes, r.files = 0, 0, 0, 0, 0
}

// lap adds the time since the last lap to a stage.
func (r *reader) lap(stage *time.Duration) {
	now := time.Now()
	*stage += now.Sub(r.last)
	r.last = now
}

// item captures one entry. Its error ends the run; what is wrong with the entry alone is reported.
func (r *reader) item(ctx context.Context, it *item) error {
	switch {
	case it.op == opEnter:
		return r.directory(ctx, it)
	case it.stat.IsRegular():
		return r.file(ctx, it)
	}
	return r.special(ctx, it)
}

func (it *item) path() string {
	if it.op == opEnter {
		return it.dir.Path()
	}
	return it.dir.PathOf(it.name)
}

// lost reports that an entry cannot be kept.
func (r *reader) lost(it *item, what string, err error) {
	it.failed = true
	if fsmeta.Gone(err) {
		r.rep.Note("vanished", it.path(), fmt.Errorf("%s: %w", what, err))
		return
	}
	r.rep.Warn("unreadable", it.path(), fmt.Errorf("%s: %w", what, err))
}

func (r *reader) directory(ctx context.Context, it *item) error {
	d := it.dir.File()
	if d == nil {
		return nil // it could not be opened, which was reported
	}
	xattrs, err := d.Xattrs(&r.sc)
	if err != nil {
		r.rep.Warn("xattr_unreadable", it.path(), err)
	}
	if it.e.Flags, err = d.Flags(); err != nil {
		r.rep.Warn("flags_unreadable", it.path(), fmt.Errorf("read inode flags: %w", err))
	}
	return r.xattrs(ctx, it, xattrs)
}

// special captures what is neither directory nor regular file.
func (r *reader) special(ctx context.Context, it *item) error {
	d := it.dir.File()
	if it.stat.Type() == recipe.ModeSymlink {
		target, err := d.Readlink(it.name)
		if err != nil {
			r.lost(it, "read symlink", err)
			return nil
		}
		it.e.Target = target
	}
	xattrs, err := d.LXattrs(it.name, &r.sc)
	if err != nil && !fsmeta.Gone(err) {
		r.rep.Warn("xattr_unreadable", it.path(), err)
	}
	return r.xattrs(ctx, it, xattrs)
}

// xattrs keeps attributes; long values go where content goes.
func (r *reader) xattrs(ctx context.Context, it *item, xattrs []recipe.Xattr) error {
	for i := range xattrs {
		x := &xattrs[i]
		if len(x.Value) <= recipe.MaxInline {
			continue
		}
		room, err := r.room(ctx, len(x.Value))
		if err != nil {
			return err
		}
		n := copy(room, x.Value)
		d, err := r.add(n)
		if err != nil {
			return err
		}
		x.Chunk, x.Size, x.Value = d, uint32(n), nil
	}
	it.e.Xattrs = xattrs
	return nil
}

// attempts is how often a small file is read in the hope that it stands still.
const attempts = 3

// file captures a regular file.
func (r *reader) file(ctx context.Context, it *item) error {
	f, err := it.dir.File().OpenFile(it.name)
	if err != nil {
		r.lost(it, "open", err)
		return nil
	}
	defer f.Close()
	if it.image {
		return r.image(ctx, it, f)
	}
	before := *it.stat
	for try := 1; ; try++ {
		n, whole, err := r.small(ctx, f, &before)
		if err != nil {
			return r.unread(it, err)
		}
		if !whole {
			return r.large(ctx, it, f)
		}
		var after fsmeta.Stat
		if err := f.Stat(&after); err != nil {
			r.lost(it, "look at file", err)
			return nil
		}
		still := after.Unchanged(&before) && uint64(n) == after.Size
		if !still && try < attempts {
			before = after
			continue
		}
		if !after.IsRegular() {
			r.lost(it, "read", errors.New("it is no regular file any more"))
			return nil
		}
		if !still {
			r.changed(it)
		}
		r.bytes += uint64(n)
		if n > 0 {
			d, err := r.add(n)
			if err != nil {
				return err
			}
			it.e.Content = recipe.Content{Kind: recipe.OneChunk, Digest: d}
		}
		return r.finish(ctx, it, f, &after, uint64(n))
	}
}

// errRun marks errors that are not the file's but the run's.
type errRun struct{ error }

func (e errRun) Unwrap() error { return e.error }

// unread tells the file's errors from the run's.
func (r *reader) unread(it *item, err error) error {
	var fatal errRun
	if errors.As(err, &fatal) {
		return fatal.error
	}
	r.lost(it, "read", err)
	return nil
}

// small reads a whole small file into the parcel, without adding it. Whole is false where the file must be read the
// other way: it is large, or has holes.
func (r *reader) small(ctx context.Context, f fsmeta.File, st *fsmeta.Stat) (n int, whole bool, err error) {
	if !st.IsRegular() || st.Size >= chunk.SmallFile || st.Allocated < st.Size && hasHole(f, st) {
		return 0, false, nil
	}
	room, err := r.room(ctx, int(st.Size)+1)
	if err != nil {
		return 0, false, errRun{err}
	}
	n, err = f.ReadOnce(room[:st.Size+1], 0)
	if err != nil {
		return 0, false, err
	}
	r.lap(&r.spent.source)
	return n, n <= int(st.Size), nil
}

// hasHole asks the file system, for a file of few blocks may be a compressed one, too.
func hasHole(f fsmeta.File, st *fsmeta.Stat) bool {
	start, end, err := f.NextData(0, int64(st.Size))
	return err != nil || start > 0 || uint64(end) < st.Size
}

// changed notes a file that was written while it was read.
func (r *reader) changed(it *item) {
	r.rep.Noted.Add(1)
	r.rep.Note("changed_while_read", it.path(), errors.New("the file changed while it was read"))
}

// finish completes a file's entry with what the file is now.
func (r *reader) finish(ctx context.Context, it *item, f fsmeta.File, st *fsmeta.Stat, size uint64) error {
	e := &it.e
	e.Mode, e.UID, e.GID, e.MTime, e.Size = st.Mode, st.UID, st.GID, st.MTime, size
	it.side.Dev, it.side.Ino, it.side.CTime = st.Dev, st.Ino, st.CTime
	r.files++
	xattrs, err := f.Xattrs(&r.sc)
	if err != nil {
		r.rep.Warn("xattr_unreadable", it.path(), err)
	}
	if e.Flags, err = f.Flags(); err != nil {
		r.rep.Warn("flags_unreadable", it.path(), fmt.Errorf("read inode flags: %w", err))
	}
	if len(xattrs) == 0 {
		return nil
	}
	return r.xattrs(ctx, it, xattrs)
}

// room returns space for n bytes at the end of the parcel. What is written there is kept by add.
func (r *reader) room(ctx context.Context, n int) ([]byte, error) {
	if r.boxes != nil {
		n += seal.Overhead
	}
	if r.cur != nil && (cap(r.cur.buf)-len(r.cur.buf) < n || len(r.cur.refs) >= uplink.MaxHave) {
		if err := r.flush(ctx); err != nil {
			return nil, err
		}
	}
	if r.cur == nil {
		r.lap(&r.spent.source)
		buf, err := r.bufs.small.get(ctx)
		if err != nil {
			return nil, err
		}
		r.lap(&r.spent.network) // the senders hold the buffers
		r.cur = &parcel{buf: buf, from: r.bufs.small, refs: make([]frame.Ref, 0, 128)}
	}
	p := r.cur
	return p.buf[len(p.buf):cap(p.buf)], nil
}

// add makes the first n bytes of the room a chunk of the parcel.
func (r *reader) add(n int) (digest.Digest, error) {
	p := r.cur
	start := len(p.buf)
	p.buf = p.buf[:start+n]
	r.lap(&r.spent.source)
	if r.boxes != nil {
		box, err := r.seal(p.buf[start:])
		if err != nil {
			return digest.Digest{}, err
		}
		p.buf, n = p.buf[:start+len(box)], len(box) // room left space for it
	}
	d := r.hash.Sum(p.buf[start:])
	r.lap(&r.spent.hashing)
	p.refs = append(p.refs, frame.Ref{Digest: d, Length: uint32(n)})
	return d, nil
}

// seal puts a chunk into its box, in the chunk's own memory where that has the room; nothing changes where nothing is
// sealed.
func (r *reader) seal(c []byte) ([]byte, error) {
	if r.boxes == nil {
		return c, nil
	}
	var err error
	if r.box, err = r.boxes.SealChunk(r.box[:0], c); err != nil {
		return nil, err
	}
	return append(c[:0], r.box...), nil
}

// flush asks about the parcel's chunks and gives it to the senders.
func (r *reader) flush(ctx context.Context) error {
	p := r.cur
	r.cur = nil
	if p == nil {
		return nil
	}
	return r.post(ctx, p)
}

func (r *reader) post(ctx context.Context, p *parcel) error {
	if len(p.refs) == 0 {
		p.from.put(p.buf)
		return nil
	}
	ds := make([]digest.Digest, len(p.refs))
	for i := range p.refs {
		ds[i] = p.refs[i].Digest
	}
	p.have = r.lane.HaveAsync(ctx, ds)
	return send(ctx, r.sends, p)
}
