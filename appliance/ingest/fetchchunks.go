package ingest

import (
	"context"
	"slices"

	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

const (
	maxFetchPlain  = 40 << 20 // plain bytes that one request may name: the agent's limit and one chunk more
	maxFetchChunks = 128 << 10
	framesAhead    = 4 // frames read from the store before they can be sent
)

// chunkSender answers fetches of chunks on a lane: those of a restore, and those of a backup that needs what a disk had where it
// did not change.
type chunkSender struct {
	run *Run
	st  *sms.Stream
	cut *cutter
}

func newChunkSender(r *Run, st *sms.Stream) *chunkSender { return &chunkSender{run: r, st: st} }

// answer answers one request: the frames in the order of storage, then the end. A fetch that is refused does not end the
// run.
func (c *chunkSender) answer(ctx context.Context, m *sms.Received) error {
	var req sms.Fetch
	if err := m.Decode(&req); err != nil {
		return err
	}
	err := c.send(ctx, &req)
	end := sms.Fetched{ID: req.ID}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		e := wireError(err)
		end.Code, end.Message = e.Code, e.Message
		c.run.refuse("chunks", e)
	}
	return c.st.Send(ctx, &end)
}

func (c *chunkSender) send(ctx context.Context, req *sms.Fetch) error {
	wanted, err := c.resolve(ctx, req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	frames := make(chan frameOrError, framesAhead-1)
	go c.read(ctx, wanted, frames)
	defer func() {
		cancel()
		for range frames { // until the reader is gone
		}
	}()
	for f := range frames {
		if f.err != nil {
			return f.err
		}
		part, err := c.only(f.frame, wanted, f.want)
		if err != nil {
			return err
		}
		if err := sendFrame(ctx, c.st, req.ID, part); err != nil {
			return err
		}
		c.run.srv.frames.Put(f.buf)
	}
	return ctx.Err()
}

type frameOrError struct {
	frame frame.Frame
	want  []int              // of the chunks that were asked for
	buf   *dedup.FrameBuffer // that the frame lies in
	err   error
}

// frameBuffer returns memory for a frame; whoever has sent the frame puts it back.
func (s *Server) frameBuffer() *dedup.FrameBuffer {
	if b, ok := s.frames.Get().(*dedup.FrameBuffer); ok {
		return b
	}
	return new(dedup.FrameBuffer)
}

// read reads the frames of chunks, in the order of storage, ahead of their sending.
func (c *chunkSender) read(ctx context.Context, wanted []digest.Digest, frames chan<- frameOrError) {
	defer close(frames)
	give := func(f frameOrError) bool {
		select {
		case frames <- f:
			return f.err == nil
		case <-ctx.Done():
			return false
		}
	}
	todo := make([]int, len(wanted))
	for i := range todo {
		todo[i] = i
	}
	for stale := 0; ; stale++ {
		rest, err := c.readPlan(ctx, wanted, todo, give)
		if err == nil {
			return
		}
		if len(rest) < len(todo) {
			stale = 0
		}
		if dedup.KindOf(err) != dedup.NotFound || len(rest) == 0 || stale >= maxStale {
			give(frameOrError{err: err})
			return
		}
		todo = rest
	}
}

// maxStale is how many plans in a row may go stale before a frame is read: a collection moves a chunk once.
const maxStale = 3

// readPlan plans where the chunks lie and reads them there. A container whose chunks were moved meanwhile is NotFound, with
// the chunks that are still to be read. It ends without an error, too, when nobody takes the frames any more.
func (c *chunkSender) readPlan(ctx context.Context, wanted []digest.Digest, todo []int, give func(frameOrError) bool) (rest []int, err error) {
	ds := make([]digest.Digest, len(todo))
	for j, i := range todo {
		ds[j] = wanted[i]
	}
	plan, err := c.run.opts.View.Plan(ctx, ds)
	if err != nil {
		return nil, err
	}
	for n := range plan {
		buf := c.run.srv.frameBuffer()
		f, err := c.run.opts.View.Frame(ctx, plan[n].Loc, buf)
		if err != nil {
			for _, it := range plan[n:] {
				for _, j := range it.Want {
					rest = append(rest, todo[j])
				}
			}
			slices.Sort(rest)
			return rest, err
		}
		want := plan[n].Want
		for k, j := range want {
			want[k] = todo[j]
		}
		if !give(frameOrError{frame: f, want: want, buf: buf}) {
			return nil, nil
		}
	}
	return nil, nil
}

// resolve finds the digests of the chunks asked for, each once. INVARIANT: all are children of nodes that were shown, and to
// a backup none but those of its parent's disk images.
func (c *chunkSender) resolve(ctx context.Context, req *sms.Fetch) ([]digest.Digest, error) {
	if c.run.opts.View == nil {
		return nil, sms.Errorf(sms.CodeNotShown, "the run has no saveset to read")
	}
	var wanted []digest.Digest
	seen := map[digest.Digest]struct{}{}
	plain, visited := uint64(0), 0
	for _, it := range req.Items {
		node, err := c.run.node(ctx, it.Node)
		if err != nil {
			return nil, err
		}
		if c.run.opts.Store != nil && node.Kind != recipe.ImageLeaf {
			return nil, sms.Errorf(sms.CodeNotShown, "a backup run may fetch chunks of disk images alone")
		}
		for _, at := range it.Ranges {
			children, err := pick(node.Children, it.Node, at)
			if err != nil {
				return nil, err
			}
			if visited += len(children); visited > maxFetchChunks {
				return nil, sms.Errorf(sms.CodeProtocol, "fetch of more than %d chunks at once", maxFetchChunks)
			}
			for _, ch := range children {
				if _, twice := seen[ch.Digest]; ch.Node || twice {
					continue
				}
				seen[ch.Digest] = struct{}{}
				wanted = append(wanted, ch.Digest)
				if plain += ch.Length; plain > maxFetchPlain {
					return nil, sms.Errorf(sms.CodeProtocol, "fetch of more than %d bytes at once", maxFetchPlain)
				}
			}
		}
	}
	return wanted, nil
}

// only returns a frame that holds nothing but what was asked for. A frame that was stored for another saveset, or another
// client, may hold chunks that this agent was never shown; then the wanted ones are put into a frame of their own.
func (c *chunkSender) only(f frame.Frame, wanted []digest.Digest, want []int) (frame.Frame, error) {
	if inOrder(f.Refs, wanted, want) {
		return f, nil
	}
	set := make(map[digest.Digest]struct{}, len(want))
	for _, i := range want {
		set[wanted[i]] = struct{}{}
	}
	asked := func(r frame.Ref) bool { _, ok := set[r.Digest]; return ok }
	if !slices.ContainsFunc(f.Refs, func(r frame.Ref) bool { return !asked(r) }) {
		return f, nil
	}
	if c.cut == nil {
		c.cut = &cutter{dec: frame.NewDecoder(), enc: frame.NewEncoder()}
	}
	return c.cut.cut(f, asked, c.st.Conn().RTT() >= compressFrom)
}

// inOrder reports whether the wanted chunks are those of the frame, one by one: the usual case, found without a map.
func inOrder(refs []frame.Ref, wanted []digest.Digest, want []int) bool {
	if len(refs) != len(want) {
		return false
	}
	for i := range refs {
		if refs[i].Digest != wanted[want[i]] {
			return false
		}
	}
	return true
}

// cutter takes chunks out of frames; its memory is used again.
type cutter struct {
	dec   *frame.Decoder
	enc   *frame.Encoder
	plain []byte
	out   []byte
	part  []byte
}

// cut returns a frame of the chunks that keep selects, compressed where the line is slow enough for it to pay. It is
// valid until the next cut.
func (k *cutter) cut(f frame.Frame, keep func(frame.Ref) bool, compress bool) (frame.Frame, error) {
	plain, err := k.dec.Decode(f, k.plain[:0])
	if err != nil {
		return frame.Frame{}, err
	}
	k.plain = plain
	k.part = k.part[:0]
	var refs []frame.Ref
	for _, r := range f.Refs {
		if keep(r) {
			refs = append(refs, r)
			k.part = append(k.part, plain[:r.Length]...)
		}
		plain = plain[r.Length:]
	}
	if len(refs) == 0 {
		return frame.Frame{}, sms.Errorf(sms.CodeStore, "a planned frame does not hold the chunk that it was planned for")
	}
	if !compress {
		return frame.Frame{Refs: refs, Codec: frame.Raw, Stored: k.part}, nil
	}
	out := k.enc.Encode(refs, k.part, k.out)
	k.out = out.Stored
	return out, nil
}
