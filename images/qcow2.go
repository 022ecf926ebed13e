package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// Limits of what a header may claim; those of QEMU (block/qcow2.h).
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxL1Bytes     = 32 << 20
	maxBackingName = 1023
	maxDiskSize    = 1 << 60
	headLen        = 112 // of the fields below, in version 3
)

// Incompatible features, by their bits.
const (
	featureCorrupt  = 1 << 1
	featureData     = 1 << 2
	featureExtended = 1 << 4
)

// extBackingFormat is the header extension with the backing file's format.
const extBackingFormat = 0xe2792aca

// head is what is looked at of a header before the library sees it.
type head struct {
	clusterSize int64
	size        int64
	backing     string
	backingFmt  Format
}

// layer is one qcow2 image. What it has not allocated is its backing disk's, or zero.
type layer struct {
	img     *qcow2.Qcow2
	head    head
	backing Disk // nil = none
	owned   io.Closer
}

var _ Disk = (*layer)(nil)

func openQcow2(src Source, o Options, depth int) (_ Disk, err error) {
	h, err := readHead(src)
	if err != nil {
		return nil, err
	}
	if h.size == 0 {
		return &layer{head: h}, nil // QEMU gives it no table, which the library refuses
	}
	registerZstd()
	img, err := qcow2.Open(&body{src, h.clusterSize}, nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	l := &layer{img: img, head: h}
	if h.backing == "" {
		return l, nil
	}
	if o.Backing == nil {
		return nil, fmt.Errorf("an image with a backing file (%q) is %w here", h.backing, ErrUnsupported)
	}
	below, format, err := o.Backing(h.backing, h.backingFmt)
	if err != nil {
		return nil, fmt.Errorf("open backing file %q: %w", h.backing, err)
	}
	l.owned, _ = below.(io.Closer)
	l.backing, err = open(below, Options{Format: format, Backing: o.Backing}, depth+1)
	if err != nil {
		if l.owned != nil {
			_ = l.owned.Close()
		}
		return nil, fmt.Errorf("backing file %q: %w", h.backing, err)
	}
	return l, nil
}

// readHead checks what a header claims.
func readHead(src Source) (head, error) {
	var b [headLen]byte
	if n, err := src.ReadAt(b[:], 0); n < 72 {
		return head{}, fmt.Errorf("read qcow2 header: %w", errors.Join(err, ErrMalformed))
	}
	be := binary.BigEndian
	version, bits := be.Uint32(b[4:]), be.Uint32(b[20:])
	h := head{size: int64(be.Uint64(b[24:]))}
	var features uint64
	if version >= 3 {
		features = be.Uint64(b[72:])
	}
	l1 := int64(be.Uint32(b[36:]))
	switch {
	case string(b[:4]) != "QFI\xfb":
		return head{}, fmt.Errorf("%w: no qcow2 header", ErrMalformed)
	case version != 2 && version != 3:
		return head{}, fmt.Errorf("qcow2 version %d is %w", version, ErrUnsupported)
	case be.Uint32(b[32:]) != 0:
		return head{}, fmt.Errorf("an encrypted qcow2 image is %w", ErrUnsupported)
	case features&featureCorrupt != 0:
		return head{}, fmt.Errorf("%w: QEMU has marked it as corrupt; look at it with qemu-img check", ErrMalformed)
	case features&featureData != 0:
		return head{}, fmt.Errorf("a qcow2 image with an external data file is %w", ErrUnsupported)
	case features&featureExtended != 0:
		return head{}, fmt.Errorf("a qcow2 image with extended L2 entries is %w", ErrUnsupported)
	case bits < minClusterBits || bits > maxClusterBits:
		return head{}, fmt.Errorf("%w: clusters of 2^%d bytes", ErrMalformed, bits)
	case h.size < 0 || h.size > maxDiskSize:
		return head{}, fmt.Errorf("%w: a disk of %d bytes", ErrMalformed, uint64(h.size))
	case l1*8 > maxL1Bytes:
		return head{}, fmt.Errorf("%w: an L1 table of %d entries", ErrMalformed, l1)
	}
	h.clusterSize = 1 << bits
	perL1 := h.clusterSize / 8 * h.clusterSize
	if need := (h.size + perL1 - 1) / perL1; l1 < need {
		return head{}, fmt.Errorf("%w: an L1 table of %d entries, the disk needs %d", ErrMalformed, l1, need)
	}
	return h, h.readBacking(src, version, b[:])
}

// readBacking reads the backing file's name and format.
func (h *head) readBacking(src Source, version uint32, b []byte) error {
	at, n := int64(binary.BigEndian.Uint64(b[8:])), binary.BigEndian.Uint32(b[16:])
	if at == 0 {
		return nil
	}
	if n == 0 || n > maxBackingName || at < 0 || at > h.clusterSize {
		return fmt.Errorf("%w: a backing file's name of %d bytes at %d", ErrMalformed, n, uint64(at))
	}
	name := make([]byte, n)
	if err := readFull(src, name, at); err != nil {
		return fmt.Errorf("read the name of the backing file: %w", err)
	}
	h.backing = string(name)
	off := int64(72)
	if version >= 3 {
		off = int64(binary.BigEndian.Uint32(b[100:]))
	}
	var ext [8]byte
	for off >= 72 && off+8 <= at {
		if err := readFull(src, ext[:], off); err != nil {
			return fmt.Errorf("read header extensions: %w", err)
		}
		kind, n := binary.BigEndian.Uint32(ext[:]), int64(binary.BigEndian.Uint32(ext[4:]))
		if kind == 0 || off+8+n > at {
			break
		}
		if kind == extBackingFormat && n <= 64 {
			f := make([]byte, n)
			if err := readFull(src, f, off+8); err != nil {
				return fmt.Errorf("read the format of the backing file: %w", err)
			}
			h.backingFmt = Format(f)
		}
		off += 8 + (n+7)&^7
	}
	return nil
}

// registerZstd teaches the library, which keeps its decompressors in a map of its own, to read Zstandard.
var registerZstd = sync.OnceFunc(func() {
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	})
})

// body is the image as the library is shown it: without its backing file, which the library would open by its name, and with
// zeros up to the end of the last cluster, where QEMU leaves the file short.
type body struct {
	src     Source
	cluster int64
}

func (b *body) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, ErrMalformed
	}
	end := (b.src.Size() + b.cluster - 1) &^ (b.cluster - 1)
	if off >= end {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > end-off {
		p, eof = p[:end-off], io.EOF
	}
	have := min(max(b.src.Size()-off, 0), int64(len(p)))
	if err := readFull(b.src, p[:have], off); err != nil {
		return 0, err
	}
	clear(p[have:])
	for i := max(8, off); i < min(20, off+int64(len(p))); i++ {
		p[i-off] = 0 // backing_file_offset and backing_file_size
	}
	return len(p), eof
}

func (l *layer) Format() Format { return Qcow2 }
func (l *layer) Size() int64    { return l.head.size }

// Close implements Disk.
func (l *layer) Close() error {
	if l.backing == nil {
		return nil
	}
	err := l.backing.Close()
	if l.owned != nil {
		err = errors.Join(err, l.owned.Close())
	}
	return err
}

// ReadAt implements io.ReaderAt.
func (l *layer) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, ErrMalformed)
	}
	if off >= l.head.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > l.head.size-off {
		p, eof = p[:l.head.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		n, err := l.readExtent(p[done:], off+int64(done))
		if done += n; err != nil {
			return done, err
		}
	}
	return len(p), eof
}

// extent returns what the library says of off, up to n bytes from there on. It is asked from the start of a cluster: from
// elsewhere on it returns lengths that are too long.
func (l *layer) extent(off, n int64) (image.Extent, error) {
	skip := off & (l.head.clusterSize - 1)
	x, err := l.img.Extent(off-skip, n+skip)
	if err != nil {
		return x, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if x.Start, x.Length = off, x.Length-skip; x.Length <= 0 || x.Length > n {
		return x, fmt.Errorf("%w: an extent of %d bytes at %d", ErrMalformed, x.Length, off)
	}
	return x, nil
}

// readExtent reads what one extent of this layer has of p.
func (l *layer) readExtent(p []byte, off int64) (int, error) {
	x, err := l.extent(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	p = p[:x.Length]
	switch {
	case !x.Allocated:
		return len(p), l.readBelow(p, off)
	case x.Zero:
		clear(p)
		return len(p), nil
	}
	return len(p), l.readAllocated(p, off)
}

// readBelow reads what this layer leaves to its backing disk, which may be shorter.
func (l *layer) readBelow(p []byte, off int64) error {
	n := int64(0)
	if l.backing != nil {
		n = min(max(l.backing.Size()-off, 0), int64(len(p)))
		if err := readFull(l.backing, p[:n], off); err != nil {
			return err
		}
	}
	clear(p[n:])
	return nil
}

// readAllocated reads clusters of this layer. The library returns io.EOF also at the end of a compressed cluster.
func (l *layer) readAllocated(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := l.img.ReadAt(p, off)
		if n <= 0 || n > len(p) {
			return fmt.Errorf("%w: read at %d: %w", ErrMalformed, off, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("%w: read at %d: %w", ErrMalformed, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Extents implements Mapper.
func (l *layer) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	_, err := l.extents(off, n, yield)
	return err
}

func (l *layer) extents(off, n int64, yield func(n int64, hole bool) bool) (more bool, err error) {
	if off < 0 || n < 0 || off > l.head.size-n {
		return false, fmt.Errorf("extents of %d bytes at %d: the disk has %d", n, off, l.head.size)
	}
	for more = true; n > 0 && more; {
		x, err := l.extent(off, n)
		if err != nil {
			return false, err
		}
		if x.Allocated {
			more = yield(x.Length, x.Zero)
		} else if more, err = l.extentsBelow(off, x.Length, yield); err != nil {
			return false, err
		}
		off, n = off+x.Length, n-x.Length
	}
	return more, nil
}

// extentsBelow yields what this layer leaves to its backing disk.
func (l *layer) extentsBelow(off, n int64, yield func(n int64, hole bool) bool) (more bool, err error) {
	below := int64(0)
	if l.backing != nil {
		below = min(max(l.backing.Size()-off, 0), n)
	}
	more = true
	if below > 0 {
		err = l.backing.Extents(off, below, func(n int64, hole bool) bool {
			more = yield(n, hole)
			return more
		})
	}
	if err == nil && more && n > below {
		more = yield(n-below, true)
	}
	return more, err
}

// readFull fills p.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
