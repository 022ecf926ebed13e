package dedup

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// nodeWriter takes the nodes of a run. What arrives in small frames goes into frames of full size, in containers of its
// own.
//
// INVARIANT: a node container is put only after every data container that holds what its nodes refer to: whenever the
// machine dies, what is below a node that the index may name is there.
type nodeWriter struct {
	r *Run

	mu     sync.Mutex // guards all below; taken before any lane's
	dec    *frame.Decoder
	enc    *frame.Encoder
	hasher *digest.Hasher
	plain  []byte // of the frame that arrived
	stored []byte // of the frame that is written
	packer frame.Packer
	w      *container.Writer
}

func newNodeWriter(r *Run) *nodeWriter {
	return &nodeWriter{r: r, dec: frame.NewDecoder(), enc: frame.NewEncoder(), hasher: digest.NewHasher(r.domain.Keys.Node)}
}

// arrived is a node of the frame at hand.
type arrived struct {
	digest digest.Digest
	rec    []byte
	node   recipe.Node
}

// PutNodes takes a frame of node records, children before parents. Each record's digest is recomputed, the record
// parsed, and every child must be present, pinned for this run, of this domain and of the kind and length that the node
// says. All or nothing: on error no node of the frame is taken. It waits for a collection that is just moving a child. Kinds
// WrongDigest, BadFrame, BadNode, UnknownChild.
func (r *Run) PutNodes(ctx context.Context, f frame.Frame) error {
	n := r.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := r.alive(); err != nil {
		return err
	}
	nodes, err := n.open(f)
	if err != nil {
		return wrap("put nodes", r.opts.ID, err)
	}
	if err := n.checkChildren(ctx, nodes); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // taken whole, or the run has failed
	for i := range nodes {
		if err := n.add(ctx, &nodes[i]); err != nil {
			return err
		}
	}
	return nil
}

// open decodes, verifies and parses the records of a frame. They are valid until the next call.
func (n *nodeWriter) open(f frame.Frame) ([]arrived, error) {
	plain, err := n.dec.Decode(f, n.plain[:0])
	if err != nil {
		return nil, err
	}
	n.plain = plain
	if err := f.Verify(n.hasher, plain); err != nil {
		return nil, err
	}
	nodes := make([]arrived, len(f.Refs))
	for i, ref := range f.Refs {
		rec := plain[:ref.Length:ref.Length]
		plain = plain[ref.Length:]
		node, err := n.parse(rec)
		if err != nil {
			return nil, fmt.Errorf("node %v: %w", ref.Digest, err)
		}
		nodes[i] = arrived{digest: ref.Digest, rec: rec, node: node}
	}
	return nodes, nil
}

// parse reads a record and checks all of it that the store can see. A run's nodes are all sealed by its key, or all open.
func (n *nodeWriter) parse(rec []byte) (recipe.Node, error) {
	by := n.r.opts.SealedBy
	if by.IsZero() {
		return recipe.Parse(rec)
	}
	node, err := recipe.ParseClear(rec)
	if err == nil && node.SealedBy != by {
		err = fmt.Errorf("it is sealed by %x, the run's key is %v: %w", node.SealedBy, by, errOtherKey)
	}
	return node, err
}

var (
	errOtherKey     = &Error{Kind: BadNode, Op: "put nodes", Err: errors.New("not sealed as the run says")}
	errSealedForAll = errors.New("sealed nodes need a domain of their own")
)

// checkChildren holds every child of the nodes against what the run and the store have.
func (n *nodeWriter) checkChildren(ctx context.Context, nodes []arrived) error {
	foreign, err := n.checkOwnChildren(nodes)
	if err != nil || len(foreign) == 0 {
		return err
	}
	return n.checkForeign(ctx, foreign)
}

// checkOwnChildren checks the children that the run took itself, and returns the others.
func (n *nodeWriter) checkOwnChildren(nodes []arrived) (foreign []recipe.Child, err error) {
	here := make(map[digest.Digest]nodeFacts, len(nodes))
	n.r.known.mu.RLock()
	defer n.r.known.mu.RUnlock()
	for i := range nodes {
		a := &nodes[i]
		for _, c := range a.node.Children {
			own, err := n.checkOwn(&a.node, c, here)
			if err != nil {
				return nil, &Error{Kind: BadNode, Op: "put nodes", Object: a.digest.String(), Err: err}
			}
			if !own {
				foreign = append(foreign, c)
			}
		}
		here[a.digest] = factsOf(&a.node)
	}
	return foreign, nil
}

var errChild = errors.New("child is not what the node says")

func factsOf(n *recipe.Node) nodeFacts {
	return nodeFacts{kind: n.Kind, level: n.Level, totals: n.Totals}
}

// checkOwn reports whether a child is the run's own. known.mu is held.
func (n *nodeWriter) checkOwn(parent *recipe.Node, c recipe.Child, here map[digest.Digest]nodeFacts) (own bool, err error) {
	if !c.Node {
		length, ok := n.r.known.data[c.Digest]
		if ok && !isLength(c, length) {
			return false, errChild
		}
		return ok, nil
	}
	facts, ok := here[c.Digest]
	if !ok {
		facts, ok = n.r.known.nodes[c.Digest]
	}
	if ok && !facts.fits(parent, c) {
		return false, errChild
	}
	return ok, nil
}

// checkForeign pins children that the run did not write, wherever they are.
func (n *nodeWriter) checkForeign(ctx context.Context, children []recipe.Child) error {
	ds := make([]digest.Digest, len(children))
	for i := range children {
		ds[i] = children[i].Digest
	}
	missing, err := n.r.pinReferences(ctx, ds, func(i int, at found) bool {
		return at.holds(children[i]) && !n.r.s.damage.barred(at, n.r.damage)
	})
	if err == nil && missing >= 0 {
		err = &Error{Kind: UnknownChild, Op: "put nodes", Object: ds[missing].String()}
	}
	return err
}

// holds reports whether the row at this place is what a node says of its child. The length of a node's record says
// nothing about what is below it.
func (at found) holds(c recipe.Child) bool {
	if c.Node {
		return at.dir.Kind() == container.Node
	}
	return at.dir.Kind() == container.Data && isLength(c, at.dir.Row(at.slot).Length)
}

// isLength reports whether a chunk has the length that its node says. A sealed node says none, which is 0.
func isLength(c recipe.Child, length uint32) bool { return c.Length == 0 || c.Length == uint64(length) }

// add needs mu held.
func (n *nodeWriter) add(ctx context.Context, a *arrived) error {
	k := n.r.known
	k.mu.RLock()
	_, have := k.nodes[a.digest]
	k.mu.RUnlock()
	if have {
		return nil
	}
	if !n.packer.Fits(len(a.rec)) {
		if err := n.write(ctx); err != nil {
			return err
		}
	}
	n.packer.Add(a.digest, a.rec)
	k.mu.Lock()
	k.nodes[a.digest] = factsOf(&a.node)
	k.mu.Unlock()
	n.r.counts.nodes.Add(1)
	n.r.counts.nodeBytes.Add(uint64(len(a.rec)))
	return nil
}

// write puts the packed nodes into the container. It needs mu held. An error fails the run, for nodes that the run
// answers for would be lost.
func (n *nodeWriter) write(ctx context.Context) error {
	if n.packer.Empty() {
		return nil
	}
	if n.w == nil {
		w, err := n.r.newContainer(ctx, container.Node)
		if err != nil {
			return n.r.fail(err)
		}
		n.w = w
	}
	f := n.packer.Encode(n.enc, n.stored)
	n.stored = f.Stored
	if _, err := n.w.Append(f); err != nil {
		return n.r.fail(wrap("append to container", n.w.ID().String(), err))
	}
	n.packer.Reset()
	if n.w.Size() < n.r.s.opts.ContainerSize {
		return nil
	}
	for _, l := range n.r.lanes.all() {
		if err := l.seal(ctx); err != nil {
			return n.r.fail(err)
		}
	}
	return n.seal()
}

// seal needs mu held, and all lanes flushed.
func (n *nodeWriter) seal() error {
	w := n.w
	n.w = nil
	if w == nil {
		return nil
	}
	return n.r.seal(w)
}

// finish seals what is open. The lanes are finished.
func (n *nodeWriter) finish(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.write(ctx); err != nil {
		return err
	}
	return n.seal()
}

func (n *nodeWriter) abandon() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.w != nil {
		n.w.Abandon()
		n.w = nil
	}
}
