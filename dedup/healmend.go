package dedup

import (
	"context"
	"errors"
	"maps"
	"slices"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/index"
	"coffer/dedup/recipe"
)

// mender stores chunks and nodes anew, which take the entries of those over that they replace. Not for concurrent use.
type mender struct {
	s      *Store
	domain digest.DomainID
	hasher map[container.Kind]*digest.Hasher
	enc    *frame.Encoder
	dec    *frame.Decoder
	plain  []byte // of the record at hand
	stored []byte
	packer map[container.Kind]*frame.Packer
	w      map[container.Kind]*container.Writer
}

func newMender(s *Store, d Domain) *mender {
	return &mender{s: s, domain: d.ID, enc: frame.NewEncoder(), dec: frame.NewDecoder(), w: make(map[container.Kind]*container.Writer),
		hasher: map[container.Kind]*digest.Hasher{
			container.Data: digest.NewHasher(d.Keys.Data), container.Node: digest.NewHasher(d.Keys.Node)},
		packer: map[container.Kind]*frame.Packer{container.Data: new(frame.Packer), container.Node: new(frame.Packer)}}
}

// is verifies bytes that come from elsewhere: they have the digest, and those of a node are a node.
func (m *mender) is(kind container.Kind, d digest.Digest, b []byte) bool {
	if len(b) == 0 || len(b) > frame.MaxChunk || m.hasher[kind].Sum(b) != d {
		return false
	}
	if kind == container.Node {
		_, err := recipe.ParseClear(b)
		return err == nil
	}
	return true
}

// add takes a chunk that is verified.
func (m *mender) add(ctx context.Context, kind container.Kind, d digest.Digest, b []byte) error {
	p := m.packer[kind]
	if !p.Fits(len(b)) {
		if err := m.flush(ctx, kind); err != nil {
			return err
		}
	}
	p.Add(d, b)
	return nil
}

func (m *mender) flush(ctx context.Context, kind container.Kind) error {
	p := m.packer[kind]
	if p.Empty() {
		return nil
	}
	if m.w[kind] == nil {
		if err := m.s.checkSpace(ctx, m.s.opts.ContainerSize); err != nil {
			return err
		}
		w, err := m.s.newContainer(kind, m.domain, m.s.opts.Now().Unix())
		if err != nil {
			return err
		}
		m.w[kind] = w
	}
	f := p.Encode(m.enc, m.stored)
	m.stored = f.Stored
	p.Reset()
	w := m.w[kind]
	if _, err := w.Append(f); err != nil {
		return wrap("append to container", w.ID().String(), err)
	}
	if w.Size() < m.s.opts.ContainerSize {
		return nil
	}
	return m.seal(ctx, kind)
}

// seal makes a container durable and found; nodes come after the data that may be below them.
func (m *mender) seal(ctx context.Context, kind container.Kind) error {
	if kind == container.Node {
		if err := m.flush(ctx, container.Data); err != nil {
			return err
		}
		if err := m.seal(ctx, container.Data); err != nil {
			return err
		}
	}
	w, s := m.w[kind], m.s
	if w == nil {
		return nil
	}
	m.w[kind] = nil
	ctx = context.WithoutCancel(ctx)
	sealed, err := w.Seal(ctx)
	if err != nil {
		return wrap("seal container", w.ID().String(), err)
	}
	dir := sealed.Directory
	if err := container.Store(ctx, s.fs, s.blob, sealed); err != nil {
		_ = s.fs.Remove(sealed.Path) // what stays is cleared at the next Open
		s.mayStay(ctx, sealed)
		return wrap("store container", dir.ID().String(), err)
	}
	s.containers.add(dir.ID(), sealed.Size, 0)
	if err := s.noteGaps(ctx, dir); err != nil {
		return err
	}
	return s.enter(ctx, dir, s.containers.usable, nil)
}

// noteGaps puts on the damage list what nodes that come back refer to and that is not there: who stores a node anew that no run
// vouches for cannot know that it did not die, and what was below it has gone.
func (s *Store) noteGaps(ctx context.Context, dir *container.Directory) error {
	if dir.Kind() != container.Node {
		return nil
	}
	gaps := make(map[digest.Digest]container.Kind)
	err := s.eachChildren(ctx, dir, func(_ digest.Digest, kids []recipe.Child) {
		for _, c := range kids {
			if _, here := dir.Lookup(c.Digest); here || s.damage.has(c.Digest) {
				continue
			}
			gaps[c.Digest] = container.Data
			if c.Node {
				gaps[c.Digest] = container.Node
			}
		}
	})
	if err != nil {
		return err
	}
	ds := slices.SortedFunc(maps.Keys(gaps), digest.Digest.Compare)
	places, err := s.indexed(ctx, ds)
	if err != nil {
		return err
	}
	lost := make(map[container.Kind][]digest.Digest)
	for i, d := range ds {
		if places[i].dir == nil || places[i].dir.Kind() != gaps[d] {
			lost[gaps[d]] = append(lost[gaps[d]], d)
		}
	}
	for kind, ds := range lost {
		for part := range slices.Chunk(ds, maxRowDigests) {
			s.noteLost(ctx, kind, part, errNowhere)
		}
	}
	return nil
}

// finish seals what is open.
func (m *mender) finish(ctx context.Context) error {
	for _, kind := range []container.Kind{container.Data, container.Node} {
		if err := m.flush(ctx, kind); err != nil {
			return err
		}
		if err := m.seal(ctx, kind); err != nil {
			return err
		}
	}
	return nil
}

func (m *mender) abandon() {
	for _, w := range m.w {
		if w != nil {
			w.Abandon()
		}
	}
}

// errForeign: the digests of a domain whose key is not there cannot be computed.
var errForeign = errors.New("the key of its dedup domain is not in the store")

// salvage writes containers anew that are damaged as a whole, and removes them. What was below a node that could not be read
// is known only when the node is there again: so the containers are read until nothing more is found in them.
func (h *heal) salvage(ctx context.Context) error {
	ids := h.condemn(ctx)
	if len(ids) == 0 {
		return nil
	}
	defer func() {
		for id := range ids {
			h.s.Reprieve(id)
		}
	}()
	c := &check{s: h.s, meter: newMeter(nil), pace: new(pacer)}
	for more := true; more; {
		h.meter.phase("salvage", "containers", int64(len(ids)))
		before := h.s.damage.wanted()
		for id := range ids {
			if err := h.salvageOne(ctx, ids, id); err != nil {
				return err
			}
			h.meter.add(1)
		}
		left := h.s.damage.wanted()
		h.rep.Salvaged += len(before) - len(left)
		if err := c.objects(ctx); err != nil {
			return err
		}
		more = false
		for d := range h.s.damage.wanted() {
			_, old := before[d] // noteGaps may have found it, too
			more = more || !old
		}
	}
	return h.removeSalvaged(ctx, ids, c.blind)
}

// condemn takes those of the containers that no run has pinned; the value says whether all of one could be looked at.
func (h *heal) condemn(ctx context.Context) map[container.ID]bool {
	ids := make(map[container.ID]bool)
	for _, id := range h.s.damage.places(damagedContainer, damagedShell) {
		if err := h.s.Condemn(ctx, id); err == nil {
			ids[id] = true
		} else if KindOf(err) != InUse && KindOf(err) != NotFound {
			h.s.log.Warn("a damaged container stays", "container", id.String(), "err", err)
		}
	}
	return ids
}

// salvageOne stores what is needed of a container and can be read.
func (h *heal) salvageOne(ctx context.Context, ids map[container.ID]bool, id container.ID) error {
	if err := stopped(ctx); err != nil {
		return err
	}
	var m *mender
	_, err := container.Salvage(ctx, h.s.blob, id, h.s.ring, func(r container.Record) error {
		if m == nil {
			d, ok := h.s.domains.get(r.Domain)
			if !ok {
				return errForeign
			}
			m = newMender(h.s, d)
		}
		return m.record(ctx, id, r)
	})
	if m != nil {
		defer m.abandon()
	}
	switch k := kindFromBelow(err); {
	case k == Damaged || k == WrongKey || k == NewerFormat || errors.Is(err, errForeign):
		if ids[id] {
			h.s.log.Error("a damaged container cannot be read", "container", id.String(), "err", err)
		}
		ids[id] = false
	case err != nil:
		return wrap("salvage container", id.String(), err)
	}
	if m == nil {
		return nil
	}
	return m.finish(ctx)
}

// removeSalvaged removes the containers. One that could not be looked at stays while chunks are missed that were in it, and
// all stay while there are nodes below which nobody can see: who knows what else can be done with them.
func (h *heal) removeSalvaged(ctx context.Context, ids map[container.ID]bool, blind bool) error {
	for id, read := range ids {
		if blind || !read && h.misses(id) {
			continue
		}
		if err := h.s.removeDamaged(ctx, id); err != nil {
			return err
		}
		h.s.log.Info("damaged container written anew", "container", id.String())
		h.rep.Containers++
	}
	return nil
}

// misses reports whether chunks are missed that were, or may have been, in a container.
func (h *heal) misses(id container.ID) bool {
	for _, d := range h.s.damage.list() {
		if (d.Container == id || d.Container == 0) && len(d.Digests) > 0 {
			return true
		}
	}
	return false
}

// take decompresses a record and computes the digests of its chunks.
func (m *mender) take(r container.Record) (ds []digest.Digest, chunks [][]byte, err error) {
	f := frame.Frame{Codec: r.Codec, Stored: r.Stored, Refs: make([]frame.Ref, len(r.Lengths))}
	for i, n := range r.Lengths {
		f.Refs[i].Length = n
	}
	if m.plain, err = m.dec.Decode(f, m.plain[:0]); err != nil {
		return nil, nil, err
	}
	for i := range f.Refs {
		c := f.Chunk(i, m.plain)
		ds, chunks = append(ds, m.hasher[r.Kind].Sum(c)), append(chunks, c)
	}
	return ds, chunks, nil
}

// record stores those chunks of a record that are missed or that the index names in its container.
func (m *mender) record(ctx context.Context, id container.ID, r container.Record) error {
	ds, chunks, err := m.take(r)
	if err != nil {
		return nil // it is authentic, and was never right: nothing to salvage
	}
	kind := r.Kind
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := m.s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return wrap("look up index", id.String(), err)
	}
	for i, d := range ds {
		if !m.s.damage.has(d) && !(ok[i] && locs[i].Container == id) {
			continue
		}
		if err := m.add(ctx, kind, d, chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

// removeDamaged removes a condemned container, and brings the damage list level: what is still missed of it is nowhere now.
func (s *Store) removeDamaged(ctx context.Context, id container.ID) error {
	ctx = context.WithoutCancel(ctx)
	if err := s.index.RemoveContainer(ctx, id); err != nil {
		return wrap("remove container", id.String(), err)
	}
	size := s.containers.size(id)
	s.containers.remove(id)
	s.dirs.forget(id)
	if err := s.blob.Delete(ctx, id.Name()); err != nil && !errors.Is(err, blob.ErrNotExist) {
		if _, gone := s.blob.Size(ctx, id.Name()); errors.Is(gone, blob.ErrNotExist) {
			s.damage.uproot(id)
		} else {
			s.containers.restore(id, size)
		}
		return wrap("delete container", id.String(), err)
	}
	s.damage.uproot(id)
	return nil
}

// uproot turns the rows of a container that is gone into ones of references.
func (l *damageList) uproot(id container.ID) {
	l.sift(func(r *damageRow) int {
		if r.Container == id && r.sort != damagedReference {
			r.sort, r.Frame, r.unknown = damagedReference, WholeContainer, false
		}
		return 0
	})
}
