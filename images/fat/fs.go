package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"coffer/images/volume"
)

// FS is an open file system.
type FS struct {
	r    io.ReaderAt
	size int64

	bits        uint  // of an entry of the table: 12, 16, 32
	table       int64 // where the first table begins
	tableLen    int64
	rootAt      int64 // of FAT12 and FAT16
	rootLen     int64
	rootCluster uint32 // of FAT32
	data        int64  // where cluster 2 begins
	clusterLen  int64
	clusters    uint32 // the numbers go from 2 to clusters+1

	mu    sync.Mutex
	page  []byte // guarded by mu: the piece of the table that was read last
	pageN int64  // guarded by mu: its number; -1 = none
}

var _ volume.FS = (*FS)(nil)

// pageLen is the piece of the table that is read at once: a multiple of 3, so that no entry of 12 bits is cut.
const pageLen = 3 * 4096

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{volume.ErrCorrupt}, args...)...)
}

// Open reads the boot sector. Errors wrap volume.ErrCorrupt, or are the reader's.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if size < int64(len(b)) {
		return nil, corrupt("%d bytes are too few", size)
	}
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	f := &FS{r: r, size: size, pageN: -1}
	return f, f.boot(b)
}

// boot takes over the BIOS parameter block.
func (f *FS) boot(b []byte) error {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, perTable := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if perTable == 0 {
		perTable = int64(le.Uint32(b[36:]))
	}
	switch {
	case b[510] != 0x55 || b[511] != 0xaa:
		return corrupt("no boot sector")
	case sector < 512 || sector > 4096 || sector&(sector-1) != 0:
		return corrupt("sectors of %d bytes", sector)
	case perCluster == 0 || perCluster&(perCluster-1) != 0:
		return corrupt("clusters of %d sectors", perCluster)
	case reserved == 0 || tables == 0 || perTable == 0:
		return corrupt("%d reserved sectors, %d tables of %d sectors", reserved, tables, perTable)
	}
	f.clusterLen = sector * perCluster
	f.table, f.tableLen = reserved*sector, perTable*sector
	f.rootAt, f.rootLen = f.table+tables*f.tableLen, rootEntries*32
	f.data = f.rootAt + (f.rootLen+sector-1)/sector*sector
	if sectors*sector < f.data {
		return corrupt("%d sectors are too few", sectors)
	}
	n := (sectors*sector - f.data) / f.clusterLen
	switch {
	case n < 4085:
		f.bits = 12
	case n < 65525:
		f.bits = 16
	default:
		f.bits = 32
		f.rootCluster = le.Uint32(b[44:])
		if tables > 1 && le.Uint16(b[40:])&0x80 != 0 { // mirroring is off: one table counts
			f.table += int64(le.Uint16(b[40:])&0xf) % tables * f.tableLen
		}
	}
	f.clusters = uint32(min(n, f.tableLen*8/int64(f.bits)-2, 1<<28))
	return nil
}

// Root implements volume.FS.
func (f *FS) Root() (volume.Dir, error) {
	return dir{f, volume.Attr{Ino: 1, Mode: volume.ModeDir | 0o555, Nlink: 1}, f.rootCluster, true}, nil
}

// read fills p.
func (f *FS) read(p []byte, at int64) error {
	if at < 0 || at > f.size-int64(len(p)) {
		return corrupt("%d bytes at %d, of %d", len(p), at, f.size)
	}
	if n, err := f.r.ReadAt(p, at); n < len(p) {
		return fmt.Errorf("read at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// next returns the cluster that follows one; 0 at the end of a chain.
func (f *FS) next(cluster uint32) (uint32, error) {
	if cluster < 2 || cluster >= f.clusters+2 {
		return 0, corrupt("cluster %d of %d", cluster, f.clusters)
	}
	bit := int64(cluster) * int64(f.bits)
	e, err := f.entry(bit / 8)
	if err != nil {
		return 0, err
	}
	last := uint32(0xffffff8)
	switch f.bits {
	case 12:
		e = e >> (bit % 8) & 0xfff
		last = 0xff8
	case 16:
		e &= 0xffff
		last = 0xfff8
	default:
		e &= 0xfffffff
	}
	switch {
	case e >= last:
		return 0, nil
	case e < 2 || e >= f.clusters+2:
		return 0, corrupt("cluster %d is followed by %#x", cluster, e)
	}
	return e, nil
}

// entry returns four bytes of the table.
func (f *FS) entry(at int64) (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := at / pageLen; n != f.pageN {
		f.pageN = -1
		f.page = append(f.page[:0], make([]byte, pageLen+4)...)
		if err := f.read(f.page[:min(pageLen, f.tableLen-n*pageLen)], f.table+n*pageLen); err != nil {
			return 0, err
		}
		f.pageN = n
	}
	return binary.LittleEndian.Uint32(f.page[at%pageLen:]), nil
}

// chain returns the clusters of a chain as runs, for up to need bytes. One that comes back to where it was is an error: of the
// clusters that it has passed it remembers the last whose number in the chain is a power of two.
func (f *FS) chain(first uint32, need int64) ([]run, error) {
	var runs []run
	passed := uint32(0)
	for n := int64(0); first != 0 && n*f.clusterLen < need; n++ {
		if first == passed {
			return nil, corrupt("the chain of clusters comes back to %d", first)
		}
		if n&(n-1) == 0 {
			passed = first
		}
		if last := len(runs) - 1; last >= 0 && runs[last].first+runs[last].n == first {
			runs[last].n++
		} else {
			runs = append(runs, run{n, first, 1})
		}
		var err error
		if first, err = f.next(first); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// run is clusters that lie side by side.
type run struct {
	at    int64 // in the file, in clusters
	first uint32
	n     uint32
}

func (f *FS) place(cluster uint32) int64 { return f.data + int64(cluster-2)*f.clusterLen }
