package ext4

import (
	"encoding/binary"
	"fmt"
	"io"

	"coffer/images/volume"
)

// Incompatible features. Others than these are refused.
const (
	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64Bit       = 0x80
	incompatInline      = 0x8000

	// Nothing that is read here depends on these: RECOVER, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR, ENCRYPT, CASEFOLD.
	incompatHarmless = 0x4 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x10000 | 0x20000

	incompatKnown = incompatFiletype | incompatMetaBG | incompatExtents | incompat64Bit | incompatInline | incompatHarmless
)

const (
	superblockAt = 1024
	magic        = 0xef53
	rootInode    = 2
)

// FS is an open file system.
type FS struct {
	r io.ReaderAt

	size           int64 // of the device
	blockSize      int64
	blocks         uint64
	firstBlock     uint64 // of group 0
	inodes         uint32
	inodesPerGroup uint32
	blocksPerGroup uint64
	inodeSize      int64
	descSize       int64
	metaBG         bool
	firstMetaBG    uint64
	filetype       bool
}

var _ volume.FS = (*FS)(nil)

// Open reads the superblock. Errors wrap volume.ErrCorrupt or volume.ErrUnsupported, or are the reader's.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 1024)
	if size < superblockAt+int64(len(b)) {
		return nil, corrupt("%d bytes are too few", size)
	}
	if _, err := r.ReadAt(b, superblockAt); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	f := &FS{r: r, size: size}
	if err := f.superblock(b); err != nil {
		return nil, err
	}
	return f, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{volume.ErrCorrupt}, args...)...)
}

// superblock takes over what the superblock says, and checks that it can be.
func (f *FS) superblock(b []byte) error {
	le := binary.LittleEndian
	if le.Uint16(b[56:]) != magic {
		return corrupt("no superblock of ext4")
	}
	features, dynamic := uint32(0), le.Uint32(b[76:]) >= 1
	f.inodeSize, f.descSize = 128, 32
	if dynamic {
		features, f.inodeSize = le.Uint32(b[96:]), int64(le.Uint16(b[88:]))
	}
	switch {
	case features&incompatCompression != 0:
		return fmt.Errorf("compression of ext2 is %w", volume.ErrUnsupported)
	case features&incompatJournalDev != 0:
		return fmt.Errorf("an external journal is %w", volume.ErrUnsupported)
	case features&^incompatKnown != 0:
		return fmt.Errorf("features %#x of ext4 are %w", features&^incompatKnown, volume.ErrUnsupported)
	case le.Uint32(b[24:]) > 6:
		return corrupt("blocks of 2^%d KiB", le.Uint32(b[24:]))
	}
	f.blockSize = 1024 << le.Uint32(b[24:])
	f.inodes, f.inodesPerGroup = le.Uint32(b[0:]), le.Uint32(b[40:])
	f.blocks, f.blocksPerGroup, f.firstBlock = uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[32:])), uint64(le.Uint32(b[20:]))
	f.metaBG, f.firstMetaBG = features&incompatMetaBG != 0, uint64(le.Uint32(b[260:]))
	f.filetype = features&incompatFiletype != 0
	if features&incompat64Bit != 0 {
		f.descSize = int64(le.Uint16(b[254:]))
		f.blocks |= uint64(le.Uint32(b[336:])) << 32
	}
	switch {
	case f.inodeSize < 128 || f.inodeSize > f.blockSize || f.inodeSize&(f.inodeSize-1) != 0:
		return corrupt("inodes of %d bytes", f.inodeSize)
	case f.descSize < 32 || f.descSize > f.blockSize || f.descSize&(f.descSize-1) != 0:
		return corrupt("group descriptors of %d bytes", f.descSize)
	case f.inodesPerGroup == 0 || f.blocksPerGroup == 0 || int64(f.blocksPerGroup) > f.blockSize*8*64:
		return corrupt("groups of %d inodes and %d blocks", f.inodesPerGroup, f.blocksPerGroup)
	case f.blocks > 1<<48 || f.firstBlock >= f.blocks:
		return corrupt("%d blocks", f.blocks)
	}
	return nil
}

// Root implements volume.FS.
func (f *FS) Root() (volume.Dir, error) {
	n, err := f.node(rootInode)
	if err != nil {
		return nil, err
	}
	d, ok := n.(volume.Dir)
	if !ok {
		return nil, corrupt("the root is no directory")
	}
	return d, nil
}

// readBlocks fills p from a block on.
func (f *FS) readBlocks(p []byte, block uint64, off int64) error {
	if block >= f.blocks || block == 0 && f.blockSize > superblockAt {
		return corrupt("block %d of %d", block, f.blocks)
	}
	at := int64(block)*f.blockSize + off
	if at > f.size-int64(len(p)) {
		return corrupt("block %d lies behind the end of the partition", block)
	}
	if n, err := f.r.ReadAt(p, at); n < len(p) {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	return nil
}

// inodeTable returns the block with the inode table of a group.
func (f *FS) inodeTable(group uint32) (uint64, error) {
	perBlock := uint64(f.blockSize / f.descSize)
	at := uint64(group) / perBlock                     // which block of descriptors
	block := superblockAt/uint64(f.blockSize) + 1 + at // behind the superblock, wherever groups begin
	if f.metaBG && at >= f.firstMetaBG {
		first := at * perBlock // the first group of those that it describes
		block = f.firstBlock + first*f.blocksPerGroup
		if f.hasSuper(first) {
			block++
		}
	}
	d := make([]byte, f.descSize)
	if err := f.readBlocks(d, block, int64(uint64(group)%perBlock)*f.descSize); err != nil {
		return 0, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	table := uint64(binary.LittleEndian.Uint32(d[8:]))
	if f.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[40:])) << 32
	}
	return table, nil
}

// hasSuper reports whether a group begins with a copy of the superblock. Without the feature SPARSE_SUPER each does; META_BG
// without it was never made.
func (f *FS) hasSuper(group uint64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}
