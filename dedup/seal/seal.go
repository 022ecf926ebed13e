package seal

import (
	"context"
	"fmt"
	"sync"

	"coffer/dedup/digest"
	"coffer/dedup/recipe"
)

// SealChunk appends the box of a chunk to dst: at most len(plain)+Overhead bytes. plain has 1 to MaxPlain bytes and does
// not overlap dst's memory.
func (s *Sealer) SealChunk(dst, plain []byte) ([]byte, error) {
	return s.box(&s.chunk, dst, nil, plain)
}

// OpenChunk appends the plain bytes of a chunk to dst. ErrKey, ErrMalformed.
func (s *Sealer) OpenChunk(dst, box []byte) ([]byte, error) {
	out, err := s.unbox(&s.chunk, dst, nil, box)
	if err != nil {
		return dst, fmt.Errorf("open a sealed chunk: %w", err)
	}
	return out, nil
}

// SealNode implements recipe.NodeSealer.
func (s *Sealer) SealNode(dst, rec []byte) ([]byte, error) {
	return recipe.Seal(dst, rec, s.id, func(dst, clear, hidden []byte) ([]byte, error) {
		return s.box(&s.node, dst, clear, hidden)
	})
}

// OpenNode appends the open record of a sealed one to dst, checked as by recipe.Parse. ErrKey, ErrMalformed, or a
// *recipe.Error.
func (s *Sealer) OpenNode(dst, rec []byte) ([]byte, error) {
	return recipe.Open(dst, rec, func(dst, clear, box []byte) ([]byte, error) {
		if by := ID(clear[4:20]); by != s.id {
			return dst, fmt.Errorf("a node sealed by the task key %v, this is %v: %w", by, s.id, ErrKey)
		}
		return s.unbox(&s.node, dst, clear, box)
	})
}

// Sink is a recipe.Sink whose nodes are sealed before they are put. For one goroutine, as its Sealer.
type Sink struct {
	recipe.Sink
	*Sealer
}

var _ recipe.NodeSealer = Sink{}

// NewSink returns a Sink over another one.
func NewSink(to recipe.Sink, k Key) Sink { return Sink{to, NewSealer(k)} }

// Opener opens from many goroutines.
type Opener struct {
	key  Key
	free sync.Pool // of *Sealer
}

// NewOpener returns an Opener for a key.
func NewOpener(k Key) *Opener {
	return &Opener{key: k, free: sync.Pool{New: func() any { return NewSealer(k) }}}
}

// ID names the key.
func (o *Opener) ID() ID { return o.key.ID() }

// Chunk appends the plain bytes of a sealed chunk to dst, as OpenChunk.
func (o *Opener) Chunk(dst, box []byte) ([]byte, error) {
	s := o.free.Get().(*Sealer)
	defer o.free.Put(s)
	return s.OpenChunk(dst, box)
}

// Node returns the open record of a sealed one, as OpenNode.
func (o *Opener) Node(rec []byte) ([]byte, error) {
	s := o.free.Get().(*Sealer)
	defer o.free.Put(s)
	return s.OpenNode(nil, rec)
}

// Source returns a source of open nodes over one of sealed nodes. As safe for concurrent use as that one.
func (o *Opener) Source(from recipe.Source) recipe.Source { return source{o, from} }

type source struct {
	o    *Opener
	from recipe.Source
}

// Node implements recipe.Source.
func (s source) Node(ctx context.Context, d digest.Digest) ([]byte, error) {
	rec, err := s.from.Node(ctx, d)
	if err != nil {
		return nil, err
	}
	return s.o.Node(rec)
}
