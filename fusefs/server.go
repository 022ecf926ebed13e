//go:build linux

package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	forever = 24 * time.Hour // for what never changes
	moment  = time.Second    // for entries and attributes of volatile directories

	blockSize  = 4096    // unit of statfs
	ioSize     = 1 << 18 // st_blksize: what programs read at once
	maxNameLen = 255     // NAME_MAX of Linux; longer names cannot be shown

	logEvery = time.Second // at most one line of a kind of request in this time: a damaged file is read in many pieces
)

// server answers the kernel's requests from a model. The embedded default answers what is not overridden with ENOSYS.
type server struct {
	fuse.RawFileSystem
	inodes *table
	watch  *watch
	space  func() Space
	log    *slog.Logger

	noOpen, noOpenDir bool // the kernel takes ENOSYS for "no need to open"; set by Init

	mu     sync.Mutex // guards what follows
	logged map[string]time.Time
	hidden map[string]int // lines held back since the last of their kind
}

var _ fuse.RawFileSystem = (*server)(nil)

func newServer(root Dir, o Options) *server {
	return &server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		inodes:        newTable(root, o.MaxInodes),
		watch:         newWatch(o.Timeout),
		space:         o.Space,
		log:           o.Logger,
		logged:        map[string]time.Time{},
		hidden:        map[string]int{},
	}
}

// String is the name that go-fuse shows.
func (s *server) String() string { return "coffer" }

// Init learns what the kernel can do, and gives the model a way to its cache.
func (s *server) Init(fs *fuse.Server) {
	if root, ok := s.inodes.get(rootID).(Caching); ok {
		root.UseCache(&pageCache{inodes: s.inodes, store: fs.InodeNotifyStoreCache})
	}
	flags := fs.KernelSettings().Flags64()
	s.noOpen = flags&fuse.CAP_NO_OPEN_SUPPORT != 0
	s.noOpenDir = flags&fuse.CAP_NO_OPENDIR_SUPPORT != 0
}

// run carries out one request that may need the store: under a context with an end, its error mapped and logged.
func (s *server) run(op string, cancel <-chan struct{}, num uint64, name string, f func(ctx context.Context) error) fuse.Status {
	ctx, call := s.watch.begin(op, cancel)
	defer s.watch.end(call)
	err := f(ctx)
	st, ordinary := status(ctx, err)
	if !ordinary {
		s.complain(ctx, op, num, name, err)
	}
	return st
}

// complain logs a failed request. All callers that meet the same damage would flood the log, so a kind of request has one
// line a second, which counts those left out.
func (s *server) complain(ctx context.Context, op string, num uint64, name string, err error) {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.logged[op]) < logEvery {
		s.hidden[op]++
		s.mu.Unlock()
		return
	}
	left := s.hidden[op]
	s.logged[op], s.hidden[op] = now, 0
	s.mu.Unlock()
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	attrs := []any{"op", op, "inode", num, "err", err}
	if name != "" {
		attrs = append(attrs, "name", name)
	}
	if left > 0 {
		attrs = append(attrs, "left_out", left)
	}
	s.log.Error("mounted file system: request failed with EIO", attrs...)
}

// fill writes a node's attributes in the kernel's form.
func fill(out *fuse.Attr, a *Attr) {
	*out = fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Mtime: uint64(a.MTime.Sec), Mtimensec: a.MTime.Nsec,
		Atime: uint64(a.MTime.Sec), Atimensec: a.MTime.Nsec,
		Ctime: uint64(a.CTime.Sec), Ctimensec: a.CTime.Nsec,
		Mode: a.Mode, Nlink: max(a.Nlink, 1),
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:  kernelDev(a.Rdev), Blksize: ioSize,
	}
}

// kernelDev packs a device number as the kernel's new_encode_dev does: 12 bits of major, 20 of minor.
func kernelDev(dev uint64) uint32 {
	major := uint32(dev>>8&0xfff | dev>>32&^0xfff)
	minor := uint32(dev&0xff | dev>>12&0xffffff00)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// attrFor returns how long the attributes of a node stay valid, and entryFor how long the entries of a directory do.
func attrFor(n Node) time.Duration {
	if isVolatile(n) {
		return moment
	}
	return forever
}

func entryFor(dir Node) time.Duration { return attrFor(dir) }

func isVolatile(n Node) bool {
	v, ok := n.(Volatile)
	return ok && v.Volatile()
}

// pageCache is the kernel's cache of file contents.
type pageCache struct {
	inodes *table
	store  func(num uint64, off int64, data []byte) fuse.Status
}

var _ Cache = (*pageCache)(nil)

// Holds implements Cache.
func (c *pageCache) Holds(id ID) bool { return c.inodes.number(id) != 0 }

// Fill implements Cache.
func (c *pageCache) Fill(id ID, content []byte) bool {
	num := c.inodes.number(id)
	return num != 0 && c.store(num, 0, content).Ok()
}
