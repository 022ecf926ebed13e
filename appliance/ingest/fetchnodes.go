package ingest

import (
	"context"
	"time"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

const (
	maxAhead     = 4 << 20 // bytes of read-ahead in one answer
	maxNodeItems = 4096    // nodes named in one request that are looked at

	// compressFrom is the round trip from which nodes are compressed: in a local network that costs more time than the
	// bytes would.
	compressFrom = 2 * time.Millisecond
)

// nodeSender answers fetches of nodes on a run stream.
type nodeSender struct {
	run *Run
	st  *sms.Stream
	enc *frame.Encoder

	id    uint32
	refs  []frame.Ref
	plain []byte
}

func newNodeSender(r *Run, st *sms.Stream) *nodeSender { return &nodeSender{run: r, st: st} }

// answer answers one request. What the agent may not see ends the answer, not the run: it is told.
func (n *nodeSender) answer(ctx context.Context, m *sms.Received) error {
	var req sms.FetchNodes
	if err := m.Decode(&req); err != nil {
		return err
	}
	n.id, n.refs, n.plain = req.ID, n.refs[:0], n.plain[:0]
	err := n.walk(ctx, &req)
	if err == nil {
		err = n.flush(ctx)
	}
	end := sms.Fetched{ID: req.ID}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		e := wireError(err)
		end.Code, end.Message = e.Code, e.Message
		n.run.refuse("nodes", e)
	}
	return n.st.Send(ctx, &end)
}

// refuse logs that a fetch was refused.
func (r *Run) refuse(what string, e *sms.Error) {
	r.srv.opts.Logger.Warn("fetch refused", "client", r.opts.Client, "run", r.opts.ID, "of", what, "code", e.Code, "cause", e.Message)
}

// step is a node that the walk has yet to visit.
type step struct {
	d        digest.Digest
	required bool // the one node that is wanted
	ahead    bool // not asked for by itself
}

// walk visits the nodes asked for and what lies below them, in tree order, as far as the request reaches.
func (n *nodeSender) walk(ctx context.Context, req *sms.FetchNodes) error {
	stack, err := n.resolve(ctx, req)
	if err != nil {
		return err
	}
	ahead := int64(min(req.Ahead, maxAhead))
	seen := map[digest.Digest]struct{}{}
	inImage := false
	for len(stack) > 0 && (ahead > 0 || stack[len(stack)-1].required) {
		s := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, twice := seen[s.d]; twice {
			continue
		}
		seen[s.d] = struct{}{}
		rec, err := n.run.opts.View.Node(ctx, s.d)
		if err != nil {
			return err
		}
		node, err := recipe.ParseClear(rec)
		if err != nil {
			return err
		}
		inImage = inImage || s.required && isImage(node.Kind)
		if n.skips(s, node.Kind, inImage) {
			continue
		}
		if err := n.add(ctx, s.d, rec); err != nil {
			return err
		}
		ahead -= int64(len(rec))
		for i := len(node.Children) - 1; i >= 0 && ahead > 0; i-- {
			if c := &node.Children[i]; c.Node {
				stack = append(stack, step{d: c.Digest, ahead: true})
			}
		}
	}
	return nil
}

// skips leaves the extents of large files out of a backup's read-ahead: it compares entries and takes over contents whole.
// Only who asks for a part of a disk image goes on in it.
func (n *nodeSender) skips(s step, k recipe.Kind, inImage bool) bool {
	extents := k == recipe.StreamLeaf || k == recipe.StreamInner || isImage(k) && !inImage
	return extents && n.run.opts.Store != nil && s.ahead
}

func isImage(k recipe.Kind) bool { return k == recipe.ImageLeaf || k == recipe.ImageInner }

// resolve finds the nodes asked for, the last one first. There may be none: what an agent reads ahead may be a row of files
// without a node of their own. INVARIANT: an agent sees the roots that its order named and
// children of nodes that it was shown.
func (n *nodeSender) resolve(ctx context.Context, req *sms.FetchNodes) ([]step, error) {
	var steps []step
	for _, it := range req.Items {
		ds, err := n.item(ctx, it)
		if err != nil {
			return nil, err
		}
		for _, d := range ds {
			steps = append(steps, step{d: d, required: len(steps) == 0, ahead: len(steps) > 0})
		}
		if len(steps) > maxNodeItems {
			break // the others are read-ahead, and beyond what it reaches
		}
	}
	for i, j := 0, len(steps)-1; i < j; i, j = i+1, j-1 {
		steps[i], steps[j] = steps[j], steps[i]
	}
	return steps, nil
}

func (n *nodeSender) item(ctx context.Context, it sms.NodeItem) ([]digest.Digest, error) {
	if n.run.opts.View == nil {
		return nil, sms.Errorf(sms.CodeNotShown, "the run has no saveset to read")
	}
	if it.Parent.IsZero() {
		root, side := n.run.roots()
		roots := []digest.Digest{root.Digest, side.Digest}
		if it.First > 1 || it.Count != 1 || roots[it.First].IsZero() {
			return nil, sms.Errorf(sms.CodeNotShown, "the run has no root %d", it.First)
		}
		return roots[it.First : it.First+1], nil
	}
	if it.First == sms.Self {
		return []digest.Digest{it.Parent}, n.run.shown.check(it.Parent)
	}
	node, err := n.run.node(ctx, it.Parent)
	if err != nil {
		return nil, err
	}
	children, err := pick(node.Children, it.Parent, sms.Children{First: it.First, Count: it.Count})
	if err != nil {
		return nil, err
	}
	var ds []digest.Digest
	for _, c := range children {
		if c.Node {
			ds = append(ds, c.Digest)
		}
	}
	return ds, nil
}

// node returns a node that was shown.
func (r *Run) node(ctx context.Context, d digest.Digest) (recipe.Node, error) {
	if err := r.shown.check(d); err != nil {
		return recipe.Node{}, err
	}
	rec, err := r.opts.View.Node(ctx, d)
	if err != nil {
		return recipe.Node{}, err
	}
	return recipe.ParseClear(rec)
}

// pick returns some of a node's children.
func pick(all []recipe.Child, parent digest.Digest, at sms.Children) ([]recipe.Child, error) {
	if uint64(at.First)+uint64(at.Count) > uint64(len(all)) {
		return nil, sms.Errorf(sms.CodeNotShown, "node %v has %d children, not %d from %d on", parent, len(all), at.Count, at.First)
	}
	return all[at.First : at.First+at.Count], nil
}

// add puts a node into the frame that is filled, and sends it first where it is full.
func (n *nodeSender) add(ctx context.Context, d digest.Digest, rec []byte) error {
	if len(n.refs) > 0 && (len(n.plain)+len(rec) > frame.MaxPlain || len(n.refs) == frame.MaxRefs) {
		if err := n.flush(ctx); err != nil {
			return err
		}
	}
	n.refs = append(n.refs, frame.Ref{Digest: d, Length: uint32(len(rec))})
	n.plain = append(n.plain, rec...)
	n.run.shown.add(d)
	return nil
}

func (n *nodeSender) flush(ctx context.Context) error {
	if len(n.refs) == 0 {
		return nil
	}
	f := frame.Frame{Refs: n.refs, Codec: frame.Raw, Stored: n.plain}
	if n.st.Conn().RTT() >= compressFrom {
		if n.enc == nil {
			n.enc = frame.NewEncoder()
		}
		f = n.enc.Encode(n.refs, n.plain, nil)
	}
	err := sendFrame(ctx, n.st, n.id, f)
	n.refs, n.plain = n.refs[:0], n.plain[:0]
	return err
}

// sendFrame sends a frame of an answer, encoded once into a pooled buffer.
func sendFrame(ctx context.Context, st *sms.Stream, id uint32, f frame.Frame) error {
	return st.SendSized(ctx, &sms.FetchFrame{ID: id, Frame: f}, 4+frame.HeaderLen(len(f.Refs))+len(f.Stored))
}
