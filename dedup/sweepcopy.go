package dedup

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/index"
)

// piece is what is copied at a time: a frame of which all is needed, as it is stored, or one chunk of another.
type piece struct {
	from  *container.Directory
	frame uint32
	slot  uint32 // of a single chunk
	whole bool
	rank  uint32
}

// copier copies the chunks of condemned containers into new ones. Not for concurrent use.
type copier struct {
	c       *collection
	kind    container.Kind
	domain  digest.DomainID
	created int64
	from    map[container.ID]struct{}

	w      *container.Writer
	dec    *frame.Decoder
	enc    *frame.Encoder
	hasher *digest.Hasher // nil when the domain's key is not known
	buf    container.Buffer
	plain  []byte // of whole frames
	stored []byte
	packer frame.Packer
	frames *frameCache // of which chunks are copied
}

// copyFrames is what a copier keeps of decoded frames, in bytes. In the order in which chunks are copied those of one frame come
// near each other, with others of each generation between them: a frame for each of a hundred generations.
const copyFrames = 32 << 20

// copyAway copies what is needed of condemned containers, then deletes them. A container that does not read stays, and is
// on the damage list.
//
// INVARIANT G5: what is needed is durable in another container, which the index names, synced, before anything goes.
func (c *collection) copyAway(ctx context.Context, kind container.Kind, ids []container.ID, order *ranking) error {
	cp := c.newCopier(kind, ids)
	defer cp.abandon()
	pieces, broken, err := cp.pieces(ctx, ids, order)
	if err != nil {
		return err
	}
	for i := range pieces {
		p := &pieces[i]
		if _, ok := broken[p.from.ID()]; ok {
			continue
		}
		if err := stopped(ctx); err != nil {
			return err
		}
		err := cp.copy(ctx, p)
		if k := KindOf(err); k == Damaged {
			c.s.noteFrame(ctx, p.from, p.frame, err)
			broken[p.from.ID()] = struct{}{}
		} else if err != nil {
			return err
		}
	}
	if err := cp.finish(ctx); err != nil {
		return err
	}
	_, _, frames := cp.frames.stats()
	c.report.Memory = max(c.report.Memory, c.marks.memory()+c.find.memory()+int64(len(order.ranks))*rankMem+frames)
	var gone []container.ID
	for _, id := range ids {
		all := false
		if _, ok := broken[id]; !ok {
			if all, err = c.moved(ctx, id); err != nil {
				return err
			}
		}
		if all {
			gone = append(gone, id)
		} else {
			c.old[id].damaged = true
		}
	}
	if err := c.dropMarks(ctx, gone); err != nil {
		return err
	}
	for _, id := range gone {
		if err := c.remove(ctx, id); err != nil {
			return err
		}
		c.report.Copied++
	}
	return nil
}

// newCopier makes a copier for containers of one domain. A copy is as old as the oldest that it is made of: it holds no
// remains, and what of it is not needed any more need not wait.
func (c *collection) newCopier(kind container.Kind, ids []container.ID) *copier {
	cp := &copier{c: c, kind: kind, from: make(map[container.ID]struct{}), dec: frame.NewDecoder(), enc: frame.NewEncoder(),
		frames: newFrameCache(copyFrames)}
	for i, id := range ids {
		j := c.old[id]
		if i == 0 || j.created < cp.created {
			cp.created = j.created
		}
		cp.domain = j.domain
		cp.from[id] = struct{}{}
	}
	if d, ok := c.s.domains.get(cp.domain); ok {
		key := d.Keys.Data
		if kind == container.Node {
			key = d.Keys.Node
		}
		cp.hasher = digest.NewHasher(key)
	}
	return cp
}

// pieces lists what is to be copied, in the order in which it is to lie. broken are the containers that do not open.
func (cp *copier) pieces(ctx context.Context, ids []container.ID, order *ranking) (all []piece, broken map[container.ID]struct{}, err error) {
	broken = make(map[container.ID]struct{})
	for _, id := range ids {
		dir, err := cp.c.open(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		if dir == nil {
			broken[id] = struct{}{}
			continue
		}
		needed, err := cp.c.neededHere(ctx, dir)
		if err != nil {
			return nil, nil, err
		}
		for i := range uint32(dir.Frames()) {
			all = appendPieces(all, dir, i, needed, order)
		}
	}
	slices.SortStableFunc(all, func(a, b piece) int { return cmp.Compare(a.rank, b.rank) })
	return all, broken, nil
}

// appendPieces adds what is needed of a frame.
func appendPieces(all []piece, dir *container.Directory, i uint32, needed slotBits, order *ranking) []piece {
	f := dir.Frame(i)
	whole := piece{from: dir, frame: i, whole: true, rank: unranked}
	n, start := uint32(0), len(all)
	for slot := f.FirstSlot; slot < f.FirstSlot+f.Chunks; slot++ {
		if !needed.has(slot) {
			continue
		}
		d := dir.Digest(slot)
		p := piece{from: dir, frame: i, slot: slot, rank: order.of(&d)}
		whole.rank = min(whole.rank, p.rank)
		all = append(all, p)
		n++
	}
	if n == f.Chunks {
		all = append(all[:start], whole)
	}
	return all
}

// neededHere returns the slots of a container that are needed and that the index does not name, undamaged, elsewhere.
func (c *collection) neededHere(ctx context.Context, dir *container.Directory) (slotBits, error) {
	live, err := c.needed(ctx, dir)
	if err != nil {
		return nil, err
	}
	err = c.eachEntry(ctx, dir, live, func(slot uint32, at index.Loc, ok bool) {
		if ok && at.Container != dir.ID() && c.s.containers.usable(at.Container) && !c.s.badRow(ctx, at) {
			live[slot/64] &^= 1 << (slot % 64)
		}
	})
	return live, err
}

// eachEntry tells where the index names the chunks of some slots.
func (c *collection) eachEntry(ctx context.Context, dir *container.Directory, slots slotBits, f func(slot uint32, at index.Loc, ok bool)) error {
	var ds []digest.Digest
	var at []uint32
	for slot := range uint32(dir.Rows()) {
		if slots.has(slot) {
			ds, at = append(ds, dir.Digest(slot)), append(at, slot)
		}
	}
	locs, ok := make([]index.Loc, len(ds)), make([]bool, len(ds))
	if err := c.s.index.Lookup(ctx, ds, locs, ok); err != nil {
		return wrap("look up index", "", err)
	}
	for i, slot := range at {
		f(slot, locs[i], ok[i])
	}
	return nil
}

// copy puts a piece into the new container.
func (cp *copier) copy(ctx context.Context, p *piece) error {
	return cp.c.s.givingWay(ctx, func() error {
		n, err := cp.put(ctx, p)
		if err != nil {
			return err
		}
		if cp.w != nil && cp.w.Size() >= cp.c.s.opts.ContainerSize {
			if err := cp.seal(ctx); err != nil {
				return err
			}
		}
		if cp.c.pace.take(ctx, n) != nil {
			return stopped(ctx)
		}
		return nil
	})
}

// put returns how many bytes it moved.
func (cp *copier) put(ctx context.Context, p *piece) (int64, error) {
	if p.whole {
		f, err := container.ReadFrame(ctx, cp.c.s.blob, p.from, p.frame, &cp.buf)
		if err != nil {
			return 0, wrap("read frame", Loc{p.from.ID(), p.frame}.String(), err)
		}
		if cp.plain, err = cp.check(p, f, cp.plain[:0]); err != nil {
			return 0, err
		}
		return 2 * int64(len(f.Stored)), cp.append(ctx, f)
	}
	plain, err := cp.plainOf(ctx, p)
	if err != nil {
		return 0, err
	}
	row := p.from.Row(p.slot)
	chunk := plain[row.Offset : row.Offset+row.Length]
	if !cp.packer.Fits(len(chunk)) {
		if err := cp.flush(ctx); err != nil {
			return 0, err
		}
	}
	cp.packer.Add(row.Digest, chunk)
	return 2 * int64(row.Length), nil
}

// check appends the plain bytes of a frame to dst and verifies its digests, as far as the domain's key is known.
func (cp *copier) check(p *piece, f frame.Frame, dst []byte) ([]byte, error) {
	plain, err := cp.dec.Decode(f, dst)
	if err == nil && cp.hasher != nil {
		err = f.Verify(cp.hasher, plain)
	}
	if err != nil {
		return dst, &Error{Kind: Damaged, Op: "copy frame", Object: Loc{p.from.ID(), p.frame}.String(), Err: err}
	}
	return plain, nil
}

// plainOf returns the plain bytes of the frame that a chunk lies in.
func (cp *copier) plainOf(ctx context.Context, p *piece) ([]byte, error) {
	loc := Loc{p.from.ID(), p.frame}
	return cp.frames.get(ctx, loc, func(ctx context.Context) ([]byte, error) {
		f, err := container.ReadFrame(ctx, cp.c.s.blob, p.from, p.frame, &cp.buf)
		if err != nil {
			return nil, wrap("read frame", loc.String(), err)
		}
		return cp.check(p, f, nil)
	})
}

func (cp *copier) flush(ctx context.Context) error {
	if cp.packer.Empty() {
		return nil
	}
	f := cp.packer.Encode(cp.enc, cp.stored)
	cp.stored = f.Stored
	cp.packer.Reset()
	return cp.append(ctx, f)
}

func (cp *copier) append(ctx context.Context, f frame.Frame) error {
	if cp.w == nil {
		s := cp.c.s
		if err := s.checkSpace(ctx, s.opts.ContainerSize); err != nil {
			return err
		}
		w, err := s.newContainer(cp.kind, cp.domain, cp.created)
		if err != nil {
			return err
		}
		cp.w = w
	}
	_, err := cp.w.Append(f)
	return wrap("append to container", cp.w.ID().String(), err)
}

// seal makes a copy durable and enters it into the index, where it takes the entries of the condemned containers over.
func (cp *copier) seal(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	w, s := cp.w, cp.c.s
	cp.w = nil
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
	cp.c.report.CopiedBytes += sealed.Size
	return s.enter(ctx, dir, func(id container.ID) bool {
		_, own := cp.from[id]
		return !own && s.containers.usable(id)
	}, nil)
}

// finish seals what is open.
func (cp *copier) finish(ctx context.Context) error {
	if err := cp.flush(ctx); err != nil || cp.w == nil {
		return err
	}
	return cp.seal(ctx)
}

func (cp *copier) abandon() {
	if cp.w != nil {
		cp.w.Abandon()
		cp.w = nil
	}
}

// moved reports, by the index as it is now, whether all that is needed of a container lies elsewhere. It does not when what
// it was copied to, or who else took it over, proved damaged meanwhile.
func (c *collection) moved(ctx context.Context, id container.ID) (all bool, err error) {
	dir, err := c.open(ctx, id)
	if err != nil || dir == nil {
		return false, err
	}
	live, _ := c.marks.snapshot(id)
	all = true
	err = c.eachEntry(ctx, dir, live, func(slot uint32, at index.Loc, ok bool) {
		if all && (!ok || at.Container == id || !c.s.containers.usable(at.Container) || c.s.badRow(ctx, at)) {
			c.s.log.Error("a chunk that is needed was not moved: its container stays", "container", id.String(), "chunk", dir.Digest(slot).String())
			all = false
		}
	})
	return all, err
}

// mayStay makes a container known whose Put failed and could not be taken back: at the next Open it is there. No run has anything
// of it, and a collection names what of it dies.
func (s *Store) mayStay(ctx context.Context, sealed container.Sealed) {
	id := sealed.Directory.ID()
	if _, err := s.blob.Size(ctx, id.Name()); !errors.Is(err, blob.ErrNotExist) {
		s.containers.add(id, sealed.Size, 0)
	}
}

// newContainer opens a spool file for a new container of the store's newest key.
func (s *Store) newContainer(kind container.Kind, domain digest.DomainID, created int64) (*container.Writer, error) {
	id, err := s.nextID()
	if err != nil {
		return nil, err
	}
	w, err := container.NewWriter(s.fs, s.spoolPath(id.String()+spoolSuffix), container.Header{
		ID: id, Kind: kind, Domain: domain, Keys: s.ring, Created: created})
	return w, wrap("open container", id.String(), err)
}
