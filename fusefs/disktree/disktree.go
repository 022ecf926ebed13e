package disktree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"coffer/fusefs"
	"coffer/images/inside"
	"coffer/images/volume"
)

// Disk is the disk that is looked into. Its methods are called from many goroutines.
type Disk interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error // fills p; the range lies inside the disk
}

// readTimeout bounds a read of the disk: the readers of file systems carry no context of their own.
const readTimeout = time.Minute

// IDs is how many values of ID.Hi a disk takes, from the one on that New is given.
const IDs = 4096

// New returns the directory of a disk's parts. Its nodes have IDs from id.Hi up to id.Hi+IDs-1, which must be no other node's;
// id.Lo is not used. at is the time that is shown where a part has none.
func New(d Disk, id fusefs.ID, at fusefs.Time) fusefs.Dir {
	return &parts{disk: d, id: id, at: at}
}

// parts is the directory of partitions.
type parts struct {
	disk Disk
	id   fusefs.ID
	at   fusefs.Time

	mu   sync.Mutex
	list []fusefs.Dirent // guarded by mu; nil until the table was read
}

var _ fusefs.Dir = (*parts)(nil)

// ID implements fusefs.Node.
func (p *parts) ID() fusefs.ID { return fusefs.ID{Hi: p.id.Hi} }

// Attr implements fusefs.Node.
func (p *parts) Attr(context.Context) (fusefs.Attr, error) {
	return fusefs.Attr{Ino: shownIno(p.ID()), Mode: volume.ModeDir | 0o555, Size: blockSize, MTime: p.at, CTime: p.at}, nil
}

// scan reads the partition table, once it could.
func (p *parts) scan(ctx context.Context) ([]fusefs.Dirent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list != nil {
		return p.list, nil
	}
	found, err := volume.Scan(reader{ctx, p.disk}, p.disk.Size())
	if err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	list := make([]fusefs.Dirent, 0, len(found))
	for i, part := range found {
		list = append(list, p.entry(part, uint64(i)+1))
	}
	p.list = list
	return list, nil
}

// entry makes the directory of a part, or the text in its place.
func (p *parts) entry(part volume.Part, n uint64) fusefs.Dirent {
	name := "disk"
	if part.Number > 0 {
		name = strconv.Itoa(part.Number)
	}
	kind := string(part.Kind)
	if kind == "" {
		kind = "unknown"
	}
	name += "-" + kind
	id := fusefs.ID{Hi: p.id.Hi + n} // the file system's own numbers are the lower half
	if !inside.Readable(part.Kind) {
		return fusefs.Dirent{Name: name + ".txt", Node: &text{id: id, at: p.at, content: unsupported(part)}, Next: n}
	}
	return fusefs.Dirent{Name: name, Node: &root{v: &vol{disk: p.disk, part: part, id: id}, at: p.at}, Next: n}
}

// unsupported is what is shown in the place of a part that is not read here.
func unsupported(p volume.Part) []byte {
	what := "what lies in it was not recognised"
	switch p.Kind {
	case volume.Unknown:
	case volume.Empty:
		what = "it begins with zeros, as one that was never used does"
	case volume.LVM, volume.RAID, volume.ZFS:
		what = fmt.Sprintf("it belongs to a pool of disks (%s), which is not put together here", p.Kind)
	case volume.LUKS, volume.BitLocker:
		what = fmt.Sprintf("it is encrypted (%s)", p.Kind)
	default:
		what = fmt.Sprintf("file systems of type %s are not read here", p.Kind)
	}
	return fmt.Appendf(nil, "This part of the disk (%d bytes from byte %d on) is not shown: %s.\n\n"+
		"The disk itself is the file beside this folder, without \".parts\" in its name. Give it to libguestfs, which reads\n"+
		"more than this appliance does:\n\n    guestfish --ro -a DISK -i\n    guestmount --ro -a DISK -i /mnt\n", p.Size, p.Offset, what)
}

// Lookup implements fusefs.Dir.
func (p *parts) Lookup(ctx context.Context, name string) (fusefs.Node, error) {
	list, err := p.scan(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if e.Name == name {
			return e.Node, nil
		}
	}
	return nil, fmt.Errorf("look up %q: %w", name, fs.ErrNotExist)
}

// List implements fusefs.Dir.
func (p *parts) List(ctx context.Context, from uint64, yield func(fusefs.Dirent) bool) error {
	list, err := p.scan(ctx)
	if err != nil {
		return err
	}
	for _, e := range list[min(from, uint64(len(list))):] {
		if !yield(e) {
			break
		}
	}
	return nil
}

// text is a file that says why there is no folder.
type text struct {
	id      fusefs.ID
	at      fusefs.Time
	content []byte
}

var _ fusefs.File = (*text)(nil)

// ID implements fusefs.Node.
func (t *text) ID() fusefs.ID { return t.id }

// Attr implements fusefs.Node.
func (t *text) Attr(context.Context) (fusefs.Attr, error) {
	return fusefs.Attr{Ino: shownIno(t.id), Mode: volume.ModeRegular | 0o444, Size: uint64(len(t.content)), Blocks: 8, MTime: t.at, CTime: t.at}, nil
}

// Read implements fusefs.File.
func (t *text) Read(_ context.Context, p []byte, off int64) ([]byte, error) {
	if off >= int64(len(t.content)) {
		return nil, nil
	}
	return t.content[off:min(off+int64(len(p)), int64(len(t.content)))], nil
}

// vol is a part whose file system is opened when it is asked for.
type vol struct {
	disk Disk
	part volume.Part
	id   fusefs.ID

	mu sync.Mutex
	fs volume.FS // guarded by mu; nil until it could be opened
}

func (v *vol) open(ctx context.Context) (volume.FS, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fs != nil {
		return v.fs, nil
	}
	if _, err := inside.Open(reader{ctx, v.disk}, v.part); err != nil { // ends with its caller, where the disk hangs
		return nil, fmt.Errorf("open partition %d: %w", v.part.Number, err)
	}
	f, err := inside.Open(reader{context.WithoutCancel(ctx), v.disk}, v.part)
	if err != nil {
		return nil, fmt.Errorf("open partition %d: %w", v.part.Number, err)
	}
	v.fs = f
	return f, nil
}

// wrap tells an error where it happened.
func (v *vol) wrap(op string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%s in partition %d (%s): %w", op, v.part.Number, v.part.Kind, err)
}

// reader is a Disk as an io.ReaderAt.
type reader struct {
	ctx  context.Context //nolint:containedctx // of one call, or none that ends
	disk Disk
}

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, volume.ErrCorrupt
	}
	if off >= r.disk.Size() {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > r.disk.Size()-off {
		p, eof = p[:r.disk.Size()-off], io.EOF
	}
	ctx, cancel := context.WithTimeout(r.ctx, readTimeout)
	defer cancel()
	if err := r.disk.ReadAt(ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), eof
}
