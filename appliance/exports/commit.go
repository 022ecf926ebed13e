package exports

import (
	"context"
	"errors"
	"io"
	"strings"

	"coffer/dedup"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/nbd/overlay"
	"coffer/nbd/savesetdev"
)

// Sink is a run of the store, as far as a commit writes to it. Methods are called from one goroutine.
type Sink interface {
	Have(ctx context.Context, ds []digest.Digest, out []bool) error
	PutFrame(ctx context.Context, f frame.Frame) error
	PutNodes(ctx context.Context, f frame.Frame) error
}

// Commit is the making of a saveset from an overlay: the tree of the export's saveset with what was written in place of its
// disk. The export takes no connections until End.
type Commit struct {
	e    *export
	view Reading
	over *overlay.Overlay
}

// BeginCommit begins a commit. Kinds NotFound, Invalid (no overlay), InUse, Locked, Sealed, Broken.
func (m *Manager) BeginCommit(ctx context.Context, id string) (*Commit, error) {
	e, err := m.find(id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.rec.Overlay {
		return nil, failf(Invalid, nil, "export %s has no overlay: nothing was written to it", id)
	}
	if err := e.unused("to commit it"); err != nil {
		return nil, err
	}
	if _, err := e.state(); err != nil {
		return nil, err
	}
	if err := e.overlay.Flush(ctx); err != nil {
		return nil, failf(Other, err, "flush export %s", id)
	}
	e.committing = true
	return &Commit{e: e, view: e.view, over: e.overlay}, nil
}

// End lets the export take connections again.
func (c *Commit) End() {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.e.committing = false
}

// Manifest is that of the saveset below the overlay.
func (c *Commit) Manifest() dedup.Manifest { return c.view.Manifest() }

// Unclean tells that the overlay may have lost writes: see overlay.Overlay.
func (c *Commit) Unclean() bool { return c.over.Unclean() }

// Bytes is how many bytes the commit reads, at most about: what was written.
func (c *Commit) Bytes() int64 { return c.over.Usage().DataBytes }

// Build writes what the store lacks of the new saveset and returns its root. done is told how many bytes were read so far.
func (c *Commit) Build(ctx context.Context, to Sink, keys digest.Keys, done func(int64)) (recipe.Ref, error) {
	key, err := c.view.Key()
	if err != nil {
		return recipe.Ref{}, err
	}
	root := c.view.Manifest().Root.Digest
	old, err := savesetdev.Find(ctx, c.view, root, c.e.rec.Disk)
	if err != nil {
		return recipe.Ref{}, err
	}
	w := newWriter(to, keys, key)
	b := &imageBuild{c: c, w: w, done: done}
	entry, err := b.run(ctx, old, keys)
	if err != nil {
		return recipe.Ref{}, err
	}
	ref, err := replaceEntry(ctx, c.view, w, keys, root, strings.Split(c.e.rec.Disk, "/"), entry)
	if err != nil {
		return recipe.Ref{}, err
	}
	return ref, w.flush(ctx)
}

// imageBuild makes the new image: chunks that were written in are read from the overlay as a whole, all others are taken
// over from the old image by their nodes' digests, or read, where the old file is no image.
type imageBuild struct {
	c     *Commit
	w     *writer
	done  func(int64)
	b     *recipe.ImageBuilder
	old   *recipe.Image // nil: the old file is no image
	chunk int64
	read  int64
	told  int64
	err   error
}

func (i *imageBuild) run(ctx context.Context, old recipe.Entry, keys digest.Keys) (recipe.Entry, error) {
	i.chunk = chunk.Image
	if old.Content.Kind == recipe.ImageTree {
		var err error
		if i.old, err = recipe.OpenImage(ctx, i.c.view, old.Content, old.Size); err != nil {
			return old, err
		}
		i.chunk = int64(i.old.ChunkSize())
	}
	i.b = recipe.NewImageBuilder(i.w.sink(), digest.NewHasher(keys.Node))
	if err := i.b.Start(old.Size, int(i.chunk)); err != nil {
		return old, err
	}
	i.c.over.Changed(func(off, n int64, zero bool) bool {
		i.err = i.change(ctx, off, n, zero)
		return i.err == nil
	})
	if i.err == nil {
		i.err = i.keep(ctx, int64(i.b.Chunks()))
	}
	if i.err != nil {
		return old, i.err
	}
	now := old
	var err error
	now.Content, _, err = i.b.Finish()
	now.LinkGroup = 0 // other names of the file keep what it was
	t := i.c.e.m.o.Now()
	now.MTime = recipe.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	return now, err
}

// change goes up to the end of a changed range: the chunks that it touches are read, or are holes.
func (i *imageBuild) change(ctx context.Context, off, n int64, zero bool) error {
	if err := i.keep(ctx, off/i.chunk); err != nil {
		return err
	}
	end := (off + n + i.chunk - 1) / i.chunk
	for at := int64(i.b.Next()); at < end; at = int64(i.b.Next()) {
		var err error
		if whole := i.whole(off, n); zero && at*i.chunk >= off && whole > at {
			err = i.b.Hole(ctx, uint64(whole-at))
		} else {
			err = i.readChunk(ctx, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// whole is the chunk behind the last one that lies inside a range as a whole.
func (i *imageBuild) whole(off, n int64) int64 {
	if off+n == i.c.over.Size() {
		return int64(i.b.Chunks())
	}
	return (off + n) / i.chunk
}

// keep takes over what was not changed, up to a chunk.
func (i *imageBuild) keep(ctx context.Context, upto int64) error {
	at := int64(i.b.Next())
	if at >= upto {
		return nil
	}
	if i.old != nil {
		return i.b.Take(ctx, i.old, uint64(upto-at))
	}
	for ; at < upto; at++ {
		if err := i.readChunk(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// readChunk reads a chunk through the overlay.
func (i *imageBuild) readChunk(ctx context.Context, at int64) error {
	off := at * i.chunk
	p := make([]byte, min(i.chunk, i.c.over.Size()-off))
	if err := i.c.over.ReadAt(ctx, p, off); err != nil {
		return err
	}
	if i.read += int64(len(p)); i.told == 0 || i.read-i.told >= tellStep {
		i.told = i.read
		i.done(i.read)
	}
	if allZero(p) {
		return i.b.Hole(ctx, 1)
	}
	d, err := i.w.chunk(ctx, p)
	if err != nil {
		return err
	}
	return i.b.Add(ctx, d)
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// replaceEntry makes the directory anew with another entry at a path below it, and returns its root.
func replaceEntry(ctx context.Context, src recipe.Source, w *writer, keys digest.Keys, dir digest.Digest, path []string, entry recipe.Entry) (recipe.Ref, error) {
	var below recipe.Totals
	if len(path) > 1 {
		e, _, err := recipe.Lookup(ctx, src, dir, path[0])
		if err != nil {
			return recipe.Ref{}, err
		}
		ref, err := replaceEntry(ctx, src, w, keys, e.Content.Digest, path[1:], entry)
		if err != nil {
			return recipe.Ref{}, err
		}
		e.Content.Digest, below = ref.Digest, ref.Totals
		entry = e
	}
	b := recipe.NewDirBuilder(w.sink(), digest.NewHasher(keys.Node))
	it := recipe.NewDirIter(src, dir)
	for {
		e, t, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return b.Finish(ctx)
		}
		if err == nil && e.Name == path[0] {
			e, t = entry, below
		}
		if err == nil {
			err = b.Add(ctx, e, t)
		}
		if err != nil {
			return recipe.Ref{}, err
		}
	}
}

// writer sends what the store lacks. Nodes go after the chunks that they name.
type writer struct {
	to     Sink
	key    *seal.Key // nil: nothing is sealed
	sealer *seal.Sealer
	hasher *digest.Hasher
	enc    *frame.Encoder

	asking  []digest.Digest // chunks whose presence is not known yet
	plain   [][]byte        // their bytes, as the store gets them
	pending int             // bytes of them
	data    frame.Packer
	nodes   frame.Packer
}

// tellStep is how many bytes are read between two words on how far a commit is.
const tellStep = 8 << 20

const (
	askBytes  = 8 << 20 // of chunks that are held until the store was asked for them
	askChunks = 512
)

func newWriter(to Sink, keys digest.Keys, key *seal.Key) *writer {
	w := &writer{to: to, key: key, hasher: digest.NewHasher(keys.Data), enc: frame.NewEncoder()}
	if key != nil {
		w.sealer = seal.NewSealer(*key)
	}
	return w
}

// sink is what builders put nodes into.
func (w *writer) sink() recipe.Sink {
	if w.key != nil {
		return seal.NewSink(w, *w.key)
	}
	return w
}

// chunk takes a chunk and returns its digest. It keeps p.
func (w *writer) chunk(ctx context.Context, p []byte) (d digest.Digest, err error) {
	if w.sealer != nil {
		if p, err = w.sealer.SealChunk(nil, p); err != nil {
			return d, err
		}
	}
	d = w.hasher.Sum(p)
	w.asking, w.plain, w.pending = append(w.asking, d), append(w.plain, p), w.pending+len(p)
	if w.pending < askBytes && len(w.asking) < askChunks {
		return d, nil
	}
	return d, w.send(ctx)
}

// send asks for the chunks that wait and sends those that the store lacks.
func (w *writer) send(ctx context.Context) error {
	have := make([]bool, len(w.asking))
	if err := w.to.Have(ctx, w.asking, have); err != nil {
		return err
	}
	sent := map[digest.Digest]bool{}
	for i, d := range w.asking {
		if have[i] || sent[d] {
			continue
		}
		sent[d] = true
		if !w.data.Fits(len(w.plain[i])) {
			if err := w.put(ctx, &w.data, w.to.PutFrame); err != nil {
				return err
			}
		}
		w.data.Add(d, w.plain[i])
	}
	clear(w.plain)
	w.asking, w.plain, w.pending = w.asking[:0], w.plain[:0], 0
	return w.put(ctx, &w.data, w.to.PutFrame)
}

func (w *writer) put(ctx context.Context, p *frame.Packer, to func(context.Context, frame.Frame) error) error {
	if p.Empty() {
		return nil
	}
	defer p.Reset()
	return to(ctx, p.Encode(w.enc, nil))
}

var _ recipe.Sink = (*writer)(nil)

// PutNode implements recipe.Sink.
func (w *writer) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	if !w.nodes.Fits(len(rec)) {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	w.nodes.Add(d, rec)
	return nil
}

// flush sends all that waits.
func (w *writer) flush(ctx context.Context) error {
	if err := w.send(ctx); err != nil {
		return err
	}
	return w.put(ctx, &w.nodes, w.to.PutNodes)
}
