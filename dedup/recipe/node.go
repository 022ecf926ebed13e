package recipe

import (
	"context"
	"fmt"

	"coffer/dedup/digest"
)

// Limits of the format.
const (
	Version   = 1       // of the records that this package writes and reads
	MaxRecord = 1 << 20 // bytes of a node's record
	MaxLevel  = 32      // height of the inner nodes of one tree
	MaxTotal  = 1 << 62 // largest number of entries or bytes below a node

	MaxChunkLen = 8 << 20  // plain bytes of a data chunk
	MaxName     = 4096     // bytes of a name
	MaxTarget   = 64 << 10 // bytes of a symlink's target
	MaxXattrs   = 16384    // extended attributes of an entry
	MaxInline   = 4096     // bytes of an xattr's value that lie in the node; longer ones lie in a chunk

	// MaxXattrBytes bounds the names and inline values of an entry's xattrs together, with 40 bytes more for each. Who
	// has more puts values into chunks, however short.
	MaxXattrBytes = 512 << 10
)

// Kind is what a node describes. Part of the format.
type Kind uint8

// The kinds.
const (
	DirLeaf     Kind = 1 // entries of a directory
	DirInner    Kind = 2 // nodes of a directory
	StreamLeaf  Kind = 3 // extents of a file or stream
	StreamInner Kind = 4 // nodes of a file or stream
	SideLeaf    Kind = 5 // side rows
	SideInner   Kind = 6 // nodes of a side stream

	ImageLeaf  Kind = 16 // chunks of a disk image
	ImageInner Kind = 17 // nodes of a disk image
)

func (k Kind) String() string {
	switch k {
	case DirLeaf:
		return "directory leaf"
	case DirInner:
		return "directory inner node"
	case StreamLeaf:
		return "stream leaf"
	case StreamInner:
		return "stream inner node"
	case SideLeaf:
		return "side leaf"
	case SideInner:
		return "side inner node"
	case ImageLeaf:
		return "image leaf"
	case ImageInner:
		return "image inner node"
	}
	return fmt.Sprintf("kind(0x%02x)", uint8(k))
}

// Inner reports whether nodes of this kind have nodes of the same tree as children.
func (k Kind) Inner() bool {
	return k == DirInner || k == StreamInner || k == SideInner || k == ImageInner
}

// known reports whether k is a kind of the format.
func (k Kind) known() bool { return k >= DirLeaf && k <= SideInner || k.image() }

// image reports whether k is a kind of a disk image.
func (k Kind) image() bool { return k == ImageLeaf || k == ImageInner }

// leaf returns the leaf kind of k's tree.
func (k Kind) leaf() Kind {
	if k.Inner() {
		return k - 1
	}
	return k
}

// Child is what a node refers to: a data chunk or another node.
type Child struct {
	Digest digest.Digest
	Node   bool
	// Length is the plain bytes of a chunk (0 where a sealed node keeps it to itself), or the logical bytes below a node
	// (its Totals.Bytes).
	Length uint64
}

// Totals sum up what is below a node, the whole subtree through.
//
// For a directory, Entries counts all entries below it, in subdirectories too, and Bytes sums the sizes of the
// regular files among them. For a stream, Entries counts extents and Bytes is its length. For a side stream,
// Entries counts rows and Bytes is 0. For a disk image, Entries counts its chunks, which holes are not, and Bytes is its
// length.
type Totals struct {
	Entries uint64 `json:"entries"`
	Bytes   uint64 `json:"bytes"`
}

// plus adds two totals of at most MaxTotal each, and stays just above MaxTotal when the sum exceeds it: sums of sums
// do not overflow.
func (t Totals) plus(u Totals) Totals {
	return Totals{
		Entries: min(t.Entries+u.Entries, MaxTotal+1),
		Bytes:   min(t.Bytes+u.Bytes, MaxTotal+1),
	}
}

// tooBig reports whether t exceeds what the format allows.
func (t Totals) tooBig() bool { return t.Entries > MaxTotal || t.Bytes > MaxTotal }

// Ref names the root node of a tree.
type Ref struct {
	Digest digest.Digest `json:"digest"`
	Totals Totals        `json:"totals"`
}

// Node is a parsed record.
type Node struct {
	Kind     Kind
	Level    uint8    // 0 for leaves; inner nodes: one more than their children
	SealedBy [16]byte // id of the key that seals the body; zero = not sealed
	Totals   Totals
	Children []Child
	Body     []byte // part of the record, not a copy
}

// Sink takes the nodes of a tree that is built. PutNode is called children first, with the node's digest and its
// record, from the goroutine that calls the builder; rec is valid only during the call. It may be called for nodes
// that the store has already: what to do with those is the sink's decision.
type Sink interface {
	PutNode(ctx context.Context, d digest.Digest, rec []byte) error
}

// Source gives the record of a node by its digest. The record may be shared: nobody changes it, and what the
// readers of this package return may be part of it. The source has checked that the record has this digest. An
// error is passed on to the reader's caller, wrapped.
type Source interface {
	Node(ctx context.Context, d digest.Digest) ([]byte, error)
}
