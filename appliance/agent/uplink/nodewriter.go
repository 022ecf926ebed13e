package uplink

import (
	"context"
	"sync"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

const (
	batchNodes = 512       // nodes of a batch
	batchSize  = 512 << 10 // bytes of a batch
	batches    = 4         // that wait for the sender
	maxPut     = 128 << 10 // digests of nodes remembered as put
)

// nodeWriter takes the nodes of the new tree, leaves out those that the appliance has, and sends the others in frames,
// in the order in which they came: children first.
//
// Batches go through one goroutine: ask which nodes are missing, wait until the chunks that they name have arrived, send.
type nodeWriter struct {
	s     *Session
	queue chan *nodeBatch

	mu sync.Mutex
	// mu guards all below.
	batch *nodeBatch
	known map[digest.Digest]struct{} // put by this run, as far as remembered
}

// nodeBatch is some nodes, one after the other in recs.
type nodeBatch struct {
	ds   []digest.Digest
	ends []int
	recs []byte
	done chan struct{} // not nil: closed when all before is sent; such a batch has no nodes
}

func newNodeWriter(s *Session) *nodeWriter {
	return &nodeWriter{s: s, queue: make(chan *nodeBatch, batches), batch: &nodeBatch{}, known: map[digest.Digest]struct{}{}}
}

// put takes a node.
func (w *nodeWriter) put(ctx context.Context, d digest.Digest, rec []byte) error {
	if w.s.in.knows(d) {
		return nil // shown to this run, so it is in the store with all below it, under the run's lease
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, twice := w.known[d]; twice {
		return nil
	}
	if len(w.known) >= maxPut {
		clear(w.known)
	}
	w.known[d] = struct{}{}
	b := w.batch
	b.ds = append(b.ds, d)
	b.recs = append(b.recs, rec...)
	b.ends = append(b.ends, len(b.recs))
	if len(b.ds) < batchNodes && len(b.recs) < batchSize {
		return nil
	}
	return w.passLocked(ctx)
}

// passLocked hands the batch to the sender.
func (w *nodeWriter) passLocked(ctx context.Context) error {
	select {
	case w.queue <- w.batch:
		w.batch = &nodeBatch{}
		return nil
	case <-w.s.done:
		return whyOver(w.s.Err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish sends what is left and waits until all is queued on the run stream.
func (w *nodeWriter) finish(ctx context.Context) error {
	w.mu.Lock()
	err := w.passLocked(ctx)
	end := &nodeBatch{done: make(chan struct{})}
	if err == nil {
		w.batch = end
		err = w.passLocked(ctx)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-end.done:
		return nil
	case <-w.s.done:
		return whyOver(w.s.Err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// work sends batches until the session is over. While one batch waits for its answer the next one is asked.
func (w *nodeWriter) work(ctx context.Context) {
	enc := frame.NewEncoder()
	type asked struct {
		b    *nodeBatch
		wait func(context.Context) ([]bool, error)
	}
	ahead := make(chan asked, 1)
	go func() {
		defer close(ahead)
		for {
			select {
			case b := <-w.queue:
				a := asked{b: b}
				if len(b.ds) > 0 {
					a.wait = askHave(ctx, w.s.run, b.ds)
				}
				select {
				case ahead <- a:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for a := range ahead {
		if a.b.done != nil {
			close(a.b.done)
			continue
		}
		if a.wait == nil {
			continue
		}
		if err := w.send(ctx, a.b, a.wait, enc); err != nil {
			w.s.end(err)
			break
		}
	}
	for range ahead { // ends with ctx, which the session's end has ended
	}
}

// send sends the nodes of a batch that the appliance lacks.
func (w *nodeWriter) send(ctx context.Context, b *nodeBatch, wait func(context.Context) ([]bool, error), enc *frame.Encoder) error {
	have, err := wait(ctx)
	if err != nil {
		return err
	}
	var packer frame.Packer
	var chunks []digest.Digest
	start := 0
	for i, d := range b.ds {
		rec := b.recs[start:b.ends[i]]
		start = b.ends[i]
		if have[i] {
			continue
		}
		node, err := recipe.ParseClear(rec)
		if err != nil {
			return sms.Errorf(sms.CodeInternal, "put node %v: %w", d, err)
		}
		if !packer.Empty() && !packer.Fits(len(rec)) {
			if err := w.sendFrame(ctx, &packer, chunks, enc); err != nil {
				return err
			}
			chunks = chunks[:0]
		}
		packer.Add(d, rec)
		for j := range node.Children {
			if c := &node.Children[j]; !c.Node {
				chunks = append(chunks, c.Digest)
			}
		}
	}
	if packer.Empty() {
		return nil
	}
	return w.sendFrame(ctx, &packer, chunks, enc)
}

// sendFrame sends the nodes that are packed, when the chunks that they name have arrived.
func (w *nodeWriter) sendFrame(ctx context.Context, p *frame.Packer, chunks []digest.Digest, enc *frame.Encoder) error {
	f := p.Encode(enc, nil)
	p.Reset()
	if err := w.s.inflight.wait(ctx, chunks); err != nil {
		return err
	}
	return w.s.run.put(ctx, sms.TypeFrame, encodeFrame(f), nil)
}
