package libvirt

import (
	"context"

	"coffer/nbd"
)

// Mapped is a disk that tells what is allocated and what has changed; *nbd.Client is one.
type Mapped interface {
	Size() int64
	BlockStatus(ctx context.Context, metaContext string, off, n int64, yield func(n int64, flags uint32) bool) error
}

var _ Mapped = (*nbd.Client)(nil)

// window is how much of a disk is asked about at once: it bounds the memory for its extents.
const window = 1 << 30

const dirty = 1 // flag of DirtyContext

// extent is a part of a window.
type extent struct {
	off, n int64
	flags  uint32
}

// Changed yields what a backup reads of a disk, in order: all that is allocated, or, where changes are told, what is dirty.
// zero says that the range reads as zeroes. What lies between was not changed, or, without changes, is zero. It stops where
// yield returns false.
func Changed(ctx context.Context, disk Mapped, changes bool, yield func(off, n int64, zero bool) bool) error {
	for off := int64(0); off < disk.Size(); off += window {
		n := min(window, disk.Size()-off)
		parts := []extent{{off, n, dirty}}
		if changes {
			var err error
			if parts, err = extents(ctx, disk, DirtyContext, off, n); err != nil {
				return err
			}
		}
		more, err := changedIn(ctx, disk, parts, changes, yield)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// changedIn goes through the dirty parts of a window.
func changedIn(ctx context.Context, disk Mapped, parts []extent, changes bool, yield func(off, n int64, zero bool) bool) (bool, error) {
	for _, p := range parts {
		if p.flags&dirty == 0 {
			continue
		}
		allocation, err := extents(ctx, disk, nbd.ContextAllocation, p.off, p.n)
		if err != nil {
			return false, err
		}
		for _, a := range allocation {
			zero := nbd.ExtentFlags(a.flags)&nbd.Zero != 0
			if zero && !changes {
				continue
			}
			if !yield(a.off, a.n, zero) {
				return false, nil
			}
		}
	}
	return true, nil
}

// extents collects the extents of a range; neighbours of equal flags are one.
func extents(ctx context.Context, disk Mapped, metaContext string, off, n int64) ([]extent, error) {
	var out []extent
	err := disk.BlockStatus(ctx, metaContext, off, n, func(n int64, flags uint32) bool {
		if last := len(out) - 1; last >= 0 && out[last].flags == flags {
			out[last].n += n
		} else {
			out = append(out, extent{off, n, flags})
		}
		off += n
		return true
	})
	return out, err
}
