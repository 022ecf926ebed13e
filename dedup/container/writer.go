package container

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"coffer/dedup/blob"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

const (
	// flushAt is how many bytes of records are written at once.
	flushAt = 1 << 20
	// writebackEvery is how many bytes are written before the system is asked to begin with their writeback, so that the
	// sync at the end waits for less.
	writebackEvery = 8 << 20
)

// Header says what a new container is. Domain, ID and Kind are bound into every authenticated byte of it.
type Header struct {
	ID      ID
	Kind    Kind
	Domain  digest.DomainID
	Keys    *keys.Ring
	Created int64 // Unix seconds
}

// Writer builds one container in a spool file. Append, Seal and Abandon are for one goroutine at a time; all other
// methods may be called beside them.
type Writer struct {
	fs     vfs.FS
	path   string
	header header
	sealer sealer
	mac    [32]byte // key of the directory's authentication

	mu      sync.Mutex // guards all below
	file    vfs.File   // nil when sealed or abandoned
	buf     []byte     // whole records (first: the header), not yet written
	flushed int64      // bytes in the file; always the end of a record
	started int64      // bytes whose writeback was asked for
	frames  []byte     // frame table
	rows    []byte
	hash    *blake3.Hasher // of the flushed bytes
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
	w := &Writer{fs: fsys, path: spoolPath, header: hd, mac: key.MAC, file: f, hash: blake3.New()}
	w.sealer = sealer{aead: key.AEAD, aad: hd.recordAAD()}
	w.buf = append(make([]byte, 0, flushAt+flushAt/2), hd.encode()...)
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
// copied. After an error of the file system every Append is ErrBroken, and what is left is Seal, which keeps the records
// that were written whole, or Abandon. ErrFull and a malformed frame leave the container as it was.
func (w *Writer) Append(f frame.Frame) (firstSlot uint32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.mayAppend(&f); err != nil {
		return 0, fmt.Errorf("append to container %v: %w", w.header.id, err)
	}
	number, first := w.frameCount(), w.rowCount()
	start := len(w.buf)
	w.buf = w.sealer.appendRecord(w.buf, number, &f, &w.scratch)
	record := w.buf[start:]
	info := FrameInfo{
		Offset: w.flushed + int64(start), Size: uint32(len(record)), FirstSlot: first, Chunks: uint32(len(f.Refs)),
		Codec: f.Codec, crc: le.Uint32(record[len(record)-crcSize:]),
	}
	for i := range f.Refs {
		w.rows = appendRow(w.rows, Row{Digest: f.Refs[i].Digest, Frame: number, Offset: info.Plain, Length: f.Refs[i].Length})
		info.Plain += f.Refs[i].Length
	}
	w.frames = appendFrameRow(w.frames, info)
	if len(w.buf) >= flushAt {
		if err := w.flush(); err != nil {
			return 0, fmt.Errorf("append to container %v: %w", w.header.id, err)
		}
	}
	return first, nil
}

func (w *Writer) mayAppend(f *frame.Frame) error {
	switch {
	case w.err != nil:
		return fmt.Errorf("%w: %w", ErrBroken, w.err)
	case w.file == nil:
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

// flush writes the buffer. INVARIANT: flushed is the end of a whole record, also after an error.
func (w *Writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if _, err := w.file.WriteAt(w.buf, w.flushed); err != nil {
		w.err = err
		return err
	}
	_, _ = w.hash.Write(w.buf) // a hash never fails
	w.flushed += int64(len(w.buf))
	w.buf = w.buf[:0]
	if ws, ok := w.file.(vfs.WriteStarter); ok && w.flushed-w.started >= writebackEvery {
		_ = ws.StartWrite(w.started, w.flushed-w.started) // a hint; the sync tells
		w.started = w.flushed
	}
	return nil
}

// Size returns the bytes that the container would have if it were sealed now.
func (w *Writer) Size() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size()
}

func (w *Writer) size() int64 {
	return w.flushed + int64(len(w.buf)+dirHead+len(w.frames)+len(w.rows)+dirTail+footerSize)
}

// Rows returns how many chunks the container holds so far.
func (w *Writer) Rows() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int(w.rowCount())
}

// Frames returns how many frames the container holds so far.
func (w *Writer) Frames() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int(w.frameCount())
}

// Row returns the row of a slot that Append gave out.
func (w *Writer) Row(slot uint32) Row {
	w.mu.Lock()
	defer w.mu.Unlock()
	return rowAt(w.rows, slot)
}

// ReadFrame reads frame i of the container while it is open, and during Seal until that returns: ErrClosed afterwards.
// buf may be nil.
func (w *Writer) ReadFrame(i uint32, buf *Buffer) (frame.Frame, error) {
	if buf == nil {
		buf = new(Buffer)
	}
	f, err := w.readFrame(i, buf)
	if err != nil {
		return frame.Frame{}, fmt.Errorf("read open container %v: %w", w.header.id, err)
	}
	return f, nil
}

func (w *Writer) readFrame(i uint32, buf *Buffer) (frame.Frame, error) {
	w.mu.Lock()
	if w.file == nil {
		w.mu.Unlock()
		return frame.Frame{}, ErrClosed
	}
	if i >= w.frameCount() {
		w.mu.Unlock()
		return frame.Frame{}, fmt.Errorf("no frame %d", i)
	}
	info, rows := frameAt(w.frames, i), w.rows // rows are only appended to
	raw := buf.sized(int(info.Size))
	var err error
	if info.Offset >= w.flushed {
		copy(raw, w.buf[info.Offset-w.flushed:])
	} else {
		_, err = w.file.ReadAt(raw, info.Offset)
	}
	w.mu.Unlock()
	if err != nil {
		return frame.Frame{}, err
	}
	return w.sealer.openRecord(raw, i, info, rows, buf)
}

// Sealed is a finished container in its spool file, synced and closed.
type Sealed struct {
	Directory *Directory // as OpenDirectory would return it, with keys
	Path      string     // of the spool file
	Size      int64
}

// Seal writes directory and footer, syncs and closes the spool file. After a failed Append it keeps the records that
// were written whole: the Directory tells which. On an error the spool file is removed; a container without a frame is
// ErrEmpty. The Writer is done, whatever Seal returns.
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
	f, dir, size, err := w.finish()
	if err != nil {
		return Sealed{}, err
	}
	// Not under the lock: readers of the open container need not wait for the disk.
	if err := f.Sync(); err != nil {
		return Sealed{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
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

// finish writes what follows the records, and returns the open file and the directory's bytes.
func (w *Writer) finish() (f vfs.File, dir []byte, size int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil, nil, 0, ErrClosed
	}
	if w.err != nil {
		if err := w.keepWhole(); err != nil {
			return nil, nil, 0, err
		}
	}
	if len(w.frames) == 0 {
		return nil, nil, 0, ErrEmpty
	}
	dir = w.encodeDirectory()
	ft := footer{id: w.header.id, dirOffset: w.flushed + int64(len(w.buf)), dirLen: uint32(len(dir)), size: w.size()}
	w.buf = append(w.buf, dir...)
	tail := ft.encode()
	_, _ = w.hash.Write(w.buf) // a hash never fails
	_, _ = w.hash.Write(tail[:footerHashed])
	copy(ft.hash[:], w.hash.Sum(nil))
	w.buf = append(w.buf, ft.encode()...)
	if _, err := w.file.WriteAt(w.buf, w.flushed); err != nil {
		w.err = err
		return nil, nil, 0, err
	}
	return w.file, dir, ft.size, nil
}

// keepWhole drops the records that the failed write was to bring, and what part of them it brought.
func (w *Writer) keepWhole() error {
	if w.flushed < headerSize {
		return fmt.Errorf("%w: %w", ErrBroken, w.err)
	}
	if err := w.file.Truncate(w.flushed); err != nil {
		return errors.Join(w.err, err)
	}
	n := w.frameCount()
	for n > 0 && frameAt(w.frames, n-1).Offset >= w.flushed {
		n--
	}
	w.frames = w.frames[:n*frameRowSize]
	rows := uint32(0)
	if n > 0 {
		last := frameAt(w.frames, n-1)
		rows = last.FirstSlot + last.Chunks
	}
	w.rows = w.rows[:rows*rowSize]
	w.buf, w.err = w.buf[:0], nil
	return nil
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
	if w.file == nil {
		return
	}
	// What fails here leaves a file in the spool, which is cleared when the store opens.
	_ = w.file.Close()
	_ = w.fs.Remove(w.path)
	w.release()
}

// release lets go of file and memory. The caller holds mu.
func (w *Writer) release() {
	w.file, w.buf, w.frames, w.rows = nil, nil, nil, nil
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
