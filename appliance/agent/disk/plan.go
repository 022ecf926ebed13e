package disk

import (
	"context"
	"fmt"

	"coffer/dedup/digest"
)

const (
	// pieceBytes is how much a worker reads at a time, at most; the largest chunk is a piece of its own.
	pieceBytes = 1 << 20
	// pieceSpans bounds a piece of which little is to be read.
	pieceSpans = 256
)

// kind is what is to be done with some chunks.
type kind uint8

const (
	take  kind = iota // as in the parent
	zero              // nothing in them
	read              // from the source
	patch             // one chunk that changed in part
)

// span is some consecutive chunks.
type span struct {
	kind    kind
	first   uint64
	n       uint64
	parts   []part          // of a patch, all of the chunk
	digests []digest.Digest // of read and patch, when they are done; zero for chunks of zeros
}

// part is a part of a chunk: of kind take, zero, or read.
type part struct {
	kind     kind
	off, end uint64 // on the disk
}

// piece is what one worker does at a time.
type piece struct {
	spans []span
	bytes uint64        // to read
	done  chan struct{} // closed when the digests are there; nil where there is nothing to read
}

// planner makes pieces of changes.
type planner struct {
	*store
	ctx   context.Context // of the run, for the callback that takes changes
	at    uint64          // up to here the disk is planned
	parts []part          // of the chunk that is open
	piece *piece
	err   error
}

func newPlanner(ctx context.Context, s *store) *planner {
	return &planner{store: s, ctx: ctx, piece: &piece{}}
}

func (p *planner) run(changes Changes) error {
	err := changes(func(r Range) bool {
		p.err = p.change(r)
		return p.err == nil
	})
	if p.err != nil {
		return p.err
	}
	if err != nil {
		return fmt.Errorf("find out what changed: %w", err)
	}
	if err := p.unchanged(p.size); err != nil {
		return err
	}
	return p.flush()
}

func (p *planner) change(r Range) error {
	if r.Off < 0 || r.N < 0 || uint64(r.Off) < p.at || uint64(r.Off) > p.size || uint64(r.N) > p.size-uint64(r.Off) {
		return fmt.Errorf("a change of %d bytes at %d, after %d of %d", r.N, r.Off, p.at, p.size)
	}
	if err := p.unchanged(uint64(r.Off)); err != nil {
		return err
	}
	k := read
	if r.Zero {
		k = zero
	}
	return p.cover(k, uint64(r.Off+r.N))
}

// unchanged covers what no change has named.
func (p *planner) unchanged(end uint64) error {
	if p.parent == nil {
		return p.cover(zero, end)
	}
	if err := p.cover(take, min(end, p.parent.Size())); err != nil {
		return err
	}
	return p.cover(read, end)
}

// cover says what the disk is up to end.
func (p *planner) cover(k kind, end uint64) error {
	for p.at < end {
		if p.at%p.chunk == 0 && len(p.parts) == 0 {
			if n := p.whole(end); n > 0 {
				if err := p.spans(k, n); err != nil {
					return err
				}
				continue
			}
		}
		to := min(end, (p.at/p.chunk+1)*p.chunk)
		p.part(part{k, p.at, to})
		p.at = to
		if p.at%p.chunk == 0 || p.at == p.size {
			if err := p.patch(); err != nil {
				return err
			}
		}
	}
	return nil
}

// whole is how many chunks from the open end on are covered as a whole.
func (p *planner) whole(end uint64) uint64 {
	if end == p.size {
		return (end - p.at + p.chunk - 1) / p.chunk
	}
	return (end - p.at) / p.chunk
}

func (p *planner) part(x part) {
	if last := len(p.parts) - 1; last >= 0 && p.parts[last].kind == x.kind {
		p.parts[last].end = x.end
		return
	}
	p.parts = append(p.parts, x)
}

// spans plans whole chunks of one kind.
func (p *planner) spans(k kind, n uint64) error {
	if k == take {
		// The last chunk of a shorter or longer parent has another length.
		last := p.at/p.chunk + n - 1
		if end := min((last+1)*p.chunk, p.size); end != min((last+1)*p.chunk, p.parent.Size()) {
			if n == 1 {
				p.parts = []part{{take, p.at, end}}
				p.at = end
				return p.patch()
			}
			n--
		}
	}
	if k == read {
		n = min(n, max(1, (pieceBytes-min(p.piece.bytes, pieceBytes))/p.chunk))
	}
	first := p.at / p.chunk
	p.at = min(p.at+n*p.chunk, p.size)
	return p.plan(span{kind: k, first: first, n: n})
}

// patch plans the open chunk.
func (p *planner) patch() error {
	parts := p.parts
	p.parts = nil
	first := parts[0].off / p.chunk
	if len(parts) == 1 && parts[0].kind != take {
		return p.plan(span{kind: parts[0].kind, first: first, n: 1})
	}
	return p.plan(span{kind: patch, first: first, n: 1, parts: parts})
}

// plan adds a span to the piece.
func (p *planner) plan(sp span) error {
	if last := len(p.piece.spans) - 1; last >= 0 && sp.kind != patch && p.piece.spans[last].kind == sp.kind {
		p.piece.spans[last].n += sp.n
	} else {
		p.piece.spans = append(p.piece.spans, sp)
	}
	if sp.kind == read || sp.kind == patch {
		p.piece.bytes += sp.n * p.chunk
	}
	if p.piece.bytes+p.chunk <= pieceBytes && len(p.piece.spans) < pieceSpans {
		return nil
	}
	return p.flush()
}

// flush hands the piece on: to the builder first, for its place in the order, and to the workers.
func (p *planner) flush() error {
	next := p.piece
	if len(next.spans) == 0 {
		return nil
	}
	p.piece = &piece{}
	if next.bytes > 0 {
		next.done = make(chan struct{})
	}
	if err := send(p.ctx, p.order, next); err != nil || next.bytes == 0 {
		return err
	}
	return send(p.ctx, p.work, next)
}

func send[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
