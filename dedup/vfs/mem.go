package vfs

import (
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Mem is a file system in memory for tests. It keeps apart what was synced and what was not, and Crash makes the file
// system that a loss of power at this instant would leave.
type Mem struct {
	mu    sync.Mutex // guards all below, and every node
	root  *memNode
	locks map[string]bool
	limit int64 // capacity in bytes of file data; 0: none
	used  int64
}

// memNode is a file or a directory. For a file, data is what a reader sees; synced and then pending in order lead to it.
// For a directory the same holds of children and synced names.
type memNode struct {
	dir      bool
	data     memBytes
	synced   memBytes
	pending  []memWrite
	children map[string]*memNode
	durable  map[string]*memNode
}

func newMemDir() *memNode {
	return &memNode{dir: true, children: map[string]*memNode{}, durable: map[string]*memNode{}}
}

// NewMem returns an empty file system that has the directory "/".
func NewMem() *Mem { return &Mem{root: newMemDir(), locks: map[string]bool{}} }

var _ FS = (*Mem)(nil)

// SetCapacity limits the bytes that files may hold together; a write beyond it is cut short with ENOSPC. 0: no limit.
func (m *Mem) SetCapacity(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = n
}

// find returns the node of a name, or nil. The caller holds mu.
func (m *Mem) find(name string) *memNode {
	n := m.root
	for part := range pathParts(name) {
		if n == nil || !n.dir {
			return nil
		}
		n = n.children[part]
	}
	return n
}

// pathParts yields the parts of a cleaned name; "/" has none.
func pathParts(name string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for rest := path.Clean("/" + name)[1:]; rest != ""; {
			part := rest
			rest = ""
			for i := range len(part) {
				if part[i] == '/' {
					part, rest = part[:i], part[i+1:]
					break
				}
			}
			if !yield(part) {
				return
			}
		}
	}
}

// parent returns the directory that holds (or would hold) a name, and the last part. The caller holds mu.
func (m *Mem) parent(name string) (*memNode, string) {
	dir, base := path.Split(path.Clean("/" + name))
	n := m.find(dir)
	if n == nil || !n.dir || base == "" {
		return nil, base
	}
	return n, base
}

func pathErr(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, base := m.parent(name)
	if p == nil {
		return nil, pathErr("create", name, syscall.ENOENT)
	}
	if p.children[base] != nil {
		return nil, pathErr("create", name, syscall.EEXIST)
	}
	n := &memNode{}
	p.children[base] = n
	return &memFile{m: m, n: n, name: name, write: true}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

// OpenReadWrite implements FS.
func (m *Mem) OpenReadWrite(name string) (File, error) { return m.open(name, true) }

func (m *Mem) open(name string, write bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(name)
	switch {
	case n == nil:
		return nil, pathErr("open", name, syscall.ENOENT)
	case n.dir:
		return nil, pathErr("open", name, syscall.EISDIR)
	}
	return &memFile{m: m, n: n, name: name, write: write}, nil
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error { return m.rename(oldname, newname, true) }

// RenameNew implements FS.
func (m *Mem) RenameNew(oldname, newname string) error { return m.rename(oldname, newname, false) }

func (m *Mem) rename(oldname, newname string, replace bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, oldbase := m.parent(oldname)
	to, newbase := m.parent(newname)
	if from == nil || from.children[oldbase] == nil {
		return pathErr("rename", oldname, syscall.ENOENT)
	}
	if to == nil {
		return pathErr("rename", newname, syscall.ENOENT)
	}
	n, victim := from.children[oldbase], to.children[newbase]
	switch {
	case victim == nil:
	case !replace:
		return pathErr("rename", newname, syscall.EEXIST)
	case victim.dir:
		return pathErr("rename", newname, syscall.EISDIR)
	case victim != n:
		m.used -= victim.data.allocated()
	}
	delete(from.children, oldbase)
	to.children[newbase] = n
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, base := m.parent(name)
	if p == nil || p.children[base] == nil {
		return pathErr("remove", name, syscall.ENOENT)
	}
	n := p.children[base]
	if n.dir && len(n.children) > 0 {
		return pathErr("remove", name, syscall.ENOTEMPTY)
	}
	m.used -= n.data.allocated()
	delete(p.children, base)
	return nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mkdir(name)
}

func (m *Mem) mkdir(name string) error {
	p, base := m.parent(name)
	if base == "" {
		return pathErr("mkdir", name, syscall.EEXIST)
	}
	if p == nil {
		return pathErr("mkdir", name, syscall.ENOENT)
	}
	if p.children[base] != nil {
		return pathErr("mkdir", name, syscall.EEXIST)
	}
	p.children[base] = newMemDir()
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := "/"
	for part := range pathParts(dir) {
		name = path.Join(name, part)
		n := m.find(name)
		if n == nil {
			if err := m.mkdir(name); err != nil {
				return err
			}
		} else if !n.dir {
			return pathErr("mkdir", name, syscall.ENOTDIR)
		}
	}
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(dir)
	if n == nil {
		return nil, pathErr("list", dir, syscall.ENOENT)
	}
	if !n.dir {
		return nil, pathErr("list", dir, syscall.ENOTDIR)
	}
	return slices.Sorted(maps.Keys(n.children)), nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(name)
	if n == nil {
		return nil, pathErr("stat", name, syscall.ENOENT)
	}
	return memInfo{name: path.Base(path.Clean("/" + name)), size: int64(len(n.data.b)), dir: n.dir}, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.find(dir)
	if n == nil || !n.dir {
		return pathErr("sync", dir, syscall.ENOENT)
	}
	n.durable = maps.Clone(n.children)
	return nil
}

// Lock implements FS. Locks are held by this Mem's users; a clone has none.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = path.Clean("/" + name)
	p, base := m.parent(name)
	if p == nil {
		return nil, pathErr("lock", name, syscall.ENOENT)
	}
	if m.locks[name] {
		return nil, pathErr("lock", name, ErrLocked)
	}
	if p.children[base] == nil {
		p.children[base] = &memNode{}
	}
	m.locks[name] = true
	return &memLock{m: m, name: name}, nil
}

type memLock struct {
	m    *Mem
	name string
	once sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		delete(l.m.locks, l.name)
	})
	return nil
}

// Free implements FS.
func (m *Mem) Free(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.limit == 0 {
		return math.MaxInt64, nil
	}
	return max(0, m.limit-m.used), nil
}

type memInfo struct {
	name string
	size int64
	dir  bool
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | dirMode
	}
	return fileMode
}
