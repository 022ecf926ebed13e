package container

import (
	"context"
	"fmt"
	"sync"

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
	Domain  digest.DomainID
	Keys    *keys.Ring
	Created int64 // Unix seconds
}

// Writer builds one container in a spool file. Its methods may be called from many goroutines, one after the other.
type Writer struct {
	fs     vfs.FS
	path   string
	header header
	sealer sealer
	mac    [32]byte // key of the directory's authentication

	mu      sync.Mutex // guards all below
	out     *output    // nil when sealed or abandoned
	frames  []byte     // frame table
	rows    []byte
	scratch Buffer
	err     error // of the first failed write
}

// NewWriter creates the spool file, whose directory exists and whose name must be free, for a new container.
func NewWriter(fsys vfs.FS, spoolPath string, h Header) (*Writer, error) {
	fail := func(err error) (*Writer, error) { return nil, fmt.Errorf("create container %v: %w", h.ID, err) }
	if h.Kind != Data && h.Kind != Node {
		return fail(fmt.Errorf("invalid %v", h.Kind))
	}
	hd := header{id: h.ID, kind: h.Kind, domain: h.Domain, created: h.Created}
	key, wrapped, err := newDataKey(h.Keys, &hd)
	if err != nil {
		return fail(err)
	}
	hd.key = wrapped
	f, err := fsys.Create(spoolPath)
	if err != nil {
		return fail(err)
	}
	w := &Writer{fs: fsys, path: spoolPath, header: hd, mac: key.MAC, out: newOutput(f, h.Kind == Data)}
	w.sealer = sealer{aead: key.AEAD, aad: hd.recordAAD()}
	w.out.reserve(headerSize)
	w.out.buf = append(w.out.buf, hd.encode()...)
	return w, nil
}

// newDataKey makes the container's key, bound to the header that names the store key it is wrapped under.
func newDataKey(r *keys.Ring, h *header) (keys.DataKey, keys.WrappedKey, error) {
	return r.NewDataKey(func(w keys.WrappedKey) []byte {
		hd := *h
		hd.key = w
		return hd.aad()
	})
}

// ID returns the container's id.
func (w *Writer) ID() ID { return w.header.id }

// Kind returns what the container holds.
func (w *Writer) Kind() Kind { return w.header.kind }

// Append adds a frame and returns the slot of its first chunk; its other chunks follow in order. The frame's bytes are
// copied. An error of the file system, which may be of frames before this one, is final: every later Append is ErrBroken,
// and so is Seal. ErrFull and a malformed frame leave the container as it was.
func (w *Writer) Append(f frame.Frame) (firstSlot uint32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.mayAppend(&f); err != nil {
		return 0, fmt.Errorf("append to container %v: %w", w.header.id, err)
	}
	number, first, o := w.frameCount(), w.rowCount(), w.out
	o.reserve(recordLen(len(f.Refs), len(f.Stored)))
	start, offset := len(o.buf), o.size()
	o.buf = w.sealer.appendRecord(o.buf, number, &f, &w.scratch)
	record := o.buf[start:]
	info := FrameInfo{
		Offset: offset, Size: uint32(len(record)), FirstSlot: first, Chunks: uint32(len(f.Refs)),
		Codec: f.Codec, crc: le.Uint32(record[len(record)-crcSize:]),
	}
	for i := range f.Refs {
		w.rows = appendRow(w.rows, Row{Digest: f.Refs[i].Digest, Frame: number, Offset: info.Plain, Length: f.Refs[i].Length})
		info.Plain += f.Refs[i].Length
	}
	w.frames = appendFrameRow(w.frames, info)
	if w.err = o.writeFull(); w.err != nil {
		return 0, fmt.Errorf("append to container %v: %w", w.header.id, w.err)
	}
	return first, nil
}

func (w *Writer) mayAppend(f *frame.Frame) error {
	switch {
	case w.err != nil:
		return fmt.Errorf("%w: %w", ErrBroken, w.err)
	case w.out == nil:
		return ErrClosed
	}
	if err := f.Validate(); err != nil {
		return err
	}
	if w.size()+int64(recordLen(len(f.Refs), len(f.Stored))+len(f.Refs)*rowSize+frameRowSize) > MaxSize {
		return ErrFull
	}
	return nil
}

func (w *Writer) frameCount() uint32 { return uint32(len(w.frames) / frameRowSize) }
func (w *Writer) rowCount() uint32   { return uint32(len(w.rows) / rowSize) }

// Size returns the bytes that the container would have if it were sealed now; 0 when it was, or was abandoned.
func (w *Writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size()
}

func (w *Writer) size() int64 {
	if w.out == nil {
		return 0
	}
	return w.out.size() + int64(dirHead+len(w.frames)+len(w.rows)+dirTail+footerSize)
}

// Sealed is a finished container in its spool file, synced and closed.
type Sealed struct {
	Directory *Directory // as OpenDirectory would return it, with keys
	Path      string     // of the spool file
	Size      int64
}

// Seal writes directory and footer, syncs and closes the spool file. On an error the spool file is removed; a container
// without a frame is ErrEmpty. The Writer is done, whatever Seal returns.
func (w *Writer) Seal(ctx context.Context) (Sealed, error) {
	s, err := w.seal(ctx)
	if err != nil {
		w.Abandon()
		return Sealed{}, fmt.Errorf("seal container %v: %w", w.header.id, err)
	}
	return s, nil
}

func (w *Writer) seal(ctx context.Context) (Sealed, error) {
	if err := ctx.Err(); err != nil {
		return Sealed{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	dir, size, err := w.finish()
	if err != nil {
		return Sealed{}, err
	}
	f := w.out.file
	if err := f.Sync(); err != nil {
		return Sealed{}, err
	}
	w.release()
	if err := f.Close(); err != nil {
		_ = w.fs.Remove(w.path)
		return Sealed{}, err
	}
	d, err := newDirectory(w.header, dir, size)
	if err != nil {
		_ = w.fs.Remove(w.path)
		return Sealed{}, err
	}
	d.sealer = &sealer{aead: w.sealer.aead, aad: w.sealer.aad}
	return Sealed{Directory: d, Path: w.path, Size: size}, nil
}

// finish writes what follows the records, and returns the directory's bytes.
func (w *Writer) finish() (dir []byte, size int64, err error) {
	switch {
	case w.err != nil:
		return nil, 0, fmt.Errorf("%w: %w", ErrBroken, w.err)
	case w.out == nil:
		return nil, 0, ErrClosed
	case len(w.frames) == 0:
		return nil, 0, ErrEmpty
	}
	dir = w.encodeDirectory()
	o := w.out
	ft := footer{id: w.header.id, dirOffset: o.size(), dirLen: uint32(len(dir)), size: w.size()}
	o.buf = append(o.buf, dir...)
	if ft.hash, err = o.sum(ft.encode()[:footerHashed]); err != nil {
		return nil, 0, err
	}
	o.buf = append(o.buf, ft.encode()...)
	return dir, ft.size, o.finish()
}

func (w *Writer) encodeDirectory() []byte {
	b := make([]byte, 0, dirHead+len(w.frames)+len(w.rows)+dirTail)
	b = append(b, dirMagic...)
	b = le.AppendUint32(b, w.frameCount())
	b = le.AppendUint32(b, w.rowCount())
	b = le.AppendUint32(b, 0)
	b = append(b, w.header.encode()...)
	b = append(b, w.frames...)
	b = append(b, w.rows...)
	mac := directoryMAC(&w.mac, b)
	b = append(b, mac[:]...)
	return le.AppendUint32(b, crc(b))
}

// Abandon closes and removes the spool file. It may be called at any time; after Seal it does nothing.
func (w *Writer) Abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out == nil {
		return
	}
	// What fails here leaves a file in the spool, which is cleared when the store opens.
	_ = w.out.settle()
	_ = w.out.file.Close()
	_ = w.fs.Remove(w.path)
	w.release()
}

// release lets go of file and memory. The caller holds mu.
func (w *Writer) release() {
	w.out, w.frames, w.rows = nil, nil, nil
}

// Store moves a sealed container into the blob store, by blob.Adopter where the store has that, else by Put, and removes
// the spool file. blob.ErrExists: the id was used before. After an error the caller abandons the container.
func Store(ctx context.Context, fsys vfs.FS, b blob.Store, s Sealed) error {
	name := s.Directory.ID().Name()
	if a, ok := b.(blob.Adopter); ok {
		return a.Adopt(ctx, name, s.Path)
	}
	f, err := fsys.Open(s.Path)
	if err != nil {
		return fmt.Errorf("store container %v: %w", s.Directory.ID(), err)
	}
	defer f.Close()
	if err := b.Put(ctx, name, f, s.Size); err != nil {
		return err
	}
	_ = fsys.Remove(s.Path) // the blob is durable; a spool file that stays is cleared when the store opens
	return nil
}
