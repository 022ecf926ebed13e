// Package inside joins the parts of a disk with the readers of the file systems that may lie in them.
package inside

import (
	"fmt"
	"io"

	"coffer/images/ext4"
	"coffer/images/fat"
	"coffer/images/ntfs"
	"coffer/images/volume"
	"coffer/images/xfs"
)

// Readable reports whether Open can read what lies in a part.
func Readable(k volume.Kind) bool {
	switch k {
	case volume.Ext, volume.XFS, volume.NTFS, volume.FAT:
		return true
	}
	return false
}

// Open opens the file system in a part of a disk. Errors wrap volume.ErrUnsupported or volume.ErrCorrupt, or are the disk's.
func Open(disk io.ReaderAt, p volume.Part) (volume.FS, error) {
	r := io.NewSectionReader(disk, p.Offset, p.Size)
	switch p.Kind {
	case volume.Ext:
		return opened(ext4.Open(r, p.Size))
	case volume.XFS:
		return opened(xfs.Open(r, p.Size))
	case volume.NTFS:
		return opened(ntfs.Open(r, p.Size))
	case volume.FAT:
		return opened(fat.Open(r, p.Size))
	}
	return nil, fmt.Errorf("%s is %w", p.Kind, volume.ErrUnsupported)
}

// opened keeps a nil of a concrete type from becoming an FS that is not nil.
func opened[T volume.FS](f T, err error) (volume.FS, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}
