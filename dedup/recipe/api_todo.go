package recipe

import (
	"context"

	"coffer/dedup/digest"
)

// Parse reads a record and checks all of it: the clear part, and a body that is not sealed. It is what stands
// between a hostile record and everyone who reads nodes.
func Parse(rec []byte) (Node, error) { panic("todo") }

// ParseClear reads a record and checks its clear part only.
func ParseClear(rec []byte) (Node, error) { panic("todo") }

// Encode returns the record of n.
func (n *Node) Encode() ([]byte, error) { panic("todo") }

// CheckChild reports whether child (parsed) can be child i of parent.
func CheckChild(parent *Node, i int, child *Node) error { panic("todo") }

type DirBuilder struct{}

func NewDirBuilder(sink Sink, h *digest.Hasher) *DirBuilder { panic("todo") }

// Add appends an entry; below is what DirBuilder.Finish returned for a directory, and ignored for other types.
func (b *DirBuilder) Add(ctx context.Context, e Entry, below Totals) error { panic("todo") }

// Finish; afterwards the builder is empty and may be used for the next directory.
func (b *DirBuilder) Finish(ctx context.Context) (Ref, error) { panic("todo") }

type StreamBuilder struct{}

func NewStreamBuilder(sink Sink, h *digest.Hasher) *StreamBuilder            { panic("todo") }
func (b *StreamBuilder) Add(ctx context.Context, x Extent) error             { panic("todo") }
func (b *StreamBuilder) Finish(ctx context.Context) (Content, Totals, error) { panic("todo") }

type SideBuilder struct{}

func NewSideBuilder(sink Sink, h *digest.Hasher) *SideBuilder { panic("todo") }

// Add appends a row; name is the entry's name, a hint for cutting.
func (b *SideBuilder) Add(ctx context.Context, r SideRow, name string) error { panic("todo") }
func (b *SideBuilder) Finish(ctx context.Context) (Ref, error)               { panic("todo") }

// Lookup finds one name; ErrNotFound.
func Lookup(ctx context.Context, src Source, dir digest.Digest, name string) (Entry, Totals, error) {
	panic("todo")
}

type DirIter struct{}

func NewDirIter(src Source, dir digest.Digest) *DirIter              { panic("todo") }
func (it *DirIter) Next(ctx context.Context) (Entry, Totals, error)  { panic("todo") }
func (it *DirIter) SeekAfter(ctx context.Context, name string) error { panic("todo") }

// StreamIter iterates over the extents of a file's content.
type StreamIter struct{}

// NewStreamIter: size is the entry's Size.
func NewStreamIter(src Source, c Content, size uint64) *StreamIter { panic("todo") }

// Next returns extents in order, whole (not cut at the seek offset), io.EOF at the end.
func (it *StreamIter) Next(ctx context.Context) (Extent, error) { panic("todo") }

// Seek: the next extent will be the one that holds off.
func (it *StreamIter) Seek(ctx context.Context, off uint64) error { panic("todo") }

type SideIter struct{}

func NewSideIter(src Source, root digest.Digest) *SideIter     { panic("todo") }
func (it *SideIter) Next(ctx context.Context) (SideRow, error) { panic("todo") }
func (it *SideIter) Skip(ctx context.Context, n uint64) error  { panic("todo") }

// Step is one entry met by a Walker.
type Step struct {
	Depth int // 0 in the root directory
	Entry Entry
	Below Totals  // of a directory
	Side  SideRow // zero without side rows
}

// Walker goes through a tree depth first, in name order, a directory's entry before its contents.
type Walker struct{}

// NewWalker: side is the root of the side stream, or zero.
func NewWalker(src Source, root, side digest.Digest) *Walker { panic("todo") }
func (w *Walker) Next(ctx context.Context) (Step, error)     { panic("todo") }

// Path of the last step, without a leading slash.
func (w *Walker) Path() string { panic("todo") }

// SkipDir: the directory of the last step is not entered.
func (w *Walker) SkipDir() { panic("todo") }

// Walk calls fn for each step; fn may return SkipDir.
func Walk(ctx context.Context, src Source, root, side digest.Digest, fn func(path string, s Step) error) error {
	panic("todo")
}
