package uplink

import (
	"container/list"
	"context"
	"encoding/binary"
	"sync"

	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
)

// How far nodes are read ahead, in bytes.
const (
	minAhead = 32 << 10
	maxAhead = 1 << 20
)

// nodeReader reads nodes of the parent's or the restored tree. It asks for more than the one node that is wanted: what
// follows it in the order of the tree, first a little, then, while that is what is asked for next, up to 1 MiB, and then
// it asks before the last answer is used up.
type nodeReader struct {
	s      *Session
	hasher *digest.Hasher // used by the run stream's receiver alone
	dec    *frame.Decoder

	mu sync.Mutex
	// mu guards all below.
	tree    *nodeTree
	cache   map[digest.Digest]*list.Element // of *cachedNode
	lru     *list.List
	bytes   int
	cursors [2]cursor // of the root and of the side stream
	changed chan struct{}
}

type cachedNode struct {
	d    digest.Digest
	rec  []byte
	ask  *nodeFetch // that brought it
	used bool
}

// cursor is where one of the trees is being read.
type cursor struct {
	ahead  int
	newest *nodeFetch
}

// nodeFetch is one request.
type nodeFetch struct {
	root        int
	last        digest.Digest // that has arrived
	count, used int
	done        bool
	err         error
	next        bool // the request after it was made
}

func newNodeReader(s *Session) *nodeReader {
	w := &s.welcome
	return &nodeReader{s: s, hasher: digest.NewHasher(s.domain.Keys.Node), dec: frame.NewDecoder(),
		tree:  newNodeTree(w.Restore, w.Root.Digest, w.Side.Digest),
		cache: map[digest.Digest]*list.Element{}, lru: list.New(), changed: make(chan struct{})}
}

// knows reports whether a node was shown to this run.
func (r *nodeReader) knows(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.tree.nodes[d]
	return ok
}

// node returns a node's record.
func (r *nodeReader) node(ctx context.Context, d digest.Digest) ([]byte, error) {
	r.mu.Lock()
	asked := (*nodeFetch)(nil)
	for tries := 0; ; {
		if rec, ok := r.cachedLocked(d); ok {
			more := r.continueLocked()
			r.mu.Unlock()
			r.send(ctx, more)
			return rec, nil
		}
		if asked != nil && asked.done {
			err := asked.err
			if err == nil && tries > 2 {
				err = sms.Errorf(sms.CodeProtocol, "the appliance does not send node %v", d)
			}
			if err != nil {
				r.mu.Unlock()
				return nil, err
			}
			asked = nil // it came, and was pushed out of the cache by others
			tries++
		}
		var ask *request
		if asked == nil {
			item, root, ok := r.tree.ask(d)
			if !ok {
				r.mu.Unlock()
				return nil, sms.Errorf(sms.CodeNotShown, "node %v was not shown to this run, or long ago", d)
			}
			if c := &r.cursors[root]; c.newest == nil || c.newest.done || item.First == sms.Self {
				ask = r.requestLocked(root, append([]sms.NodeItem{item}, r.tree.following(d, false)...))
				asked = ask.fetch
			}
		}
		changed := r.changed
		r.mu.Unlock()
		if ask != nil {
			r.send(ctx, ask)
		}
		select {
		case <-changed:
		case <-r.s.done:
			return nil, whyOver(r.s.Err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r.mu.Lock()
	}
}

// cachedLocked returns a record that is here.
func (r *nodeReader) cachedLocked(d digest.Digest) ([]byte, bool) {
	e := r.cache[d]
	if e == nil {
		return nil, false
	}
	n := e.Value.(*cachedNode)
	r.lru.MoveToFront(e)
	if !n.used {
		n.used = true
		n.ask.used++
	}
	return n.rec, true
}

// continueLocked makes the next request of a tree when the last answer is half used up.
func (r *nodeReader) continueLocked() *request {
	for root := range r.cursors {
		f := r.cursors[root].newest
		if f == nil || !f.done || f.err != nil || f.next || f.count < 2 || f.used*2 < f.count {
			continue
		}
		f.next = true
		if items := r.tree.following(f.last, true); len(items) > 0 {
			return r.requestLocked(root, items)
		}
	}
	return nil
}

// request is a fetch that is about to be sent.
type request struct {
	fetch *nodeFetch
	msg   sms.FetchNodes
}

func (r *nodeReader) requestLocked(root int, items []sms.NodeItem) *request {
	c := &r.cursors[root]
	switch f := c.newest; {
	case f == nil:
		c.ahead = minAhead
	case f.used*2 >= f.count:
		c.ahead = min(2*c.ahead, maxAhead)
	default:
		c.ahead = max(c.ahead/2, minAhead)
	}
	c.newest = &nodeFetch{root: root}
	return &request{c.newest, sms.FetchNodes{Ahead: uint32(c.ahead), Items: items[:min(len(items), 64)]}}
}

func (r *nodeReader) send(ctx context.Context, q *request) {
	if q == nil {
		return
	}
	r.s.run.ask(ctx, sms.TypeFetchNodes, func(id uint32) *sms.Buffer {
		q.msg.ID = id
		b := sms.NewBuffer(64 * (len(q.msg.Items) + 1))
		b.B = sms.Append(b.B, &q.msg)
		return b
	}, func(m *sms.Received) bool { return r.take(q.fetch, m) })
}

// take takes a part of an answer.
func (r *nodeReader) take(f *nodeFetch, m *sms.Received) (done bool) {
	err := r.takeMessage(f, m)
	done = err != nil || m.Type == sms.TypeFetched
	r.mu.Lock()
	if done {
		f.done, f.err = true, err
	}
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	return done
}

func (r *nodeReader) takeMessage(f *nodeFetch, m *sms.Received) error {
	if m.Type == sms.TypeFetched {
		var end sms.Fetched
		if err := m.Decode(&end); err != nil || end.Code == "" {
			return err
		}
		return &sms.Error{Code: end.Code, Message: end.Message, Remote: true}
	}
	var ff sms.FetchFrame
	if err := m.Decode(&ff); err != nil {
		return err
	}
	plain, err := r.dec.Decode(ff.Frame, make([]byte, 0, ff.Frame.PlainLen()))
	if err != nil {
		return err
	}
	for i := range ff.Frame.Refs {
		ref := ff.Frame.Refs[i]
		rec := plain[:ref.Length:ref.Length]
		plain = plain[ref.Length:]
		if r.hasher.Sum(rec) != ref.Digest {
			return sms.Errorf(sms.CodeWrongBytes, "node %v came with other bytes", ref.Digest)
		}
		node, err := recipe.ParseClear(rec)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.keepLocked(f, ref.Digest, rec, &node)
		r.mu.Unlock()
	}
	return nil
}

// keepLocked keeps a node that has arrived.
func (r *nodeReader) keepLocked(f *nodeFetch, d digest.Digest, rec []byte, node *recipe.Node) {
	r.tree.add(d, node.Kind, node.Children)
	f.last = d
	if r.cache[d] != nil {
		return
	}
	f.count++
	r.cache[d] = r.lru.PushFront(&cachedNode{d: d, rec: rec, ask: f})
	r.bytes += len(rec)
	for r.bytes > nodeCacheBytes {
		e := r.lru.Back()
		n := r.lru.Remove(e).(*cachedNode)
		delete(r.cache, n.d)
		r.bytes -= len(n.rec)
	}
}

// nodes takes the data class of the run stream: answers to fetches of nodes.
func (s *Session) nodes(ctx context.Context, st *sms.Stream) error {
	for {
		m, err := st.Recv(ctx, sms.ClassData)
		if err != nil {
			return err
		}
		if m.Type != sms.TypeFetchFrame && m.Type != sms.TypeFetched || len(m.Payload) < 4 {
			err = sms.Errorf(sms.CodeProtocol, "unexpected message of type %v", m.Type)
		} else {
			s.run.answered(binary.LittleEndian.Uint32(m.Payload), m)
		}
		m.Release()
		if err != nil {
			return err
		}
	}
}
