package disk

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/seal"
)

// stats is Stats that many goroutines add to.
type stats struct{ read, zero, taken, fetched, new, sent atomic.Uint64 }

func (s *stats) sum() Stats {
	return Stats{Read: s.read.Load(), Zero: s.zero.Load(), Taken: s.taken.Load(), Fetched: s.fetched.Load(),
		New: s.new.Load(), Sent: s.sent.Load()}
}

// worker does pieces: it reads, hashes, asks and sends.
type worker struct {
	*store
	lane  uplink.Lane
	hash  *digest.Hasher
	boxes *seal.Sealer // nil: nothing is sealed
	enc   *frame.Encoder
	fetch *uplink.Fetcher
	plain []byte      // what was read
	got   uint64      // bytes from the source, not reported yet
	out   []byte      // the chunks as the appliance is to have them; plain itself where nothing is sealed
	refs  []frame.Ref // to out
	dst   []byte
	spent struct{ source, hashing, compress, network time.Duration }
	last  time.Time
}

func newWorker(s *store, i int) *worker {
	w := &worker{store: s, lane: s.to.Lane(i % s.to.MaxLanes()), hash: digest.NewHasher(s.to.Domain().Keys.Data),
		enc: frame.NewEncoder(), fetch: uplink.NewFetcher(s.open)}
	if s.o.Key != nil {
		w.boxes = seal.NewSealer(*s.o.Key)
	}
	return w
}

func (w *worker) run(ctx context.Context) error {
	for {
		select {
		case p, ok := <-w.work:
			if !ok {
				return nil
			}
			if err := w.do(ctx, p); err != nil {
				return err
			}
			close(p.done)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lap adds the time since the last lap to a stage.
func (w *worker) lap(stage *time.Duration) {
	now := time.Now()
	*stage += now.Sub(w.last)
	w.last = now
}

// do reads a piece, fills in its digests, and sends what the appliance lacks of it.
func (w *worker) do(ctx context.Context, p *piece) error {
	w.last = time.Now()
	w.out, w.refs = w.out[:0], w.refs[:0]
	old, err := w.parents(ctx, p)
	if err != nil {
		return fmt.Errorf("fetch from the parent saveset: %w", err)
	}
	w.lap(&w.spent.network)
	w.plain = w.plain[:0]
	for i := range p.spans {
		if err := w.span(ctx, &p.spans[i], old); err != nil {
			return err
		}
	}
	if err := w.send(ctx); err != nil {
		return err
	}
	w.account()
	return nil
}

// parents brings what the parent has of chunks that changed in part.
func (w *worker) parents(ctx context.Context, p *piece) (map[digest.Digest][]byte, error) {
	var items []uplink.FetchItem
	for i := range p.spans {
		sp := &p.spans[i]
		if sp.kind != patch {
			continue
		}
		d, n, err := w.parentChunk(ctx, sp)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			items = append(items, uplink.FetchItem{Digest: d, Length: uint32(n)})
			w.stats.fetched.Add(n)
		}
	}
	if len(items) == 0 {
		return nil, nil
	}
	return w.fetch.Chunks(ctx, items)
}

// parentChunk is the parent's chunk in the place of a patch; n is 0 where it has none, or none is needed.
func (w *worker) parentChunk(ctx context.Context, sp *span) (d digest.Digest, n uint64, err error) {
	needed := false
	for _, x := range sp.parts {
		needed = needed || x.kind == take
	}
	if !needed {
		return d, 0, nil
	}
	chunks, err := w.parent.Chunks(ctx, sp.first)
	if err != nil {
		return d, 0, err
	}
	d, ok := chunks.At(sp.first)
	if !ok {
		return d, 0, nil
	}
	return d, min(w.chunk, w.parent.Size()-sp.first*w.chunk), nil
}

// span reads the chunks of a span.
func (w *worker) span(ctx context.Context, sp *span, old map[digest.Digest][]byte) error {
	off := sp.first * w.chunk
	end := min(off+sp.n*w.chunk, w.size)
	switch sp.kind {
	case read:
		at := len(w.plain)
		buf := w.room(int(end - off))
		if err := w.read(ctx, buf, off); err != nil {
			return err
		}
		return w.chunks(sp, w.plain[at:])
	case patch:
		at := len(w.plain)
		if err := w.patch(ctx, sp, w.room(int(end-off)), old); err != nil {
			return err
		}
		return w.chunks(sp, w.plain[at:])
	}
	return nil
}

// room makes plain longer and returns what it is longer by.
func (w *worker) room(n int) []byte {
	at := len(w.plain)
	if cap(w.plain) < at+n {
		w.plain = append(make([]byte, 0, max(pieceBytes, at+n)), w.plain...)
	}
	w.plain = w.plain[:at+n]
	return w.plain[at:]
}

func (w *worker) read(ctx context.Context, p []byte, off uint64) error {
	if err := w.src.ReadAt(ctx, p, int64(off)); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	w.stats.read.Add(uint64(len(p)))
	w.got += uint64(len(p))
	w.lap(&w.spent.source)
	return nil
}

// patch puts a chunk together from the parent's and what changed of it.
func (w *worker) patch(ctx context.Context, sp *span, p []byte, old map[digest.Digest][]byte) error {
	base := sp.first * w.chunk
	clear(p)
	d, n, err := w.parentChunk(ctx, sp)
	if err != nil {
		return err
	}
	if n > 0 {
		if uint64(len(old[d])) != n {
			return report.Errorf(CodeParent, "chunk %v of the parent saveset has %d bytes, not %d", d, len(old[d]), n)
		}
		copy(p, old[d])
	}
	for _, x := range sp.parts {
		q := p[x.off-base : x.end-base]
		switch x.kind {
		case zero:
			clear(q)
		case read:
			if err := w.read(ctx, q, x.off); err != nil {
				return err
			}
		case take:
			w.stats.taken.Add(uint64(len(q)))
		}
	}
	return nil
}

// CodeParent is the code of a run that failed because the parent saveset does not deliver what the recipe says.
const CodeParent = "parent_unreadable"

// chunks hashes the chunks of a span.
func (w *worker) chunks(sp *span, p []byte) error {
	sp.digests = make([]digest.Digest, 0, sp.n)
	for len(p) > 0 {
		c := p[:min(uint64(len(p)), w.chunk)]
		p = p[len(c):]
		if isZero(c) {
			sp.digests = append(sp.digests, digest.Digest{})
			w.stats.zero.Add(uint64(len(c)))
			continue
		}
		d, err := w.chunkOf(c)
		if err != nil {
			return err
		}
		sp.digests = append(sp.digests, d)
	}
	w.lap(&w.spent.hashing)
	return nil
}

// isZero compares with itself, one byte further on.
func isZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

func (w *worker) chunkOf(c []byte) (digest.Digest, error) {
	at := len(w.out)
	if w.boxes == nil {
		w.out = append(w.out, c...)
	} else {
		var err error
		if w.out, err = w.boxes.SealChunk(w.out, c); err != nil {
			return digest.Digest{}, err
		}
	}
	d := w.hash.Sum(w.out[at:])
	w.refs = append(w.refs, frame.Ref{Digest: d, Length: uint32(len(w.out) - at)})
	return d, nil
}

// send asks for the chunks, and sends those that the appliance lacks, neighbours in one frame.
func (w *worker) send(ctx context.Context) error {
	if len(w.refs) == 0 {
		return nil
	}
	ds := make([]digest.Digest, len(w.refs))
	for i := range w.refs {
		ds[i] = w.refs[i].Digest
	}
	have, err := w.lane.Have(ctx, ds)
	w.lap(&w.spent.network)
	if err != nil {
		return fmt.Errorf("ask for missing chunks: %w", err)
	}
	at := 0
	for i := 0; i < len(have); {
		n, size := frame.Missing(w.refs[i:], have[i:])
		if n == 0 {
			at += int(w.refs[i].Length)
			i++
			continue
		}
		if err := w.put(ctx, w.refs[i:i+n], w.out[at:at+size]); err != nil {
			return fmt.Errorf("send chunks: %w", err)
		}
		i, at = i+n, at+size
	}
	return nil
}

func (w *worker) put(ctx context.Context, refs []frame.Ref, p []byte) error {
	f := w.enc.Encode(refs, p, w.dst)
	w.dst = f.Stored
	w.lap(&w.spent.compress)
	err := w.lane.Put(ctx, f)
	w.lap(&w.spent.network)
	w.stats.new.Add(uint64(len(p)))
	w.stats.sent.Add(uint64(len(f.Stored)))
	if r := w.o.Report; r != nil {
		r.BytesNew.Add(uint64(len(p)))
		r.BytesSent.Add(uint64(len(f.Stored)))
	}
	return err
}

// account hands in what was counted since the last time.
func (w *worker) account() {
	r := w.o.Report
	if r == nil {
		return
	}
	r.BytesRead.Add(w.got)
	w.got = 0
	r.Source.Add(int64(w.spent.source))
	r.Hashing.Add(int64(w.spent.hashing))
	r.Compress.Add(int64(w.spent.compress))
	r.Network.Add(int64(w.spent.network))
	w.spent.source, w.spent.hashing, w.spent.compress, w.spent.network = 0, 0, 0, 0
}
