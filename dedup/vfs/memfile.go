package vfs

import (
	"io"
	"io/fs"
	"slices"
	"syscall"
)

// memFile is an open file of a Mem. Its fields but n are for its one user; the node is guarded by the Mem's mutex.
type memFile struct {
	m      *Mem
	n      *memNode
	name   string
	pos    int64
	write  bool
	closed bool
}

var _ File = (*memFile)(nil)

func (f *memFile) Name() string { return f.name }

func (f *memFile) check(write bool) error {
	if f.closed {
		return pathErr("use", f.name, fs.ErrClosed)
	}
	if write && !f.write {
		return pathErr("write", f.name, syscall.EBADF)
	}
	return nil
}

func (f *memFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathErr("read", f.name, syscall.EINVAL)
	}
	if off >= int64(len(f.n.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(true); err != nil {
		return 0, err
	}
	p, err := f.fit(p, off)
	if len(p) > 0 {
		w := memWrite{off: off, p: slices.Clone(p)}
		before := len(f.n.data)
		f.n.data = w.apply(f.n.data)
		f.n.pending = append(f.n.pending, w)
		f.m.used += int64(len(f.n.data) - before)
	}
	return len(p), err
}

// fit cuts a write to the room that is left. The caller holds mu.
func (f *memFile) fit(p []byte, off int64) ([]byte, error) {
	grow := off + int64(len(p)) - int64(len(f.n.data))
	room := f.m.limit - f.m.used
	if f.m.limit == 0 || grow <= 0 || grow <= room {
		return p, nil
	}
	keep := max(0, int64(len(p))-(grow-max(0, room)))
	return p[:keep], pathErr("write", f.name, syscall.ENOSPC)
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(true); err != nil {
		return err
	}
	w := memWrite{size: size}
	before := len(f.n.data)
	f.n.data = w.apply(f.n.data)
	f.n.pending = append(f.n.pending, w)
	f.m.used += int64(len(f.n.data) - before)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.n.data)), f.check(false)
}

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(false); err != nil {
		return err
	}
	for _, w := range f.n.pending {
		f.n.synced = w.apply(f.n.synced)
	}
	f.n.pending = nil
	return nil
}

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	err := f.check(false)
	f.closed = true
	return err
}

// apply makes the change in b and returns the result, which may be b.
func (w memWrite) apply(b []byte) []byte {
	if w.p == nil {
		return resize(b, w.size)
	}
	if end := w.off + int64(len(w.p)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[w.off:], w.p)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	old := len(b)
	b = slices.Grow(b, int(size)-old)[:size]
	clear(b[old:])
	return b
}
