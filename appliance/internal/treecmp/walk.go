//go:build linux

package treecmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// batch is how many entries of a directory one goroutine compares before it tries to hand some to another.
const batch = 128

// dir is one of the two directories that are compared, opened O_RDONLY|O_DIRECTORY.
type dir struct {
	f   *os.File
	dev uint64
}

func (d *dir) fd() int { return int(d.f.Fd()) }

type comparison struct {
	ctx     context.Context // of one Compare call, which is all that a comparison lives for
	o       Options
	tokens  chan struct{} // one for each further goroutine that may run
	wg      sync.WaitGroup
	entries atomic.Int64
	bytes   atomic.Int64

	mu    sync.Mutex // guards what follows
	diffs []Difference
	count int
	links [2]map[inode][]string // paths of files with more than one name, of either tree
}

type inode struct{ dev, ino uint64 }

func newComparison(ctx context.Context, o Options) *comparison {
	c := &comparison{ctx: ctx, o: o, tokens: make(chan struct{}, o.Workers-1)}
	c.links[0], c.links[1] = map[inode][]string{}, map[inode][]string{}
	return c
}

func (c *comparison) run(a, b string) error {
	da, err := openRoot(a)
	if err != nil {
		return err
	}
	defer da.f.Close()
	db, err := openRoot(b)
	if err != nil {
		return err
	}
	defer db.f.Close()
	if !c.o.SkipRoot {
		c.compareOpened(".", da, db)
	}
	c.compareDir(".", da, db)
	c.wg.Wait()
	c.compareLinks()
	return c.ctx.Err()
}

func openRoot(name string) (*dir, error) {
	f, err := os.OpenFile(name, unix.O_DIRECTORY|unix.O_NOATIME, 0)
	if err != nil {
		return nil, err
	}
	d, err := newDir(f)
	if err != nil {
		f.Close()
	}
	return d, err
}

func newDir(f *os.File) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	return &dir{f: f, dev: st.Dev}, nil
}

// openDir opens a directory inside d. O_NOATIME keeps the comparison from changing what it compares.
func (d *dir) openDir(name string) (*dir, error) {
	fd, err := openat(d.fd(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME)
	if err != nil {
		return nil, err
	}
	sub, err := newDir(os.NewFile(uintptr(fd), name))
	if err != nil {
		unix.Close(fd)
	}
	return sub, err
}

func openat(fd int, name string, flags int) (int, error) {
	for {
		got, err := unix.Openat(fd, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return got, err
		}
	}
}

// names returns what stands in a directory, sorted by bytes.
func (d *dir) names() ([]string, error) {
	names, err := d.f.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// compareDir merges two listings and compares what stands in both. It owns neither directory.
func (c *comparison) compareDir(rel string, a, b *dir) {
	na, err := a.names()
	if err != nil {
		c.report(rel, Unreadable, "first tree: list: %v", err)
	}
	nb, err := b.names()
	if err != nil {
		c.report(rel, Unreadable, "second tree: list: %v", err)
	}
	both := c.merge(rel, na, nb)
	var wg sync.WaitGroup
	for len(both) > 0 && c.ctx.Err() == nil {
		n := min(batch, len(both))
		part := both[:n]
		both = both[n:]
		c.spawn(&wg, func() { c.compareBatch(rel, a, b, part) })
	}
	wg.Wait() // the descriptors of a and b are in use until then
}

func (c *comparison) compareBatch(rel string, a, b *dir, names []string) {
	for _, name := range names {
		if c.ctx.Err() != nil {
			return
		}
		c.compareEntry(path.Join(rel, name), name, a, b)
	}
}

// merge reports names of one side only and returns those of both.
func (c *comparison) merge(rel string, na, nb []string) []string {
	var both []string
	for len(na) > 0 || len(nb) > 0 {
		switch {
		case len(nb) == 0 || len(na) > 0 && na[0] < nb[0]:
			c.reportOne(path.Join(rel, na[0]), Missing)
			na = na[1:]
		case len(na) == 0 || nb[0] < na[0]:
			c.reportOne(path.Join(rel, nb[0]), Extra)
			nb = nb[1:]
		default:
			if c.o.Exclude == nil || !c.o.Exclude(path.Join(rel, na[0])) {
				both = append(both, na[0])
			}
			na, nb = na[1:], nb[1:]
		}
	}
	return both
}

func (c *comparison) reportOne(p string, what Aspect) {
	if c.o.Exclude == nil || !c.o.Exclude(p) {
		c.report(p, what, "%v", what)
	}
}

// spawn runs f beside the caller if a worker is free, else in place: the work never waits for a worker, so that it cannot
// wait for itself.
func (c *comparison) spawn(wg *sync.WaitGroup, f func()) {
	select {
	case c.tokens <- struct{}{}:
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-c.tokens }()
			f()
		}()
	default:
		f()
	}
}

func (c *comparison) report(p string, what Aspect, format string, args ...any) {
	if c.o.Ignore&what != 0 && what != Unreadable {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.diffs) < c.o.MaxReports {
		c.diffs = append(c.diffs, Difference{Path: p, What: what, Detail: fmt.Sprintf(format, args...)})
	}
}

// noteLinks remembers the paths of files with several names for compareLinks.
func (c *comparison) noteLinks(p string, sa, sb *unix.Stat_t) {
	if c.o.Ignore&Links != 0 || sa.Nlink < 2 && sb.Nlink < 2 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, st := range []*unix.Stat_t{sa, sb} {
		key := inode{st.Dev, st.Ino}
		c.links[i][key] = append(c.links[i][key], p)
	}
}

// compareLinks names every group by its first path inside the tree and compares the names path by path: names outside of
// the tree do not count.
func (c *comparison) compareLinks() {
	first := [2]map[string]string{{}, {}}
	for i := range c.links {
		for _, paths := range c.links[i] {
			lead := slices.Min(paths)
			for _, p := range paths {
				first[i][p] = lead
			}
		}
	}
	for p, lead := range first[0] {
		if other := first[1][p]; other != lead {
			c.report(p, Links, "one file with %q, with %q", lead, other)
		}
	}
}
