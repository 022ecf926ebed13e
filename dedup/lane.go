package dedup

import (
	"context"
	"sync"
	"sync/atomic"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// LaneOptions of a lane.
type LaneOptions struct {
	// Durable is called when more frames became durable, with the sequence of the last one; in order, from a goroutine
	// of the run, never after Commit or Abort returned. It must not block nor call the run.
	Durable func(seq uint64)
}

// Lane is one stream of data frames. Calls from several goroutines are serialised.
type Lane struct {
	r       *Run
	opts    LaneOptions
	durable atomic.Uint64

	mu      sync.Mutex // guards all below
	dec     *frame.Decoder
	hasher  *digest.Hasher
	plain   []byte // reused by every frame
	w       *container.Writer
	seq     uint64
	sealing *sealing // the container before w
}

// sealing is a full container on its way into the store, by a goroutine of its own, so that the lane goes on while the
// disk syncs. A lane has one at a time.
type sealing struct {
	done chan struct{}
	err  error // set before done is closed
}

// laneSet is the lanes of a run.
type laneSet struct {
	mu    sync.Mutex
	lanes []*Lane // guarded by mu
}

func (s *laneSet) all() []*Lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[:len(s.lanes):len(s.lanes)]
}

// Lane opens one stream of data frames with a container of its own. A lane ends with its run.
func (r *Run) Lane(opts LaneOptions) (*Lane, error) {
	l := &Lane{r: r, opts: opts, dec: frame.NewDecoder(), hasher: digest.NewHasher(r.domain.Keys.Data)}
	r.lanes.mu.Lock()
	defer r.lanes.mu.Unlock()
	if err := r.alive(); err != nil {
		return nil, err
	}
	r.lanes.lanes = append(r.lanes.lanes, l)
	return l, nil
}

// PutFrame takes a frame: it is decoded within its limits, the digest of every chunk is recomputed, and the frame is
// stored as it came. It returns the frame's sequence in this lane, from 1. From its return on Have answers true for the
// chunks inside this run. f.Stored is not kept. Kinds WrongDigest, BadFrame.
func (l *Lane) PutFrame(ctx context.Context, f frame.Frame) (seq uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.r.alive(); err != nil {
		return 0, err
	}
	if err := l.verify(f); err != nil {
		return 0, wrap("put frame", l.r.opts.ID, err)
	}
	ctx = context.WithoutCancel(ctx) // the frame is taken, or the run has failed
	if err := l.append(ctx, f); err != nil {
		return 0, err
	}
	l.seq++
	l.r.took(f)
	l.r.layout.stored(l.w.ID(), uint64(f.PlainLen()))
	if l.w.Size() >= l.r.s.opts.ContainerSize {
		if err := l.rotate(ctx); err != nil {
			return 0, err
		}
	}
	return l.seq, nil
}

func (l *Lane) verify(f frame.Frame) error {
	if f.Codec == frame.Raw { // its stored bytes are the plain ones
		if err := f.Validate(); err != nil {
			return err
		}
		return f.Verify(l.hasher, f.Stored)
	}
	plain, err := l.dec.Decode(f, l.plain[:0])
	if err != nil {
		return err
	}
	l.plain = plain
	return f.Verify(l.hasher, plain)
}

// took makes the chunks of a stored frame known to the run.
func (r *Run) took(f frame.Frame) {
	r.known.mu.Lock()
	for i := range f.Refs {
		r.known.data[f.Refs[i].Digest] = f.Refs[i].Length
	}
	r.known.mu.Unlock()
	r.counts.chunks.Add(uint64(len(f.Refs)))
	r.counts.newBytes.Add(uint64(f.PlainLen()))
}

// append needs mu held. An error of the disk fails the run: the container is abandoned with it.
func (l *Lane) append(ctx context.Context, f frame.Frame) error {
	if l.w == nil {
		w, err := l.r.newContainer(ctx, container.Data)
		if err != nil {
			return err
		}
		l.w = w
	}
	if _, err := l.w.Append(f); err != nil {
		return l.r.fail(wrap("append to container", l.w.ID().String(), err))
	}
	return nil
}

// newContainer opens a spool file, if the reserve allows; else the run has failed.
func (r *Run) newContainer(ctx context.Context, kind container.Kind) (*container.Writer, error) {
	s := r.s
	if err := s.checkSpace(ctx, s.opts.ContainerSize); err != nil {
		return nil, r.fail(err)
	}
	w, err := s.newContainer(kind, r.domain.ID, s.opts.Now().Unix())
	if err != nil {
		return nil, r.fail(err)
	}
	return w, nil
}

// Flush makes everything put so far durable: it seals the open container.
func (l *Lane) Flush(ctx context.Context) error {
	if err := l.r.alive(); err != nil {
		return err
	}
	return l.seal(ctx)
}

// seal seals the open container and waits until all is durable and found.
func (l *Lane) seal(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.rotate(ctx); err != nil {
		return err
	}
	return l.settle(ctx)
}

// rotate hands the open container to be sealed, after the one before it. It needs mu held.
func (l *Lane) rotate(ctx context.Context) error {
	if err := l.settle(ctx); err != nil || l.w == nil {
		return err
	}
	job := &sealing{done: make(chan struct{})}
	w, seq := l.w, l.seq
	l.w, l.sealing = nil, job
	go func() {
		defer close(job.done)
		if job.err = l.r.seal(w); job.err != nil {
			return
		}
		l.durable.Store(seq)
		if l.opts.Durable != nil {
			l.opts.Durable(seq)
		}
	}()
	return nil
}

// settle waits for the container that is being sealed. It needs mu held.
//
// INVARIANT: of one that was lost it tells every time. Nodes refer to what was in it: none goes after it.
func (l *Lane) settle(ctx context.Context) error {
	if l.sealing == nil {
		return nil
	}
	select {
	case <-l.sealing.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := l.sealing.err
	if err == nil {
		l.sealing = nil
	}
	return err
}

// abandon drops what is open. It waits whatever it takes: no goroutine outlives its run.
func (l *Lane) abandon() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w != nil {
		l.w.Abandon()
		l.w = nil
	}
	return l.settle(context.Background())
}

// Durable returns the sequence up to which all frames survive a crash of the machine.
func (l *Lane) Durable() uint64 { return l.durable.Load() }

// seal makes a container durable, live, pinned for the run and found. An error fails the run.
//
// INVARIANT: in this order: sealed and synced, put, live and pinned, in the index, forgotten as the run's own. Where the
// index keeps another run's copy, that is the one that counts from now on, so that it is pinned first.
func (r *Run) seal(w *container.Writer) error {
	ctx := context.Background()
	sealed, err := w.Seal(ctx)
	if err != nil {
		return r.fail(wrap("seal container", w.ID().String(), err))
	}
	dir := sealed.Directory
	if err := container.Store(ctx, r.s.fs, r.s.blob, sealed); err != nil {
		_ = r.s.fs.Remove(sealed.Path) // what stays is cleared at the next Open
		if dir.Kind() == container.Node {
			r.pins.keep()
		}
		return r.fail(wrap("store container", dir.ID().String(), err))
	}
	r.pins.adopt(dir.ID(), sealed.Size, dir.Kind())
	defer r.s.containers.entered(dir.ID())
	r.counts.stored.Add(uint64(sealed.Size))
	if err := r.s.enter(ctx, dir, r.pins.pin, nil); err != nil {
		return r.fail(err)
	}
	if err := r.takeOver(ctx, dir); err != nil {
		return r.fail(err)
	}
	r.known.forget(dir)
	return nil
}
