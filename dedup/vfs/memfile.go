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
	if off >= int64(len(f.n.data.b)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.n.data.b[off:])
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
		f.change(memWrite{kind: memStore, off: off, p: slices.Clone(p)})
	}
	return len(p), err
}

// change makes a change that is not synced. The caller holds mu.
func (f *memFile) change(w memWrite) {
	before := f.n.data.allocated()
	f.n.data.apply(w)
	f.n.pending = append(f.n.pending, w)
	f.m.used += f.n.data.allocated() - before
}

// fit cuts a write to the room that is left. The caller holds mu.
func (f *memFile) fit(p []byte, off int64) ([]byte, error) {
	if f.m.limit == 0 {
		return p, nil
	}
	keep := f.n.data.fits(off, len(p), f.m.limit-f.m.used)
	if keep == len(p) {
		return p, nil
	}
	return p[:keep], pathErr("write", f.name, syscall.ENOSPC)
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(true); err != nil {
		return err
	}
	f.change(memWrite{kind: memResize, size: size})
	return nil
}

var _ HolePuncher = (*memFile)(nil)

// PunchHole implements HolePuncher.
func (f *memFile) PunchHole(off, n int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(true); err != nil {
		return err
	}
	if off < 0 || n <= 0 {
		return pathErr("punch hole", f.name, syscall.EINVAL)
	}
	f.change(memWrite{kind: memPunch, off: off, size: n})
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.n.data.b)), f.check(false)
}

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check(false); err != nil {
		return err
	}
	for _, w := range f.n.pending {
		f.n.synced.apply(w)
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
