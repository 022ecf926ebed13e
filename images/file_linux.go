package images

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Extents implements Mapper by SEEK_DATA and SEEK_HOLE. A file system that knows no holes shows data alone.
func (f *File) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	end := off + n
	for off < end {
		data, err := unix.Seek(int(f.f.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // nothing but a hole to the end
			data = end
		case err != nil: // a block device, or a file system without
			yield(end-off, false)
			return nil
		}
		if data = min(data, end); data > off && !yield(data-off, true) {
			return nil
		}
		if data == end {
			return nil
		}
		hole, err := unix.Seek(int(f.f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			hole = end
		}
		hole = min(hole, end)
		if hole > data && !yield(hole-data, false) {
			return nil
		}
		off = hole
	}
	return nil
}
