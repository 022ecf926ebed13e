package dedup

import (
	"context"
	"runtime"

	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// reader is what one decoding of a frame needs; it is reused.
type reader struct {
	dec     *frame.Decoder
	hashers map[digest.DomainID]domainHashers
	buf     container.Buffer
	plain   []byte // for verify alone: what is cached is not reused
}

// domainHashers verify what a domain has.
type domainHashers struct{ data, node *digest.Hasher }

// maxHashers bounds the domains that a reader keeps hashers for: each takes 32 KiB.
const maxHashers = 16

// readerPool bounds how many frames are decoded at once, and with it the memory that is not in a cache.
type readerPool struct {
	domain func(digest.DomainID) (Domain, bool)
	free   chan *reader // as many as may run; nil is one to be made
}

func newReaderPool(domain func(digest.DomainID) (Domain, bool)) *readerPool {
	n := max(4, 2*runtime.GOMAXPROCS(0))
	p := &readerPool{domain: domain, free: make(chan *reader, n)}
	for range n {
		p.free <- nil
	}
	return p
}

func (s *Store) prepareReading(context.Context) error {
	s.readers = newReaderPool(s.domains.get)
	return nil
}

func (p *readerPool) take(ctx context.Context) (*reader, error) {
	select {
	case r := <-p.free:
		if r == nil {
			r = &reader{dec: frame.NewDecoder(), hashers: make(map[digest.DomainID]domainHashers)}
		}
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *readerPool) give(r *reader) { p.free <- r }

// read returns the bytes at a place, through the cache of its kind.
func (s *Store) read(ctx context.Context, at found) ([]byte, error) {
	row := at.dir.Row(at.slot)
	plain, err := s.plain(ctx, at.dir, row.Frame)
	if err != nil {
		return nil, err
	}
	end := int64(row.Offset) + int64(row.Length)
	if end > int64(len(plain)) {
		return nil, &Error{Kind: Damaged, Op: "read chunk", Object: row.Digest.String()}
	}
	return plain[row.Offset:end:end], nil
}

// plain returns a decoded frame. Nodes are verified; data is authentic (doc.go, "What reading trusts").
func (s *Store) plain(ctx context.Context, dir *container.Directory, i uint32) ([]byte, error) {
	if dir.Kind() == container.Node {
		return s.nodes.get(ctx, Loc{dir.ID(), i}, func(ctx context.Context) ([]byte, error) {
			return s.decode(ctx, dir, i)
		})
	}
	return s.frames.get(ctx, Loc{dir.ID(), i}, func(ctx context.Context) ([]byte, error) {
		return s.unpack(ctx, dir, i, nil)
	})
}

// decode returns a decoded frame, every chunk of it verified.
func (s *Store) decode(ctx context.Context, dir *container.Directory, i uint32) ([]byte, error) {
	return s.unpack(ctx, dir, i, frame.Frame.Verify)
}

// unpack reads and decodes a frame, and holds it to verify unless that is nil.
func (s *Store) unpack(ctx context.Context, dir *container.Directory, i uint32, verify func(frame.Frame, *digest.Hasher, []byte) error) ([]byte, error) {
	r, err := s.readers.take(ctx)
	if err != nil {
		return nil, err
	}
	defer s.readers.give(r)
	loc := Loc{dir.ID(), i}
	h, err := s.readers.hasher(r, dir)
	if err != nil {
		return nil, err
	}
	f, err := container.ReadFrame(ctx, s.blob, dir, i, &r.buf)
	if kindFromBelow(err) == Damaged {
		s.noteFrame(ctx, dir, i, err)
	}
	if err != nil {
		return nil, wrap("read frame", loc.String(), err)
	}
	plain, err := r.dec.Decode(f, s.huge.make(frame.Room(f.PlainLen())))
	if err == nil && verify != nil {
		err = verify(f, h, plain)
	}
	if err != nil {
		s.noteFrame(ctx, dir, i, err)
		return nil, &Error{Kind: Damaged, Op: "read frame", Object: loc.String(), Err: err}
	}
	return plain, nil
}

// hasher returns what verifies the chunks of a container. Kind NotFound when the store lacks the domain's key.
func (p *readerPool) hasher(r *reader, dir *container.Directory) (*digest.Hasher, error) {
	h, ok := r.hashers[dir.Domain()]
	if !ok {
		d, known := p.domain(dir.Domain())
		if !known {
			return nil, &Error{Kind: NotFound, Op: "find domain", Object: dir.Domain().String()}
		}
		if len(r.hashers) >= maxHashers {
			clear(r.hashers)
		}
		h = domainHashers{digest.NewHasher(d.Keys.Data), digest.NewHasher(d.Keys.Node)}
		r.hashers[d.ID] = h
	}
	if dir.Kind() == container.Node {
		return h.node, nil
	}
	return h.data, nil
}
