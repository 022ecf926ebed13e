package ntfs

import (
	"errors"
	"fmt"
	"io"

	"www.velocidex.com/golang/go-ntfs/parser"

	"coffer/images/volume"
)

// Numbers of records in the master file table.
const (
	rootRecord = 5
	firstUser  = 16 // those before it are the file system's own
	idMask     = 1<<48 - 1
)

// Types of attributes.
const (
	attrData            = 128
	attrIndexRoot       = 144
	attrIndexAllocation = 160
	attrBitmap          = 176
	attrReparse         = 192
)

// attrEncrypted is the flag of an attribute whose content EFS has encrypted.
const attrEncrypted = 0x4000

// maxAttrs is how many attributes a record may have, those in other records included.
const maxAttrs = 10000

// cachePages of 4 KiB are kept of what the library reads in small pieces.
const cachePages = 1024

// FS is an open file system.
type FS struct {
	ctx *parser.NTFSContext
}

var _ volume.FS = (*FS)(nil)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{volume.ErrCorrupt}, args...)...)
}

// guard turns a panic of the library into an error.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = corrupt("%v", p)
	}
}

// Open reads the boot sector and the record of the master file table. Errors wrap volume.ErrCorrupt, or are the reader's.
func Open(r io.ReaderAt, size int64) (f *FS, err error) {
	defer guard(&err)
	if err := checkBoot(r, size); err != nil {
		return nil, err
	}
	pages, err := parser.NewPagedReader(io.NewSectionReader(r, 0, size), 4096, cachePages)
	if err != nil {
		return nil, err
	}
	ctx, err := parser.GetNTFSContext(pages, 0)
	if err != nil {
		return nil, corrupt("%w", err)
	}
	return &FS{ctx: ctx}, nil
}

// checkBoot looks at what the library divides by and allocates for.
func checkBoot(r io.ReaderAt, size int64) error {
	b := make([]byte, 512)
	if size < int64(len(b)) {
		return corrupt("%d bytes are too few", size)
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return fmt.Errorf("read boot sector: %w", err)
	}
	sector, cluster, record := int(b[11])|int(b[12])<<8, int(b[13]), int8(b[64])
	switch {
	case string(b[3:11]) != "NTFS    ":
		return corrupt("no boot sector of NTFS")
	case sector < 256 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 || cluster > 128:
		return corrupt("sectors of %d bytes, %d in a cluster", sector, cluster)
	case record == 0 || record > 64 || record < -15 || record > 0 && int(record)*sector*cluster > 64<<10:
		return corrupt("records of %d clusters", record)
	}
	return nil
}

// Root implements volume.FS.
func (f *FS) Root() (volume.Dir, error) {
	n, err := f.node(rootRecord)
	if err != nil {
		return nil, err
	}
	d, ok := n.(volume.Dir)
	if !ok {
		return nil, corrupt("the root is no directory")
	}
	return d, nil
}

// record is a file's record in the master file table.
type record struct {
	fs    *FS
	entry *parser.MFT_ENTRY
	attrs []*parser.NTFS_ATTRIBUTE
	attr  volume.Attr
}

// Attr implements volume.Node.
func (r *record) Attr() volume.Attr { return r.attr }

// open reads a record that is in use.
func (f *FS) open(id uint64) (_ *record, err error) {
	defer guard(&err)
	entry, err := f.ctx.GetMFT(int64(id & idMask))
	if err != nil {
		return nil, corrupt("record %d: %w", id, err)
	}
	if !entry.Flags().IsSet("ALLOCATED") || entry.Base_record_reference()&idMask != 0 {
		return nil, corrupt("record %d is not in use", id)
	}
	r := &record{fs: f, entry: entry, attrs: entry.EnumerateAttributes(f.ctx)}
	if len(r.attrs) > maxAttrs {
		return nil, corrupt("record %d has %d attributes", id, len(r.attrs))
	}
	r.attr = volume.Attr{Ino: id & idMask, Nlink: max(1, uint32(entry.Link_count()))}
	if si, err := entry.StandardInformation(f.ctx); err == nil {
		r.attr.MTime = si.File_altered_time().Time
	}
	return r, nil
}

// node opens a record as what it is.
func (f *FS) node(id uint64) (_ volume.Node, err error) {
	defer guard(&err)
	r, err := f.open(id)
	if err != nil {
		return nil, err
	}
	target, isLink, err := r.reparse()
	switch {
	case errors.Is(err, volume.ErrUnsupported):
		return &file{attr: r.regular(), broken: err}, nil
	case err != nil:
		return nil, err
	case isLink:
		r.attr.Mode, r.attr.Size = volume.ModeSymlink|0o777, int64(len(target))
		return link{r, target}, nil
	}
	if r.entry.Flags().IsSet("DIRECTORY") {
		r.attr.Mode = volume.ModeDir | 0o555
		return dir{r}, nil
	}
	return r.file("")
}

// named returns the first attribute of a type and name; nil where there is none.
func (r *record) named(kind uint64, name string) *parser.NTFS_ATTRIBUTE {
	for _, a := range r.attrs {
		if a.Type().Value == kind && a.Name() == name && (a.IsResident() || a.Runlist_vcn_start() == 0) {
			return a
		}
	}
	return nil
}
