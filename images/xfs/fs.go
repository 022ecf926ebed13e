package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"coffer/images/volume"
)

// Incompatible features of version 5. Others than these are refused.
const (
	incompatFtype = 0x1

	// FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT.
	incompatKnown = incompatFtype | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80
)

// Features of version 4.
const (
	versionDirV2  = 0x2000
	features2Type = 0x200
)

// FS is an open file system.
type FS struct {
	r    io.ReaderAt
	size int64 // of the device

	v5        bool
	ftype     bool
	blockSize int64
	inodeSize int64
	dirSize   int64 // of a directory's block
	root      uint64
	agBlocks  uint64
	agCount   uint64
	agLog     uint // bits of a block's number inside its group
	inopLog   uint // bits of an inode's number inside its block
}

var _ volume.FS = (*FS)(nil)

var be = binary.BigEndian

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{volume.ErrCorrupt}, args...)...)
}

// Open reads the superblock. Errors wrap volume.ErrCorrupt or volume.ErrUnsupported, or are the reader's.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if size < int64(len(b)) {
		return nil, corrupt("%d bytes are too few", size)
	}
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	f := &FS{r: r, size: size}
	return f, f.superblock(b)
}

// superblock takes over what the superblock says, and checks that it can be.
func (f *FS) superblock(b []byte) error {
	version, features2, incompat := be.Uint16(b[100:]), be.Uint32(b[200:]), be.Uint32(b[216:])
	if string(b[:4]) != "XFSB" {
		return corrupt("no superblock of XFS")
	}
	switch version & 0xf {
	case 5:
		f.v5, f.ftype = true, incompat&incompatFtype != 0
		if incompat&^incompatKnown != 0 {
			return fmt.Errorf("features %#x of XFS are %w", incompat&^incompatKnown, volume.ErrUnsupported)
		}
	case 4:
		f.ftype = features2&features2Type != 0
		if version&versionDirV2 == 0 {
			return fmt.Errorf("directories of version 1 are %w", volume.ErrUnsupported)
		}
	default:
		return fmt.Errorf("version %d of XFS is %w", version&0xf, volume.ErrUnsupported)
	}
	f.blockSize, f.inodeSize = int64(be.Uint32(b[4:])), int64(be.Uint16(b[104:]))
	f.agBlocks, f.agCount, f.root = uint64(be.Uint32(b[84:])), uint64(be.Uint32(b[88:])), be.Uint64(b[56:])
	f.inopLog, f.agLog = uint(b[123]), uint(b[124])
	switch {
	case f.blockSize < 512 || f.blockSize > 64<<10 || f.blockSize&(f.blockSize-1) != 0:
		return corrupt("blocks of %d bytes", f.blockSize)
	case f.inodeSize < 256 || f.inodeSize > 2048 || f.inodeSize&(f.inodeSize-1) != 0 || f.inodeSize<<f.inopLog != f.blockSize:
		return corrupt("2^%d inodes of %d bytes in a block", f.inopLog, f.inodeSize)
	case b[192] > 7 || f.blockSize<<b[192] > 64<<10:
		return corrupt("directory blocks of 2^%d blocks", b[192])
	case f.agLog > 31 || f.agBlocks == 0 || f.agBlocks > 1<<f.agLog || f.agCount == 0:
		return corrupt("%d groups of %d blocks", f.agCount, f.agBlocks)
	}
	f.dirSize = f.blockSize << b[192]
	return nil
}

// Root implements volume.FS.
func (f *FS) Root() (volume.Dir, error) {
	n, err := f.node(f.root)
	if err != nil {
		return nil, err
	}
	d, ok := n.(volume.Dir)
	if !ok {
		return nil, corrupt("the root is no directory")
	}
	return d, nil
}

// place returns where a block lies, by its number, of which the upper bits are the group.
func (f *FS) place(block uint64) (int64, error) {
	group, in := block>>f.agLog, block&(1<<f.agLog-1)
	if group >= f.agCount || in >= f.agBlocks {
		return 0, corrupt("block %#x", block)
	}
	return int64(group*f.agBlocks+in) * f.blockSize, nil
}

// read fills p from a block on; p may reach into blocks that follow it.
func (f *FS) read(p []byte, block uint64, skip int64) error {
	at, err := f.place(block)
	if err != nil {
		return err
	}
	if at += skip; at > f.size-int64(len(p)) {
		return corrupt("block %#x lies behind the end of the partition", block)
	}
	if n, err := f.r.ReadAt(p, at); n < len(p) {
		return fmt.Errorf("read block %#x: %w", block, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}
