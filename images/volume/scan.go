package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

// Part is a partition; Number 0 is a disk as a whole that has no table.
type Part struct {
	Number       int // from 1, as Linux numbers it: logical partitions of an MBR from 5
	Name         string
	Offset, Size int64 // bytes; inside the disk
	Kind         Kind
}

// Limits of what a table may claim.
const (
	maxEntries   = 1024 // of a GPT; 128 are usual
	maxEntrySize = 4096
	maxLogical   = 128
)

// Scan finds the partitions of a disk, in the order of their numbers. A disk without a table is one part, of number 0. Tables
// are looked for in sectors of 512 and of 4,096 bytes. Errors wrap ErrCorrupt, or are the disk's.
func Scan(r io.ReaderAt, size int64) ([]Part, error) {
	d := disk{io.NewSectionReader(r, 0, size)}
	parts, err := d.table()
	if err != nil {
		return nil, err
	}
	if parts == nil {
		parts = []Part{{Size: size}}
	}
	inside := parts[:0]
	for _, p := range parts {
		if p.Offset < 0 || p.Size <= 0 || p.Offset > size-p.Size {
			continue // it cannot be read, and the others can
		}
		if p.Kind, err = Identify(io.NewSectionReader(r, p.Offset, p.Size), p.Size); err != nil {
			return nil, err
		}
		inside = append(inside, p)
	}
	return inside, nil
}

// table reads the partition table; nil where there is none.
func (d disk) table() ([]Part, error) {
	for _, sector := range []int{512, 4096} {
		if err := d.checkGPT(sector); errors.Is(err, errNoTable) {
			continue
		} else if err != nil {
			return nil, err
		}
		t, err := gpt.Read(d, sector, sector)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return gptParts(t, int64(sector)), nil
	}
	kind, err := Identify(d, d.Size())
	if err != nil || kind != Unknown && kind != Empty {
		return nil, err // a boot sector of FAT or NTFS ends as an MBR does
	}
	return d.mbr()
}

func gptParts(t *gpt.Table, sector int64) []Part {
	parts := []Part{}
	for _, p := range t.Partitions {
		if p.Type == gpt.Unused || p.Start > p.End || p.End >= 1<<50 {
			continue
		}
		parts = append(parts, Part{Number: p.Index, Name: p.Name, Offset: int64(p.Start) * sector, Size: int64(p.End-p.Start+1) * sector})
	}
	return parts
}

// errNoTable: there is no such table.
var errNoTable = errors.New("no partition table")

// checkGPT bounds what the headers claim that the library is going to believe: the first, and the backup at the disk's end.
func (d disk) checkGPT(sector int) error {
	found := false
	for _, at := range []int64{int64(sector), (d.Size()/int64(sector) - 1) * int64(sector)} {
		b := make([]byte, 92)
		if at < int64(sector) || at+int64(sector) > d.Size() {
			continue
		}
		if _, err := d.ReadAt(b, at); err != nil {
			return err
		}
		if string(b[:8]) != "EFI PART" {
			continue
		}
		found = true
		first, n, each := binary.LittleEndian.Uint64(b[72:]), binary.LittleEndian.Uint32(b[80:]), binary.LittleEndian.Uint32(b[84:])
		if n > maxEntries || each < 128 || each > maxEntrySize || first > uint64(d.Size()/int64(sector)) {
			return fmt.Errorf("%w: a partition table of %d entries of %d bytes at sector %d", ErrCorrupt, n, each, first)
		}
	}
	if !found {
		return errNoTable
	}
	return nil
}

// mbr reads the table of a master boot record, and the chain of its logical partitions.
func (d disk) mbr() ([]Part, error) {
	t, err := d.record(0)
	if t == nil || err != nil {
		return nil, err
	}
	parts := []Part{}
	for _, p := range t.Partitions {
		switch {
		case p.Type == mbr.Empty || p.Size == 0:
		case extended(p.Type):
			logical, err := d.logical(int64(p.Start))
			if err != nil {
				return nil, err
			}
			parts = append(parts, logical...)
		default:
			parts = append(parts, Part{Number: p.Index, Offset: int64(p.Start) * 512, Size: int64(p.Size) * 512})
		}
	}
	return parts, nil
}

func extended(t mbr.Type) bool {
	return t == mbr.ExtendedCHS || t == mbr.ExtendedLBA || t == mbr.LinuxExtended
}

// logical follows the chain of records in an extended partition: each has one partition, relative to itself, and where the
// next record is, relative to the extended partition.
func (d disk) logical(start int64) ([]Part, error) {
	var parts []Part
	at := start
	for range maxLogical {
		t, err := d.record(at)
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, fmt.Errorf("%w: no record of a logical partition at sector %d", ErrCorrupt, at)
		}
		next := int64(0)
		for _, p := range t.Partitions[:2] {
			switch {
			case p.Type == mbr.Empty || p.Size == 0:
			case extended(p.Type):
				next = start + int64(p.Start)
			default:
				parts = append(parts, Part{Number: 5 + len(parts), Offset: (at + int64(p.Start)) * 512, Size: int64(p.Size) * 512})
			}
		}
		if next == 0 {
			return parts, nil
		}
		at = next
	}
	return nil, fmt.Errorf("%w: more than %d logical partitions", ErrCorrupt, maxLogical)
}

// record reads a boot record; nil where there is none.
func (d disk) record(sector int64) (*mbr.Table, error) {
	if sector*512+512 > d.Size() {
		return nil, nil
	}
	var mark [2]byte
	if _, err := d.ReadAt(mark[:], sector*512+510); err != nil {
		return nil, err
	}
	if mark != [2]byte{0x55, 0xaa} {
		return nil, nil
	}
	t, err := mbr.Read(disk{io.NewSectionReader(d, sector*512, 512)}, 512, 512)
	if err != nil {
		return nil, nil //nolint:nilerr // boot code without a table ends with the same mark
	}
	return t, nil
}

// disk is a reader as the library wants it.
type disk struct{ *io.SectionReader }

func (disk) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (disk) Close() error               { return nil }
