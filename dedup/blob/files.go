package blob

import (
	"container/list"
	"sync"

	"coffer/dedup/vfs"
)

// maxOpenFiles is how many files Dir keeps open for reading: a restore reads a container frame by frame.
const maxOpenFiles = 64

// fileCache keeps the files open that were read last.
type fileCache struct {
	fs  vfs.FS
	max int

	mu    sync.Mutex               // guards all below, and refs and gone of every file
	files map[string]*list.Element // of *cachedFile, those in order
	order *list.List               // most recently used first
	drops uint64                   // counts drop, so that a file opened before its removal is not kept after it
}

// cachedFile is an open file with the count of its readers; it closes when it has left the cache and none is left.
type cachedFile struct {
	vfs.File
	c    *fileCache
	path string
	refs int
	gone bool
}

func newFileCache(fsys vfs.FS, limit int) *fileCache {
	return &fileCache{fs: fsys, max: limit, files: map[string]*list.Element{}, order: list.New()}
}

// open returns the file for reading; the caller calls release.
func (c *fileCache) open(path string) (*cachedFile, error) {
	if f := c.cached(path); f != nil {
		return f, nil
	}
	c.mu.Lock()
	drops := c.drops
	c.mu.Unlock()
	file, err := c.fs.Open(path)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &cachedFile{File: file, c: c, path: path, refs: 1}
	if c.files[path] != nil || c.drops != drops { // another reader was faster, or the blob may be deleted
		f.gone = true
		return f, nil
	}
	c.files[path] = c.order.PushFront(f)
	if c.order.Len() > c.max {
		c.evict(c.order.Back())
	}
	return f, nil
}

func (c *fileCache) cached(path string) *cachedFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.files[path]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	f := e.Value.(*cachedFile)
	f.refs++
	return f
}

// evict takes a file out of the cache. The caller holds mu.
func (c *fileCache) evict(e *list.Element) {
	f := e.Value.(*cachedFile)
	c.order.Remove(e)
	delete(c.files, f.path)
	f.gone = true
	if f.refs == 0 {
		_ = f.Close() // was only read
	}
}

func (f *cachedFile) release() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.refs--
	if f.refs == 0 && f.gone {
		_ = f.Close() // was only read
	}
}

// drop forgets a path.
func (c *fileCache) drop(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drops++
	if e := c.files[path]; e != nil {
		c.evict(e)
	}
}

func (c *fileCache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.evict(c.order.Back())
	}
}
