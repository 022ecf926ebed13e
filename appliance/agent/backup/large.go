package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"coffer/appliance/agent/fsmeta"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// cutting is what a reader needs for content of more than one chunk.
type cutting struct {
	cutter  *chunk.Cutter
	builder *recipe.StreamBuilder
}

// ownParcel is the size from which a chunk travels in the buffer that it was cut into.
const ownParcel = 128 << 10

// asking is the sink of streams: what lies in the parcel is asked for before a node refers to it.
type asking struct{ r *reader }

// PutNode implements recipe.Sink.
func (a asking) PutNode(ctx context.Context, d digest.Digest, rec []byte) error {
	if err := a.r.flush(ctx); err != nil {
		return err
	}
	return a.r.job.run.PutNode(ctx, d, rec)
}

func (r *reader) cutting() (*cutting, error) {
	if r.cut == nil {
		c, err := chunk.NewCutter(r.job.run.Domain().Chunking)
		if err != nil {
			return nil, fmt.Errorf("chunking of the appliance: %w", err)
		}
		r.cut = &cutting{c, recipe.NewStreamBuilder(r.sink(asking{r}), digest.NewHasher(r.keys.Node))}
	}
	return r.cut, nil
}

// large captures a file that is large or has holes. It is read once: one that changes meanwhile is noted.
func (r *reader) large(ctx context.Context, it *item, f fsmeta.File) error {
	var before, after fsmeta.Stat
	if err := f.Stat(&before); err != nil {
		r.lost(it, "look at file", err)
		return nil
	}
	if !before.IsRegular() {
		r.lost(it, "read", errors.New("it is no regular file any more"))
		return nil
	}
	cut, err := r.cutting()
	if err != nil {
		return err
	}
	size, err := r.extents(ctx, cut, f, int64(before.Size))
	if err != nil {
		cut.builder.Reset()
		return r.unread(it, err)
	}
	if it.e.Content, _, err = cut.builder.Finish(ctx); err != nil {
		return err
	}
	if err := f.Stat(&after); err != nil {
		r.lost(it, "look at file", err)
		return nil
	}
	if !after.Unchanged(&before) || uint64(size) != after.Size {
		r.changed(it)
	}
	return r.finish(ctx, it, f, &after, uint64(size))
}

// extents sends the data of a file and describes it to the builder, holes included. It returns the length described.
func (r *reader) extents(ctx context.Context, cut *cutting, f fsmeta.File, size int64) (int64, error) {
	for at := int64(0); ; {
		start, end, err := f.NextData(at, size)
		if err == io.EOF {
			start, end = size, size
		} else if err != nil {
			return at, err
		}
		if start > at {
			if err := cut.builder.Add(ctx, recipe.Extent{Hole: true, Length: uint64(start - at)}); err != nil {
				return at, errRun{err}
			}
		}
		if start == size {
			return size, nil
		}
		n, err := r.cutStream(ctx, cut, &section{f, start, end})
		if err != nil {
			return at, err
		}
		if at = start + n; at < end {
			return at, nil // the file was cut short meanwhile
		}
	}
}

// section reads a part of a file.
type section struct {
	f       fsmeta.File
	at, end int64
}

func (s *section) Read(p []byte) (int, error) {
	if s.at >= s.end {
		return 0, io.EOF
	}
	n, err := s.f.ReadOnce(p[:min(int64(len(p)), s.end-s.at)], s.at)
	s.at += int64(n)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// cutStream cuts what src has into chunks, sends them and adds them to the builder. Errors of src come as they are.
func (r *reader) cutStream(ctx context.Context, cut *cutting, src io.Reader) (total int64, err error) {
	cut.cutter.Reset(src)
	for {
		buf, err := r.bufs.large.get(ctx)
		if err != nil {
			return total, errRun{err}
		}
		c, err := cut.cutter.Next(buf[:0])
		r.lap(&r.spent.source)
		if err != nil {
			r.bufs.large.put(buf)
			if err == io.EOF {
				return total, nil
			}
			return total, err
		}
		n := len(c)
		d, err := r.chunk(ctx, c)
		if err == nil {
			err = cut.builder.Add(ctx, recipe.Extent{Length: uint64(n), Digest: d})
		}
		if err != nil {
			return total, errRun{err}
		}
		total += int64(n)
		r.bytes += uint64(n)
		r.account()
	}
}

// chunk hashes and posts a chunk that lies in a large buffer, which it takes.
func (r *reader) chunk(ctx context.Context, c []byte) (digest.Digest, error) {
	if len(c) < ownParcel {
		defer r.bufs.large.put(c)
		room, err := r.room(ctx, len(c))
		if err != nil {
			return digest.Digest{}, err
		}
		return r.add(copy(room, c))
	}
	r.lap(&r.spent.source)
	c, err := r.seal(c)
	if err != nil {
		return digest.Digest{}, err
	}
	d := r.hash.Sum(c)
	r.lap(&r.spent.hashing)
	refs := []frame.Ref{{Digest: d, Length: uint32(len(c))}}
	err = r.post(ctx, &parcel{refs: refs, buf: c, from: r.bufs.large})
	r.lap(&r.spent.network)
	return d, err
}
