package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// worker fetches batches and writes them.
type worker struct {
	*job
	dec    *frame.Decoder
	hash   *digest.Hasher
	unseal *seal.Opener // of an encrypted task; nil: chunks are plain
	buf    []byte
	box    []byte // what was in the last box
	cmp    []byte // what a verifying restore reads
	meta   *applier
}

func newWorker(j *job) *worker {
	return &worker{job: j, dec: frame.NewDecoder(), hash: digest.NewHasher(j.keys.Data), unseal: uplink.OpenerOf(j.run), meta: newApplier(j)}
}

func (w *worker) run(ctx context.Context) error {
	for {
		select {
		case b, ok := <-w.work:
			if !ok {
				return nil
			}
			if err := w.batch(ctx, b); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *worker) batch(ctx context.Context, b *batch) error {
	if len(b.items) > 0 {
		waited, last := time.Duration(0), time.Now()
		err := w.job.run.Fetch(ctx, b.items, func(f frame.Frame) error {
			waited += time.Since(last)
			defer func() { last = time.Now() }()
			return w.frame(b, f)
		})
		w.rep.Network.Add(int64(waited))
		if err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
	}
	for _, h := range b.holes {
		w.compareHole(h.f, h.off, h.end)
		w.chunkDone(h.f)
	}
	for i := range b.wants {
		if want := &b.wants[i]; !want.got {
			w.fail(want.f, codeDamaged, errors.New("the appliance could not deliver its content"))
			w.chunkDone(want.f)
		}
	}
	for _, f := range b.empty {
		w.open(f)
		w.chunkDone(f)
	}
	return nil
}

// frame decompresses a frame and writes the chunks that are wanted.
func (w *worker) frame(b *batch, f frame.Frame) error {
	start := time.Now()
	plain, err := w.dec.Decode(f, w.buf[:0])
	decoded := time.Now()
	w.rep.Compress.Add(int64(decoded.Sub(start)))
	if err != nil {
		w.rep.Warn(codeDamaged, "", fmt.Errorf("a frame of %d chunks: %w", len(f.Refs), err))
		return nil // its chunks count as not delivered
	}
	w.buf = plain
	hashing := time.Duration(0)
	for _, ref := range f.Refs {
		chunk := plain[:ref.Length]
		plain = plain[ref.Length:]
		i, ok := b.first[ref.Digest]
		if !ok || b.wants[i].got {
			continue
		}
		before := time.Now()
		right := w.hash.Sum(chunk) == ref.Digest
		hashing += time.Since(before)
		if !right {
			continue // not delivered
		}
		if w.unseal != nil {
			if chunk, err = w.unseal.Chunk(w.box[:0], chunk); err != nil {
				w.rep.Warn(codeDamaged, "", err)
				continue
			}
			w.box = chunk
		}
		for ; i >= 0; i = b.wants[i].next {
			want := &b.wants[i]
			want.got = true
			w.chunk(want, chunk)
			w.chunkDone(want.f)
		}
	}
	w.rep.Hashing.Add(int64(hashing))
	w.rep.Source.Add(int64(time.Since(decoded) - hashing))
	return nil
}

// chunk writes one chunk to one place.
func (w *worker) chunk(want *want, p []byte) {
	f := want.f
	if !w.open(f) {
		return
	}
	if w.order.Verify {
		w.compare(f, p, want.off)
		return
	}
	write := f.write
	if f.e.Content.Kind == recipe.ImageTree {
		write = f.writeSparse
	}
	if err := write(p, want.off); err != nil {
		w.fail(f, codeNotMade, fmt.Errorf("write: %w", err))
		return
	}
	w.rep.BytesRead.Add(uint64(len(p)))
}

// open makes the file if that was not done yet, and reports whether it can be written.
func (w *worker) open(f *file) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opened || f.failed {
		return f.opened && !f.failed
	}
	if err := w.make(f); err != nil {
		f.failed = true
		w.notMade(f.path(), err)
		return false
	}
	f.opened = true
	if f.hasExtents() {
		w.holds.mu.Lock()
		w.holds.files[f] = struct{}{}
		w.holds.mu.Unlock()
	}
	return true
}

// perm is the mode that the file is made with: the final one where nothing stands between, else the owner's alone.
func (f *file) perm() uint32 {
	if f.e.Mode&0o7000 != 0 || len(f.e.Xattrs) > 0 {
		return 0o600
	}
	return f.e.Mode & 0o777
}

// make makes the file, under the name that the order's way with existing files gives it. The mutex is held.
func (w *worker) make(f *file) (err error) {
	at := f.dir.fd // open for the file
	if w.order.Verify {
		f.f, err = at.OpenFile(f.name)
		return err
	}
	f.slot, err = w.place(at, f.name, func(name string) (err error) {
		f.f, err = at.Create(name, f.perm())
		return err
	})
	if err != nil {
		return err
	}
	if f.e.Flags&fsmeta.FlagNoCOW != 0 {
		_ = f.f.Handle(at, f.slot.name).SetFlags(fsmeta.FlagNoCOW) // works on empty files only; checked in the end
	}
	if f.hasExtents() {
		if err = f.f.Truncate(int64(f.e.Size)); err != nil {
			_ = f.f.Close()
			f.slot.undo()
			return fmt.Errorf("set the file's length: %w", err)
		}
	}
	return nil
}

// fail gives a file up.
func (w *worker) fail(f *file, code string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.failed {
		f.failed = true
		w.rep.Warn(code, f.path(), err)
	}
}

// chunkDone counts what the file waits for; the last one completes it.
func (w *worker) chunkDone(f *file) {
	if f.left.Add(-1) > 0 {
		return
	}
	f.mu.Lock()
	w.complete(f)
	f.mu.Unlock()
	if f.group == nil { // else it is done with the group's last link
		f.dir.done(w.meta)
	}
	f.dir.close()
}

// complete gives a file its metadata and its name. The mutex is held.
func (w *worker) complete(f *file) {
	if !f.opened {
		return
	}
	at := f.dir.fd
	defer f.f.Close()
	if f.hasExtents() {
		w.holds.mu.Lock()
		delete(w.holds.files, f)
		w.holds.mu.Unlock()
	}
	if w.order.Verify {
		w.meta.compare(f.path(), f.f.Handle(at, f.name), &f.e)
		w.rep.Files.Add(1)
		return
	}
	if f.failed {
		f.slot.undo()
		return
	}
	made := f.dir.fresh(f.perm())
	h := f.f.Handle(at, f.slot.name)
	w.meta.dress(f.path(), h, &f.e, made)
	if err := f.slot.done(); err != nil {
		f.failed = true
		w.notMade(f.path(), err)
		return
	}
	if f.group != nil {
		w.late(f, f.slot.name, made)
	} else {
		w.meta.flags(f.path(), h, &f.e, made)
	}
	w.rep.Files.Add(1)
}
