package dedup

import (
	"context"
	"log/slog"
	"sync"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/keys"
)

// Source is another store, or the directory of one, that is only read: nothing is locked and nothing is written, so that
// it may be in use. It has no index: Find looks through the directories of all containers. Its methods may be called from
// many goroutines.
type Source struct {
	blob    blob.Store
	ring    *keys.Ring
	domain  Domain
	log     *slog.Logger
	readers *readerPool

	mu     sync.Mutex
	places map[digest.Digest][]Loc // guarded by mu: of what Find looked for
}

var (
	_ ChunkSource = (*Source)(nil)
	_ ChunkFinder = (*Source)(nil)
)

// OpenSource opens a store as a source of chunks. Of the options only Blob, Key and Logger are used.
func OpenSource(ctx context.Context, opts Options) (*Source, error) {
	opts = opts.withDefaults()
	ring, err := keys.Load(ctx, opts.Blob, opts.Key)
	if err != nil {
		return nil, wrap("open source", "", err)
	}
	s := &Store{opts: opts, log: opts.Logger, blob: opts.Blob, ring: ring, damage: newDamageList()}
	domain, err := s.loadDomain(ctx)
	if err != nil {
		return nil, wrap("open source", "", err)
	}
	return &Source{blob: opts.Blob, ring: ring, domain: domain, log: opts.Logger,
		readers: newReaderPool(s.domains.get), places: make(map[digest.Digest][]Loc)}, nil
}

// Domain returns the dedup domain of the source's chunks.
func (s *Source) Domain() digest.DomainID { return s.domain.ID }

// Find looks for chunks and nodes in all containers, and remembers where they are.
func (s *Source) Find(ctx context.Context, ds []digest.Digest) error {
	for info, err := range s.blob.List(ctx, container.Prefix, "") {
		if err != nil {
			return wrap("list containers of source", "", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		id, ok := container.ParseName(info.Name)
		if !ok {
			continue
		}
		dir, err := container.OpenDirectory(ctx, s.blob, id, s.ring)
		if err != nil {
			s.log.Warn("a container of a source cannot be read", "container", id.String(), "err", err)
			continue
		}
		s.note(dir, ds)
	}
	return nil
}

func (s *Source) note(dir *container.Directory, ds []digest.Digest) {
	if dir.Domain() != s.domain.ID {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		if slot, ok := dir.Lookup(d); ok {
			s.places[d] = append(s.places[d], Loc{dir.ID(), dir.Row(slot).Frame})
		}
	}
}

// Chunk returns the first copy that is whole. It looks for what Find was not asked for, which costs as much as for many.
func (s *Source) Chunk(ctx context.Context, kind container.Kind, d digest.Digest) ([]byte, error) {
	places := s.known(d)
	if len(places) == 0 {
		if err := s.Find(ctx, []digest.Digest{d}); err != nil {
			return nil, err
		}
		places = s.known(d)
	}
	err := error(&Error{Kind: NotFound, Op: "read chunk of source", Object: d.String()})
	for _, at := range places {
		var b []byte
		if b, err = s.read(ctx, kind, d, at); err == nil {
			return b, nil
		}
	}
	return nil, err
}

func (s *Source) known(d digest.Digest) []Loc {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[d]
}

func (s *Source) read(ctx context.Context, kind container.Kind, d digest.Digest, at Loc) ([]byte, error) {
	dir, err := container.OpenDirectory(ctx, s.blob, at.Container, s.ring)
	if err != nil {
		return nil, wrap("open container of source", at.String(), err)
	}
	slot, ok := dir.Lookup(d)
	if !ok || dir.Kind() != kind {
		return nil, &Error{Kind: NotFound, Op: "read chunk of source", Object: d.String()}
	}
	r, err := s.readers.take(ctx)
	if err != nil {
		return nil, err
	}
	defer s.readers.give(r)
	h, err := s.readers.hasher(r, dir)
	if err != nil {
		return nil, err
	}
	f, err := container.ReadFrame(ctx, s.blob, dir, dir.Row(slot).Frame, &r.buf)
	if err != nil {
		return nil, wrap("read frame of source", at.String(), err)
	}
	plain, err := r.dec.Decode(f, nil)
	if err == nil {
		err = f.Verify(h, plain)
	}
	if err != nil {
		return nil, &Error{Kind: Damaged, Op: "read frame of source", Object: at.String(), Err: err}
	}
	row := dir.Row(slot)
	return plain[row.Offset : row.Offset+row.Length], nil
}

// Close ends the source. There is nothing to give back.
func (s *Source) Close() error { return nil }
