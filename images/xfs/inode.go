package xfs

import (
	"fmt"
	"time"

	"coffer/images/volume"
)

// Forms in which an inode keeps its content.
const (
	formDev     = 0
	formLocal   = 1
	formExtents = 2
	formTree    = 3
)

const (
	flagRealtime  = 0x1 // of di_flags
	flag2BigTime  = 0x8 // of di_flags2
	flag2NrExt64  = 0x10
	bigTimeOffset = 1 << 31 // seconds before 1970 at which big times begin
)

// inode is an inode as it lies on the disk.
type inode struct {
	fs      *FS
	attr    volume.Attr
	form    byte
	extents uint64 // number of them
	fork    []byte // where the content, or the way to it, lies
	remote  bool   // on a real-time device
}

// Attr implements volume.Node.
func (n *inode) Attr() volume.Attr { return n.attr }

func (f *FS) readInode(ino uint64) (*inode, error) {
	raw := make([]byte, f.inodeSize)
	if err := f.read(raw, ino>>f.inopLog, int64(ino&(1<<f.inopLog-1))*f.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	version := raw[4]
	start := 100
	if version == 3 {
		start = 176
	}
	if string(raw[:2]) != "IN" || version < 1 || version > 3 || (version == 3) != f.v5 {
		return nil, corrupt("inode %d: no inode there", ino)
	}
	n := &inode{fs: f, form: raw[5], extents: uint64(be.Uint32(raw[76:])), fork: raw[start:]}
	n.attr = volume.Attr{
		Ino: ino, Mode: uint32(be.Uint16(raw[2:])), Nlink: be.Uint32(raw[16:]),
		UID: be.Uint32(raw[8:]), GID: be.Uint32(raw[12:]), Size: int64(be.Uint64(raw[56:])),
		MTime: time.Unix(int64(int32(be.Uint32(raw[40:]))), int64(be.Uint32(raw[44:]))),
	}
	if version == 1 {
		n.attr.Nlink = uint32(be.Uint16(raw[6:]))
	}
	if version == 3 {
		flags2 := be.Uint64(raw[120:])
		if flags2&flag2NrExt64 != 0 {
			n.extents = be.Uint64(raw[24:])
		}
		if flags2&flag2BigTime != 0 {
			ns := be.Uint64(raw[40:])
			n.attr.MTime = time.Unix(int64(ns/1e9)-bigTimeOffset, int64(ns%1e9))
		}
	}
	if forkOff := int(raw[82]) * 8; forkOff > 0 {
		if forkOff > len(n.fork) {
			return nil, corrupt("inode %d: its attributes lie outside", ino)
		}
		n.fork = n.fork[:forkOff]
	}
	n.remote = be.Uint16(raw[90:])&flagRealtime != 0
	return n, n.check()
}

// check holds what an inode says against itself.
func (n *inode) check() error {
	switch {
	case n.attr.Size < 0:
		return corrupt("inode %d has %d bytes", n.attr.Ino, uint64(n.attr.Size))
	case n.form == formLocal && n.attr.Size > int64(len(n.fork)):
		return corrupt("inode %d: %d bytes in %d", n.attr.Ino, n.attr.Size, len(n.fork))
	case n.form == formExtents && n.extents > uint64(len(n.fork)/extentLen):
		return corrupt("inode %d: %d extents in %d bytes", n.attr.Ino, n.extents, len(n.fork))
	}
	return nil
}

// node opens an inode as what it is.
func (f *FS) node(ino uint64) (volume.Node, error) {
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
	case volume.ModeChar, volume.ModeBlock:
		if n.form == formDev {
			n.attr.Rdev = rdev(be.Uint32(n.fork))
		}
		return n, nil
	case volume.ModeFifo, volume.ModeSocket:
		return n, nil
	}
	return nil, corrupt("inode %d has mode %#o", ino, n.attr.Mode)
}

// rdev turns the number of a device into that of Linux' dev_t.
func rdev(d uint32) uint64 {
	major, minor := uint64(d>>18), uint64(d&0x3ffff)
	return minor&0xff | major&0xfff<<8 | minor&^0xff<<12 | major&^0xfff<<32
}
