//go:build linux

package treecmp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// block is the granularity of hole maps: what lies in one block of 4 KiB is either data or a hole.
	block = 4096
	// blockSlack is how far allocated space may be apart beside the 5 %: an attribute block and an extent block.
	blockSlack = 2 * block
	window     = 1 << 20
)

// extent is a range of data; what lies between extents is hole.
type extent struct{ start, end int64 }

var windows = sync.Pool{New: func() any { b := make([]byte, 2*window); return &b }}

// compareFile compares attributes, flags, size, space, hole maps and bytes of two regular files.
func (c *comparison) compareFile(rel, name string, a, b *dir, sa, sb *unix.Stat_t) {
	fa, err := openat(a.fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_NONBLOCK)
	if err != nil {
		c.report(rel, Unreadable, "first tree: open: %v", err)
		return
	}
	defer unix.Close(fa)
	fb, err := openat(b.fd(), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_NONBLOCK)
	if err != nil {
		c.report(rel, Unreadable, "second tree: open: %v", err)
		return
	}
	defer unix.Close(fb)
	hasXattrs := c.compareDescriptors(rel, fa, fb)
	c.compareSpace(rel, sa, sb)
	if sa.Size != sb.Size {
		c.report(rel, Size, "%d, %d", sa.Size, sb.Size)
		return
	}
	if sa.Size == 0 || c.o.Ignore&(Content|Holes) == Content|Holes {
		return
	}
	ea, eb := whole(sa.Size), whole(sa.Size)
	if hasXattrs || mayHaveHole(sa) || mayHaveHole(sb) {
		ea, eb = dataMap(fa, sa.Size), dataMap(fb, sb.Size)
		c.compareMaps(rel, ea, eb)
	}
	if c.o.Ignore&Content == 0 {
		c.compareContent(rel, fa, fb, union(ea, eb))
	}
}

// mayHaveHole is false where every block of a file without attribute block is allocated: then no map need be asked for.
func mayHaveHole(st *unix.Stat_t) bool { return st.Blocks*512 < st.Size }

func (c *comparison) compareSpace(rel string, sa, sb *unix.Stat_t) {
	a, b := sa.Blocks*512, sb.Blocks*512
	if low, high := min(a, b), max(a, b); high-low > high/20+blockSlack {
		c.report(rel, Blocks, "%d bytes, %d bytes", a, b)
	}
}

func (c *comparison) compareMaps(rel string, a, b []extent) {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			c.report(rel, Holes, "end of data, data at %d–%d", b[i].start, b[i].end)
		case i >= len(b):
			c.report(rel, Holes, "data at %d–%d, end of data", a[i].start, a[i].end)
		case a[i] != b[i]:
			c.report(rel, Holes, "data at %d–%d, at %d–%d", a[i].start, a[i].end, b[i].start, b[i].end)
		default:
			continue
		}
		return // one report a file: all that follows is shifted
	}
}

func whole(size int64) []extent { return []extent{{0, size}} }

// dataMap asks for the extents of data and rounds them out to blocks; a file system without SEEK_DATA has data only.
func dataMap(fd int, size int64) []extent {
	var m []extent
	for off := int64(0); off < size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return m
		}
		if err != nil {
			return whole(size)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return whole(size)
		}
		m = appendExtent(m, extent{start &^ (block - 1), min((end+block-1)&^(block-1), size)})
		off = end
	}
	return m
}

// appendExtent joins an extent with the one before where they touch.
func appendExtent(m []extent, e extent) []extent {
	if n := len(m); n > 0 && e.start <= m[n-1].end {
		m[n-1].end = max(m[n-1].end, e.end)
		return m
	}
	return append(m, e)
}

// union returns what is data in either map.
func union(a, b []extent) []extent {
	var m []extent
	for len(a) > 0 || len(b) > 0 {
		if len(b) == 0 || len(a) > 0 && a[0].start <= b[0].start {
			m = appendExtent(m, a[0])
			a = a[1:]
		} else {
			m = appendExtent(m, b[0])
			b = b[1:]
		}
	}
	return m
}

// compareContent reads the extents of both files and reports the first byte that differs.
func (c *comparison) compareContent(rel string, fa, fb int, data []extent) {
	pooled := windows.Get().(*[]byte)
	defer windows.Put(pooled)
	ba, bb := (*pooled)[:window], (*pooled)[window:]
	for _, e := range data {
		for off := e.start; off < e.end && c.ctx.Err() == nil; off += window {
			n := min(window, e.end-off)
			if err := errors.Join(readFull(fa, ba[:n], off), readFull(fb, bb[:n], off)); err != nil {
				c.report(rel, Unreadable, "read at %d: %v", off, err)
				return
			}
			c.bytes.Add(n)
			if !bytes.Equal(ba[:n], bb[:n]) {
				i := firstDifference(ba[:n], bb[:n])
				c.report(rel, Content, "byte %d: %#02x, %#02x", off+int64(i), ba[i], bb[i])
				return
			}
		}
	}
}

func readFull(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("at %d: %w", off, io.ErrUnexpectedEOF)
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
