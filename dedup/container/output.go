package container

import (
	"unsafe"

	"github.com/zeebo/blake3"

	"coffer/dedup/vfs"
)

const (
	// pieceSize is how many bytes are written at once.
	pieceSize = 1 << 20
	// writebackEvery is how many bytes go into the system's cache before it is asked to begin with their writeback, so that
	// the sync at the end waits for less.
	writebackEvery = 8 << 20
)

// output takes a container's bytes into its spool file, in pieces, and hashes them. Where the file system can, it writes
// past the system's cache: that saves a copy, and what was just backed up is not what is read next. Then a goroutine
// hashes and writes a piece while the next one is filled. For one goroutine.
type output struct {
	file   vfs.File
	direct vfs.DirectWriter // nil: through the system's cache
	hash   *blake3.Hasher   // of all pieces

	buf     []byte     // not yet a piece
	offset  int64      // of buf in the file
	spare   []byte     // memory for the next buf
	writing chan error // tells how the piece went that is being written; nil: there is none
	started int64      // bytes whose writeback was asked for
}

// newOutput returns an output into an empty file.
func newOutput(f vfs.File, pastCache bool) *output {
	o := &output{file: f, hash: blake3.New()}
	if d, ok := f.(vfs.DirectWriter); ok && pastCache && d.SetDirect(true) == nil {
		o.direct = d
	}
	return o
}

// size returns how many bytes the file has when all that was added is written.
func (o *output) size() int64 { return o.offset + int64(len(o.buf)) }

// reserve makes room for n bytes to be appended to buf, in memory that can be written from past the cache.
func (o *output) reserve(n int) {
	if cap(o.buf)-len(o.buf) >= n {
		return
	}
	o.buf = append(alignedBuffer(max(len(o.buf)+n, pieceSize+pieceSize/4)), o.buf...)
}

// alignedBuffer returns an empty slice with room for n bytes, whose address is a multiple of vfs.DirectAlign.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+vfs.DirectAlign)
	past := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % vfs.DirectAlign)
	skip := (vfs.DirectAlign - past) % vfs.DirectAlign
	return b[skip : skip : skip+n]
}

// writeFull writes what is in buf once it makes a piece. An error may be of the piece before.
func (o *output) writeFull() error {
	switch {
	case len(o.buf) < pieceSize:
		return nil
	case o.direct == nil:
		return o.writeCached()
	}
	return o.writeDirect()
}

// writeCached writes buf into the system's cache, which keeps nobody waiting as a rule.
func (o *output) writeCached() error {
	if _, err := o.file.WriteAt(o.buf, o.offset); err != nil {
		return err
	}
	_, _ = o.hash.Write(o.buf) // a hash never fails
	o.offset += int64(len(o.buf))
	o.buf = o.buf[:0]
	if ws, ok := o.file.(vfs.WriteStarter); ok && o.offset-o.started >= writebackEvery {
		_ = ws.StartWrite(o.started, o.offset-o.started) // a hint; the sync tells
		o.started = o.offset
	}
	return nil
}

// writeDirect has the whole blocks of buf written past the cache, and keeps the rest.
func (o *output) writeDirect() error {
	if err := o.settle(); err != nil {
		return err
	}
	n := len(o.buf) &^ (vfs.DirectAlign - 1)
	piece, off := o.buf[:n], o.offset
	next := o.spare
	if cap(next) < pieceSize {
		next = alignedBuffer(pieceSize + pieceSize/4)
	}
	o.buf, o.spare, o.offset = append(next[:0], o.buf[n:]...), piece[:0], off+int64(n)
	done := make(chan error, 1)
	o.writing = done
	go func() { done <- o.writePiece(piece, off) }()
	return nil
}

// writePiece hashes a piece and writes it. A file system that takes O_DIRECT and then refuses the write gets it cached.
func (o *output) writePiece(p []byte, off int64) error {
	_, _ = o.hash.Write(p) // a hash never fails
	_, err := o.file.WriteAt(p, off)
	if err == nil || !vfs.IsInvalid(err) {
		return err
	}
	if err := o.direct.SetDirect(false); err != nil {
		return err
	}
	_, err = o.file.WriteAt(p, off)
	return err
}

// settle waits for the piece that is being written.
func (o *output) settle() error {
	if o.writing == nil {
		return nil
	}
	err := <-o.writing
	o.writing = nil
	return err
}

// sum ends the hashing with what is in buf and with p.
func (o *output) sum(p []byte) (sum [32]byte, err error) {
	if err := o.settle(); err != nil {
		return sum, err
	}
	_, _ = o.hash.Write(o.buf) // a hash never fails
	_, _ = o.hash.Write(p)
	copy(sum[:], o.hash.Sum(nil))
	return sum, nil
}

// finish writes the rest, of any length, through the cache: it is the directory, which is read soon. It does not sync.
func (o *output) finish() error {
	if err := o.settle(); err != nil {
		return err
	}
	if o.direct != nil {
		if err := o.direct.SetDirect(false); err != nil {
			return err
		}
	}
	_, err := o.file.WriteAt(o.buf, o.offset)
	return err
}
