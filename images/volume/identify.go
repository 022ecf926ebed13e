package volume

import (
	"bytes"
	"encoding/binary"
	"io"
)

// Kind is what lies in a partition, by the name that mount and blkid use.
type Kind string

// What is told apart. Only Ext, XFS, NTFS and FAT have readers here.
const (
	Unknown   Kind = ""
	Ext       Kind = "ext4" // ext2 and ext3, too
	XFS       Kind = "xfs"
	NTFS      Kind = "ntfs"
	FAT       Kind = "vfat" // FAT12, FAT16 and FAT32
	ExFAT     Kind = "exfat"
	Btrfs     Kind = "btrfs"
	ZFS       Kind = "zfs_member"
	LVM       Kind = "LVM2_member"
	LUKS      Kind = "crypto_LUKS"
	BitLocker Kind = "BitLocker"
	Swap      Kind = "swap"
	RAID      Kind = "linux_raid_member"
	ReFS      Kind = "ReFS"
	ISO9660   Kind = "iso9660"
	Squashfs  Kind = "squashfs"
	Empty     Kind = "empty" // zeros only, as far as was looked
)

// signatures are where the kinds show; the first that matches wins. FAT comes last: its mark is that of any boot sector.
var signatures = []struct {
	kind Kind
	at   int
	mark string
}{
	{LUKS, 0, "LUKS\xba\xbe"}, {XFS, 0, "XFSB"}, {Squashfs, 0, "hsqs"}, {BitLocker, 3, "-FVE-FS-"},
	{NTFS, 3, "NTFS    "}, {ExFAT, 3, "EXFAT   "}, {ReFS, 3, "ReFS\x00\x00\x00\x00"},
	{LVM, 512, "LABELONE"}, {LVM, 0, "LABELONE"}, {LVM, 1024, "LABELONE"}, {LVM, 1536, "LABELONE"},
	{Ext, 1080, "\x53\xef"}, {Swap, 4086, "SWAPSPACE2"}, {RAID, 4096, "\xfc\x4e\x2b\xa9"}, {ISO9660, 32769, "CD001"},
	{Btrfs, 65600, "_BHRfS_M"},
}

// lookAt is how much of a partition Identify reads.
const lookAt = 66 << 10

// Identify tells what lies in a partition. The error is the reader's.
func Identify(r io.ReaderAt, size int64) (Kind, error) {
	b := make([]byte, min(size, lookAt))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(len(b))), b); err != nil && len(b) > 0 {
		return Unknown, err
	}
	for _, s := range signatures {
		if len(b) >= s.at+len(s.mark) && string(b[s.at:s.at+len(s.mark)]) == s.mark {
			return s.kind, nil
		}
	}
	switch {
	case looksLikeFAT(b):
		return FAT, nil
	case len(bytes.TrimLeft(b, "\x00")) == 0:
		return Empty, nil
	}
	return Unknown, nil
}

// looksLikeFAT holds a boot sector against the rules that it must keep ("FAT: General Overview of On-Disk Format", 1.03).
func looksLikeFAT(b []byte) bool {
	if len(b) < 512 || b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 {
		return false
	}
	sector, cluster := binary.LittleEndian.Uint16(b[11:]), b[13]
	media := b[21]
	return sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 && cluster > 0 && cluster&(cluster-1) == 0 &&
		b[16] > 0 && b[16] <= 4 && (media == 0xf0 || media >= 0xf8) && binary.LittleEndian.Uint16(b[14:]) > 0
}
