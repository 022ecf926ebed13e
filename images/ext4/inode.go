package ext4

import (
	"encoding/binary"
	"fmt"
	"time"

	"coffer/images/volume"
)

// Flags of an inode.
const (
	flagCompressed = 0x4
	flagEncrypted  = 0x800
	flagExtents    = 0x80000
	flagInline     = 0x10000000
)

const inlineLen = 60 // of i_block

// inode is an inode as it lies on the disk.
type inode struct {
	fs   *FS
	attr volume.Attr
	flag uint32
	raw  []byte // all of it
}

// Attr implements volume.Node.
func (n *inode) Attr() volume.Attr { return n.attr }

func (n *inode) block() []byte { return n.raw[40 : 40+inlineLen] }

// readInode reads an inode that is in use.
func (f *FS) readInode(ino uint32) (*inode, error) {
	if ino == 0 || ino > f.inodes {
		return nil, corrupt("inode %d of %d", ino, f.inodes)
	}
	table, err := f.inodeTable((ino - 1) / f.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	at := int64((ino-1)%f.inodesPerGroup) * f.inodeSize
	n := &inode{fs: f, raw: make([]byte, f.inodeSize)}
	if err := f.readBlocks(n.raw, table+uint64(at/f.blockSize), at%f.blockSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	le := binary.LittleEndian
	n.flag = le.Uint32(n.raw[32:])
	n.attr = volume.Attr{
		Ino:   uint64(ino),
		Mode:  uint32(le.Uint16(n.raw)),
		Nlink: uint32(le.Uint16(n.raw[26:])),
		UID:   uint32(le.Uint16(n.raw[2:])) | uint32(le.Uint16(n.raw[120:]))<<16,
		GID:   uint32(le.Uint16(n.raw[24:])) | uint32(le.Uint16(n.raw[122:]))<<16,
		Size:  int64(uint64(le.Uint32(n.raw[4:])) | uint64(le.Uint32(n.raw[108:]))<<32),
		MTime: n.mtime(),
	}
	switch n.attr.Mode & volume.ModeType {
	case volume.ModeChar, volume.ModeBlock:
		n.attr.Rdev, n.attr.Size = rdev(le.Uint32(n.block()), le.Uint32(n.block()[4:])), 0
	}
	if n.attr.Size < 0 {
		return nil, corrupt("inode %d has %d bytes", ino, uint64(n.attr.Size))
	}
	return n, nil
}

// mtime is a signed count of seconds; two more bits, and nanoseconds, where inodes have room for them.
func (n *inode) mtime() time.Time {
	sec, nsec := int64(int32(binary.LittleEndian.Uint32(n.raw[16:]))), int64(0)
	if len(n.raw) > 140 && binary.LittleEndian.Uint16(n.raw[128:]) >= 12 {
		extra := binary.LittleEndian.Uint32(n.raw[136:])
		sec += int64(extra&3) << 32
		nsec = int64(extra >> 2)
	}
	return time.Unix(sec, nsec)
}

// rdev turns the two forms of a device's number into that of Linux' dev_t.
func rdev(old, now uint32) uint64 {
	major, minor := uint64(old>>8&0xff), uint64(old&0xff)
	if old == 0 {
		major, minor = uint64(now>>8&0xfff), uint64(now&0xff|now>>12&0xfff00)
	}
	return minor&0xff | major&0xfff<<8 | minor&^0xff<<12 | major&^0xfff<<32
}

// node opens an inode as what it is.
func (f *FS) node(ino uint32) (volume.Node, error) {
	n, err := f.readInode(ino)
	if err != nil {
		return nil, err
	}
	switch n.attr.Mode & volume.ModeType {
	case volume.ModeDir:
		return dir{n}, nil
	case volume.ModeRegular:
		return file{n}, nil
	case volume.ModeSymlink:
		return link{n}, nil
	case volume.ModeFifo, volume.ModeChar, volume.ModeBlock, volume.ModeSocket:
		return n, nil
	}
	return nil, corrupt("inode %d has mode %#o", ino, n.attr.Mode)
}

// readable reports what of a file's content is not read here.
func (n *inode) readable() error {
	switch {
	case n.flag&flagEncrypted != 0:
		return fmt.Errorf("inode %d: an encrypted file is %w", n.attr.Ino, volume.ErrUnsupported)
	case n.flag&flagCompressed != 0:
		return fmt.Errorf("inode %d: a compressed file is %w", n.attr.Ino, volume.ErrUnsupported)
	}
	return nil
}

// inline returns the content that lies in the inode: what fits i_block, and what an attribute "system.data" has. What the file
// has beyond it is a hole.
func (n *inode) inline() ([]byte, error) {
	more, err := n.inlineAttr()
	if err != nil {
		return nil, err
	}
	all := append(append(make([]byte, 0, inlineLen+len(more)), n.block()...), more...)
	return all[:min(n.attr.Size, int64(len(all)))], nil
}

// inlineAttr returns the value of the attribute "system.data" in the inode.
func (n *inode) inlineAttr() ([]byte, error) {
	const head, index = 0xea020000, 7 // EXT4_XATTR_INDEX_SYSTEM
	le := binary.LittleEndian
	if len(n.raw) < 132 {
		return nil, nil
	}
	start := 128 + int(le.Uint16(n.raw[128:]))
	if start+4 > len(n.raw) || le.Uint32(n.raw[start:]) != head {
		return nil, nil
	}
	entries := n.raw[start+4:]
	for e := entries; len(e) >= 16 && le.Uint32(e) != 0; {
		nameLen := int(e[0])
		next := (16 + nameLen + 3) &^ 3
		if next > len(e) {
			return nil, corrupt("inode %d: attributes", n.attr.Ino)
		}
		if e[1] == index && string(e[16:16+nameLen]) == "data" {
			off, size := int(le.Uint16(e[2:])), int64(le.Uint32(e[8:]))
			if int64(off)+size > int64(len(entries)) {
				return nil, corrupt("inode %d: inline data", n.attr.Ino)
			}
			return entries[off : off+int(size)], nil
		}
		e = e[next:]
	}
	return nil, nil
}
