package scan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"coffer/appliance/agent/filter"
	"coffer/appliance/agent/fsmeta"
)

// Limits of what lies ready before it is asked for.
const (
	aheadDirs    = 256     // each holds a descriptor
	aheadEntries = 1 << 15 // about 200 bytes each
)

// Options of a scan.
type Options struct {
	// Sources are absolute paths. One that does not exist is an error of New.
	Sources []string
	// Exclude leaves files out; nil leaves none.
	Exclude *filter.Filter
	// OneFileSystem stays on each source's file system; where another is mounted, an empty directory is shown.
	OneFileSystem bool
	// Workers list directories ahead; 0 means as many as there are processors, negative means none.
	Workers int
	// Warn is told about entries that cannot be looked at. It may be called from many goroutines.
	Warn func(path string, err error)
}

// Scanner walks. Its caller goes depth first, in order; New starts the workers, Close ends them.
type Scanner struct {
	opts Options
	root *Dir
	wg   sync.WaitGroup

	mu      sync.Mutex // guards all below and Dir.state
	wake    sync.Cond  // for workers: stack, ahead or closed changed
	loaded  sync.Cond  // for callers: a Dir was loaded
	stack   []*Dir     // not loaded yet; the next one last
	dirs    int        // loaded or loading ahead of the caller
	entries int
	open    map[*Dir]struct{}
	closed  bool
}

// New resolves the sources and starts to look at them. An error that wraps fs.ErrNotExist names the source that is not
// there; all that are wrong are named at once.
func New(opts Options) (*Scanner, error) {
	root := &place{}
	var errs []error
	for _, source := range opts.Sources {
		errs = append(errs, root.addSource(source))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(opts.Sources) == 0 {
		return nil, errors.New("no source")
	}
	if opts.Warn == nil {
		opts.Warn = func(string, error) {}
	}
	s := &Scanner{opts: opts, open: map[*Dir]struct{}{}}
	s.wake.L, s.loaded.L = &s.mu, &s.mu
	s.root = &Dir{s: s, place: root, pass: !root.source}
	s.stack = []*Dir{s.root}
	workers := opts.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for range workers {
		s.wg.Go(s.work)
	}
	return s, nil
}

// Root opens the root directory "/".
func (s *Scanner) Root() (*Dir, error) {
	err := s.root.Open()
	return s.root, err
}

// Close ends the workers and closes every directory that is still open; none may be in use.
func (s *Scanner) Close() {
	s.mu.Lock()
	s.closed = true
	s.wake.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
	for d := range s.open {
		_ = d.fd.Close()
	}
	clear(s.open)
}

func (s *Scanner) work() {
	var sc fsmeta.Scratch
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		d := s.next()
		if d == nil {
			return
		}
		s.load(d, &sc)
	}
}

// next waits for a directory that nobody has begun with; nil when the scanner is closed. The mutex is held.
func (s *Scanner) next() *Dir {
	for !s.closed {
		if s.dirs >= aheadDirs || s.entries >= aheadEntries || len(s.stack) == 0 {
			s.wake.Wait()
			continue
		}
		d := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		if d.state == waiting {
			return d
		}
	}
	return nil
}

// load lists a directory. The mutex is held, but not while the file system works.
func (s *Scanner) load(d *Dir, sc *fsmeta.Scratch) {
	d.state = loading
	s.dirs++
	s.mu.Unlock()
	d.list(sc)
	s.mu.Lock()
	d.state = ready
	s.entries += len(d.Entries)
	if d.fd != nil {
		s.open[d] = struct{}{}
	}
	for i := len(d.Entries) - 1; i >= 0; i-- {
		if sub := d.Entries[i].Sub; sub != nil {
			s.stack = append(s.stack, sub)
		}
	}
	if len(s.stack) > 0 {
		s.wake.Signal()
	}
	s.loaded.Broadcast()
}

type state uint8

const (
	waiting state = iota
	loading
	ready
	taken
)

// Dir is a directory of the walk. It stays open until the last Release.
type Dir struct {
	// Entries are sorted by the bytes of their names. They are there after Open, and nobody changes them.
	Entries []Entry

	s      *Scanner
	parent *Dir
	name   string
	place  *place // nil when it is above no source
	below  int    // length of the part of the path that leads to the source
	stat   fsmeta.Stat
	pass   bool // only what leads to a source belongs to the walk
	empty  bool // shown, but not entered
	path   string
	fd     *fsmeta.Dir
	err    error
	state  state // guarded by s.mu
	refs   atomic.Int32
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	Stat fsmeta.Stat
	Sub  *Dir // of a directory: to be opened, or skipped
}

// Path is the directory's absolute path.
func (d *Dir) Path() string {
	if d.parent == nil {
		return "/"
	}
	return d.path
}

// PathOf is the absolute path of a name in the directory.
func (d *Dir) PathOf(name string) string {
	if d.parent == nil {
		return "/" + name
	}
	return d.path + "/" + name
}

// File is the way to the directory's files. It is nil in a directory that could not be opened.
func (d *Dir) File() *fsmeta.Dir { return d.fd }

// Open lists the directory, unless a worker has done so. The caller owns a reference afterwards, whatever the error: a
// directory that cannot be read is an error and has the entries that could be seen, most often none.
func (d *Dir) Open() error {
	s := d.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.state == waiting {
		var sc fsmeta.Scratch
		s.load(d, &sc)
	}
	for d.state != ready {
		s.loaded.Wait()
	}
	d.state = taken
	s.dirs--
	s.entries -= len(d.Entries)
	s.wake.Signal()
	return d.err
}

// Retain keeps the directory open for another user.
func (d *Dir) Retain() { d.refs.Add(1) }

// Release gives back what Open or Retain gave; the last one closes the directory.
func (d *Dir) Release() {
	if d.refs.Add(-1) > 0 || d.fd == nil {
		return
	}
	d.s.mu.Lock()
	delete(d.s.open, d)
	d.s.mu.Unlock()
	_ = d.fd.Close()
}

// list opens the directory and looks at its entries.
func (d *Dir) list(sc *fsmeta.Scratch) {
	d.refs.Store(1)
	if d.parent == nil {
		d.fd, d.err = fsmeta.OpenRoot()
		if d.err == nil {
			d.err = d.fd.Stat(&d.stat)
		}
	} else {
		d.path = d.parent.PathOf(d.name)
		d.fd, d.err = d.parent.fd.OpenDir(d.name)
		d.checkMount()
		d.parent.Release()
	}
	if d.err != nil || d.empty {
		return
	}
	names, err := d.names(sc)
	if err != nil {
		d.err = fmt.Errorf("list directory: %w", err)
	}
	d.look(names)
}

// checkMount decides where another file system begins whether the walk goes on there.
func (d *Dir) checkMount() {
	if d.err != nil || d.empty || d.stat.Dev == d.parent.stat.Dev || d.place != nil && d.place.source {
		return
	}
	m, err := d.fd.Mount()
	if err == nil && (m.Pseudo || m.Saveset) {
		d.empty = true
		d.enterPlaces()
	}
}

// enterPlaces lets a directory that is not entered for its own sake lead to the sources below it.
func (d *Dir) enterPlaces() {
	if d.place != nil && len(d.place.children) > 0 {
		d.empty, d.pass = false, true
	}
}

func (d *Dir) names(sc *fsmeta.Scratch) ([]fsmeta.Named, error) {
	if !d.pass {
		return d.fd.Names(sc, nil)
	}
	var names []fsmeta.Named
	for _, name := range d.place.names() {
		names = append(names, fsmeta.Named{Name: name})
	}
	return names, nil
}

// sortByInode is the size from which a directory is looked at in the order of its inodes, which is that of the disk.
const sortByInode = 256

func (d *Dir) look(names []fsmeta.Named) {
	// Sorting the names is cheaper than sorting the entries, which are ten times as large.
	byName := func(a, b fsmeta.Named) int { return strings.Compare(a.Name, b.Name) }
	byInode := func(a, b fsmeta.Named) int { return cmp.Compare(a.Ino, b.Ino) }
	large := len(names) >= sortByInode
	if large {
		slices.SortFunc(names, byInode)
	} else {
		slices.SortFunc(names, byName)
	}
	d.Entries = make([]Entry, 0, len(names))
	for _, n := range names {
		d.Entries = append(d.Entries, Entry{Name: n.Name})
		e := &d.Entries[len(d.Entries)-1]
		err := d.fd.Lstat(n.Name, &e.Stat)
		if err == nil && d.keep(e) {
			continue
		}
		d.Entries = d.Entries[:len(d.Entries)-1]
		if err != nil && !fsmeta.Gone(err) {
			d.s.opts.Warn(d.PathOf(n.Name), fmt.Errorf("look at file: %w", err))
		}
	}
	if large {
		slices.SortFunc(d.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	}
	for i := range d.Entries {
		if sub := d.Entries[i].Sub; sub != nil {
			d.Retain() // until the subdirectory is open
			sub.stat = d.Entries[i].Stat
		}
	}
}

// keep applies the rules to an entry and makes its Sub.
func (d *Dir) keep(e *Entry) bool {
	at := d.place.child(e.Name)
	isSource := at != nil && at.source
	excluded := !isSource && !d.pass && d.excluded(e)
	if excluded && at == nil {
		return false
	}
	if !e.Stat.IsDir() {
		return !excluded
	}
	sub := &Dir{s: d.s, parent: d, name: e.Name, place: at, below: d.below, pass: !isSource && (d.pass || excluded)}
	if isSource {
		sub.below = len(d.PathOf(e.Name)) + 1
	}
	if !isSource && !sub.pass && d.s.opts.OneFileSystem && e.Stat.Dev != d.stat.Dev {
		sub.empty = true
		sub.enterPlaces()
	}
	e.Sub = sub
	return true
}

func (d *Dir) excluded(e *Entry) bool { return d.Match(d.s.opts.Exclude, e) }

// Match asks a filter about an entry of the directory.
func (d *Dir) Match(f *filter.Filter, e *Entry) bool {
	if f.Empty() {
		return false
	}
	if f.NamesOnly() {
		return f.Match(e.Name, e.Name, e.Stat.IsDir())
	}
	p := d.PathOf(e.Name)
	return f.Match(p, p[min(max(d.below, 1), len(p)):], e.Stat.IsDir())
}

// Sources tells what file systems the sources lie on: a name that changes when one of them becomes another.
func (s *Scanner) Sources(ctx context.Context) string {
	var ids []string
	for _, source := range s.opts.Sources {
		if ctx.Err() != nil {
			break
		}
		ids = append(ids, sourceID(source))
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), ",")
}

func sourceID(source string) string {
	d, err := fsmeta.OpenPath(source)
	if err != nil {
		if d, err = fsmeta.OpenPath(source[:strings.LastIndexByte(source, '/')+1]); err != nil {
			return ""
		}
	}
	defer d.Close()
	m, err := d.Mount()
	if err != nil {
		return ""
	}
	return m.ID
}
