// Package agenttest is an appliance in memory for the tests of the agent's backup and restore: it keeps frames and
// nodes as they come, checks what it is given as strictly as the real one, and serves them back. It is no wire: what
// uplink does is tested there.
package agenttest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/chunk"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
)

// Store holds what all its runs sent.
type Store struct {
	domain uplink.Domain
	// Verify makes every frame be decompressed and checked as it arrives.
	Verify bool
	// Discard keeps no bytes of chunks, for measurements; nothing can be restored then.
	Discard bool

	sealedBy seal.ID // all nodes are sealed by this key; zero: none is

	mu     sync.Mutex // guards all below
	frames []frame.Frame
	chunks map[digest.Digest]int // to frames
	nodes  map[digest.Digest][]byte
	decs   sync.Pool
}

// New makes an empty store with a new domain.
func New() *Store {
	params, err := chunk.NewParams(rand.Reader)
	if err != nil {
		panic(err)
	}
	var key digest.DomainKey
	_, _ = rand.Read(key[:])
	return &Store{
		domain: uplink.Domain{Keys: digest.Derive(key), Chunking: params},
		chunks: map[digest.Digest]int{}, nodes: map[digest.Digest][]byte{},
	}
}

// NewSealed makes an empty store for runs of an encrypted task.
func NewSealed(by seal.ID) *Store {
	s := New()
	s.domain.Chunking.Max, s.sealedBy = seal.MaxPlain, by
	return s
}

// Frames returns the stored bytes of all frames and all nodes, one after the other.
func (s *Store) Frames() (all []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.frames {
		all = append(all, f.Stored...)
	}
	for _, n := range s.nodes {
		all = append(all, n...)
	}
	return all
}

// parse reads a node as strictly as an appliance can.
func (s *Store) parse(rec []byte) (recipe.Node, error) {
	if s.sealedBy.IsZero() {
		return recipe.Parse(rec)
	}
	n, err := recipe.ParseClear(rec)
	if err == nil && n.SealedBy != s.sealedBy {
		err = fmt.Errorf("a node sealed by %x", n.SealedBy)
	}
	return n, err
}

// Stored returns the compressed bytes and the number of chunks and nodes.
func (s *Store) Stored() (bytes int64, chunks, nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.frames {
		bytes += int64(len(f.Stored))
	}
	for _, n := range s.nodes {
		bytes += int64(len(n))
	}
	return bytes, len(s.chunks), len(s.nodes)
}

// Backup starts a backup run.
func (s *Store) Backup(parent *uplink.Parent) *Run {
	return &Run{s: s, parent: parent, done: make(chan struct{}), asked: map[digest.Digest]bool{}}
}

// Restore starts a restore run.
func (s *Store) Restore(root recipe.Ref) *Run {
	return &Run{s: s, root: root, done: make(chan struct{})}
}

// Node implements recipe.Source over all that is stored.
func (s *Store) Node(_ context.Context, d digest.Digest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rec, ok := s.nodes[d]; ok {
		return rec, nil
	}
	return nil, fmt.Errorf("no node %v", d)
}

// Drop forgets a chunk's bytes, so that fetching it fails.
func (s *Store) Drop(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.chunks, d)
}

// Chunks returns the digests of all chunks.
func (s *Store) Chunks() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []digest.Digest
	for d := range s.chunks {
		out = append(out, d)
	}
	return out
}

// Run is a run over a Store.
type Run struct {
	s      *Store
	parent *uplink.Parent
	root   recipe.Ref
	done   chan struct{}

	// What the run did.
	Committed sms.Commit
	Outcome   sms.Outcome
	NodeGets  atomic.Int64
	// Latency delays every answer.
	Latency time.Duration

	mu      sync.Mutex // guards all below
	notices []sms.Notice
	asked   map[digest.Digest]bool // promised by an asker, not put yet
}

var _ uplink.Run = (*Run)(nil)

// ID implements uplink.Run.
func (r *Run) ID() string { return "test" }

// Domain implements uplink.Run.
func (r *Run) Domain() uplink.Domain { return r.s.domain }

// Parent implements uplink.Run.
func (r *Run) Parent() *uplink.Parent { return r.parent }

// Root implements uplink.Run.
func (r *Run) Root() recipe.Ref { return r.root }

// Lane implements uplink.Run.
func (r *Run) Lane(int) uplink.Lane { return lane{r} }

// MaxLanes implements uplink.Run.
func (r *Run) MaxLanes() int { return 4 }

// Node implements uplink.Run.
func (r *Run) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	r.NodeGets.Add(1)
	return r.s.Node(ctx, d)
}

// PutNode implements uplink.Run.
func (r *Run) PutNode(_ context.Context, d digest.Digest, rec []byte) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if _, ok := r.s.nodes[d]; ok {
		return nil
	}
	n, err := r.s.parse(rec)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range n.Children {
		_, node := r.s.nodes[c.Digest]
		_, chunk := r.s.chunks[c.Digest]
		if c.Node && !node || !c.Node && !chunk && !r.asked[c.Digest] {
			return fmt.Errorf("node %v has a child that was neither sent nor asked for: %v", d, c.Digest)
		}
	}
	r.s.nodes[d] = slices.Clone(rec)
	return nil
}

// Progress implements uplink.Run.
func (r *Run) Progress(sms.Progress) {}

// Notice implements uplink.Run.
func (r *Run) Notice(n sms.Notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notices = append(r.notices, n)
}

// Notices returns what was noticed.
func (r *Run) Notices() []sms.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.notices)
}

// Fetch implements uplink.Run.
func (r *Run) Fetch(ctx context.Context, items []uplink.FetchItem, emit func(f frame.Frame) error) error {
	frames, err := r.plan(items)
	if err != nil {
		return err
	}
	for _, f := range frames {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := emit(f); err != nil {
			return err
		}
	}
	return nil
}

func (r *Run) plan(items []uplink.FetchItem) ([]frame.Frame, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	var at []int
	bytes := 0
	for _, it := range items {
		i, ok := r.s.chunks[it.Digest]
		if !ok {
			return nil, sms.Errorf(sms.CodeNotFound, "no chunk %v", it.Digest)
		}
		at = append(at, i)
		bytes += int(it.Length)
	}
	if bytes > uplink.MaxFetch || len(items) > uplink.MaxFetchItems {
		return nil, fmt.Errorf("fetch of %d chunks, %d bytes", len(items), bytes)
	}
	slices.Sort(at)
	var out []frame.Frame
	for _, i := range slices.Compact(at) {
		out = append(out, r.s.frames[i])
	}
	return out, nil
}

// Commit implements uplink.Run.
func (r *Run) Commit(_ context.Context, c sms.Commit) (sms.CommitResult, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) > 0 {
		return sms.CommitResult{}, fmt.Errorf("commit: %d chunks were promised and not sent", len(r.asked))
	}
	for _, d := range []digest.Digest{c.Root.Digest, c.Side.Digest} {
		if _, err := r.s.Node(context.Background(), d); err != nil && !d.IsZero() {
			return sms.CommitResult{}, fmt.Errorf("commit: %w", err)
		}
	}
	r.Committed = c
	close(r.done)
	return sms.CommitResult{SavesetID: "test", Warning: c.Counters.Warnings > 0}, nil
}

// AsParent is the run's saveset as the parent of the next one.
func (r *Run) AsParent() *uplink.Parent {
	return &uplink.Parent{Root: r.Committed.Root, Side: r.Committed.Side, Started: r.Committed.Started}
}

// Finish implements uplink.Run.
func (r *Run) Finish(_ context.Context, o sms.Outcome) error {
	r.Outcome = o
	close(r.done)
	return nil
}

// Done implements uplink.Run.
func (r *Run) Done() <-chan struct{} { return r.done }

// Err implements uplink.Run.
func (r *Run) Err() error { return nil }

// Close implements uplink.Run.
func (r *Run) Close() error { return nil }

// lane implements uplink.Lane.
type lane struct{ r *Run }

// Have implements uplink.Lane.
func (l lane) Have(ctx context.Context, ds []digest.Digest) ([]bool, error) {
	return l.HaveAsync(ctx, ds)(ctx)
}

// HaveAsync implements uplink.Lane.
func (l lane) HaveAsync(_ context.Context, ds []digest.Digest) func(context.Context) ([]bool, error) {
	if len(ds) == 0 || len(ds) > uplink.MaxHave {
		err := fmt.Errorf("have of %d digests", len(ds))
		return func(context.Context) ([]bool, error) { return nil, err }
	}
	out := make([]bool, len(ds))
	l.r.s.mu.Lock()
	defer l.r.s.mu.Unlock()
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	for i, d := range ds {
		_, stored := l.r.s.chunks[d]
		out[i] = stored || l.r.asked[d]
		if !out[i] {
			l.r.asked[d] = true
		}
	}
	return func(context.Context) ([]bool, error) {
		time.Sleep(l.r.Latency)
		return out, nil
	}
}

// Put implements uplink.Lane.
func (l lane) Put(_ context.Context, f frame.Frame) error {
	if err := f.Validate(); err != nil {
		return err
	}
	if l.r.s.Verify {
		if err := l.r.s.verify(f); err != nil {
			return err
		}
	}
	kept := frame.Frame{Refs: slices.Clone(f.Refs), Codec: f.Codec}
	if !l.r.s.Discard {
		kept.Stored = slices.Clone(f.Stored)
	}
	l.r.s.mu.Lock()
	defer l.r.s.mu.Unlock()
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	for _, ref := range kept.Refs {
		if !l.r.asked[ref.Digest] {
			return errors.New("a chunk was put that nobody asked for")
		}
		delete(l.r.asked, ref.Digest)
		l.r.s.chunks[ref.Digest] = len(l.r.s.frames)
	}
	l.r.s.frames = append(l.r.s.frames, kept)
	return nil
}

// Flush implements uplink.Lane.
func (l lane) Flush(context.Context) error { return nil }

type verifier struct {
	dec  *frame.Decoder
	hash *digest.Hasher
	buf  []byte
}

func (s *Store) verify(f frame.Frame) error {
	v, _ := s.decs.Get().(*verifier)
	if v == nil {
		v = &verifier{dec: frame.NewDecoder(), hash: digest.NewHasher(s.domain.Keys.Data)}
	}
	defer s.decs.Put(v)
	plain, err := v.dec.Decode(f, v.buf[:0])
	if err != nil {
		return err
	}
	v.buf = plain
	return f.Verify(v.hash, plain)
}
