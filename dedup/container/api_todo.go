package container

import (
	"context"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// Header says what a new container is. Domain, ID and Kind are bound into every authenticated byte of it.
type Header struct {
	ID      ID
	Kind    Kind
	Domain  [16]byte
	Keys    *keys.Ring
	Created int64 // Unix seconds
}

// Writer builds one container in a spool file.
type Writer struct{}

// NewWriter creates the spool file (its directory exists; the name must be free) and writes the header into it.
func NewWriter(fs vfs.FS, spoolPath string, h Header) (*Writer, error) { panic("todo") }

// ID returns the container's id.
func (w *Writer) ID() ID { panic("todo") }

// Append adds a frame and returns the slot of its first chunk; the others follow in order. The frame's bytes are copied.
func (w *Writer) Append(f frame.Frame) (firstSlot uint32, err error) { panic("todo") }

// Size returns the bytes that the container would have if it were sealed now.
func (w *Writer) Size() int64 { panic("todo") }

// Rows and Frames return how many chunks and frames the container holds so far.
func (w *Writer) Rows() int   { panic("todo") }
func (w *Writer) Frames() int { panic("todo") }

// Row returns the row of a slot.
func (w *Writer) Row(slot uint32) Row { panic("todo") }

// ReadFrame reads a frame of the open container. buf may be nil.
func (w *Writer) ReadFrame(i uint32, buf *Buffer) (frame.Frame, error) { panic("todo") }

// Seal writes directory and footer, syncs and closes the spool file. The Writer is done, whatever Seal returns; on an
// error the spool file is removed.
func (w *Writer) Seal(ctx context.Context) (Sealed, error) { panic("todo") }

// Abandon closes and removes the spool file. It may be called at any time, also after Seal (then it does nothing).
func (w *Writer) Abandon() {}

// Sealed is a finished container in its spool file.
type Sealed struct {
	Directory *Directory // as OpenDirectory would return it, with keys
	Path      string     // spool file
	Size      int64
}

// Store moves a sealed container into the blob store (by blob.Adopter where the store can, else by Put) and removes the
// spool file.
func Store(ctx context.Context, fs vfs.FS, b blob.Store, s Sealed) error { panic("todo") }

// Buffer is reusable memory of ReadFrame; the frame read into it is valid until its next use. The zero value is ready.
type Buffer struct {
	raw  []byte
	refs []frame.Ref
}

// Row is one chunk of a container.
type Row struct {
	Digest digest.Digest
	Frame  uint32 // index of the frame
	Offset uint32 // in the frame's plain bytes
	Length uint32
}

// FrameInfo is one frame of a container.
type FrameInfo struct {
	Offset    int64  // of the record in the blob
	Stored    uint32 // bytes of the record, all told
	Plain     uint32
	FirstSlot uint32
	Chunks    uint32
	Codec     frame.Codec
}

// Directory is a sealed container's table of contents in memory. It is immutable and safe for concurrent use.
type Directory struct{}

// OpenDirectory reads a container's directory. With a ring it is authenticated and ReadFrame works; without (nil) only
// checksums are checked, digests and lengths can be read, and ReadFrame is refused.
func OpenDirectory(ctx context.Context, b blob.Store, id ID, ring *keys.Ring) (*Directory, error) {
	panic("todo")
}

func (d *Directory) ID() ID           { panic("todo") }
func (d *Directory) Kind() Kind       { panic("todo") }
func (d *Directory) Domain() [16]byte { panic("todo") }
func (d *Directory) Size() int64      { panic("todo") } // whole container
func (d *Directory) MemSize() int64   { panic("todo") }
func (d *Directory) Rows() int        { panic("todo") }
func (d *Directory) Frames() int      { panic("todo") }

// Row returns the row of a slot; it panics when slot >= Rows (check hints of the index first).
func (d *Directory) Row(slot uint32) Row      { panic("todo") }
func (d *Directory) Frame(i uint32) FrameInfo { panic("todo") }

// Digest is Row(slot).Digest.
func (d *Directory) Digest(slot uint32) digest.Digest { panic("todo") }

// Lookup finds the slot of a chunk.
func (d *Directory) Lookup(x digest.Digest) (slot uint32, ok bool) { panic("todo") }

// ReadFrame reads frame i: CRC checked, decrypted and authenticated, still compressed. buf may be nil; else the frame
// is valid until buf's next use.
func ReadFrame(ctx context.Context, b blob.Store, d *Directory, i uint32, buf *Buffer) (frame.Frame, error) {
	panic("todo")
}
