// Package errorfs wraps a vfs.FS so that a test sees every operation before it happens, can fail it, and can take a
// crash clone at that instant.
//
// It owns the injection only; which operations a test fails, and in what order, is the test's. Failing the i-th
// operation for every i until the work succeeds is FailAt in a loop.
package errorfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"coffer/dedup/vfs"
)

// ErrInjected is what FailAt and FailFrom inject.
var ErrInjected = errors.New("injected error")

// Op is a kind of operation.
type Op uint8

const (
	OpCreate Op = iota + 1
	OpOpen
	OpRename
	OpRemove
	OpMkdir
	OpList
	OpStat
	OpSyncDir
	OpLock
	OpRead
	OpWrite
	OpTruncate
	OpSync
	OpClose
	OpPunch
)

var opNames = [...]string{OpCreate: "create", OpOpen: "open", OpRename: "rename", OpRemove: "remove", OpMkdir: "mkdir",
	OpList: "list", OpStat: "stat", OpSyncDir: "syncdir", OpLock: "lock", OpRead: "read", OpWrite: "write",
	OpTruncate: "truncate", OpSync: "sync", OpClose: "close", OpPunch: "punch"}

func (o Op) String() string {
	if o == 0 || int(o) >= len(opNames) {
		return fmt.Sprintf("op(%#02x)", uint8(o))
	}
	return opNames[o]
}

// Changes tells whether the operation changes what a crash would leave.
func (o Op) Changes() bool {
	switch o {
	case OpOpen, OpList, OpStat, OpRead, OpClose, OpLock:
		return false
	}
	return true
}

// Injector is asked before every operation; an error that it returns is returned in the operation's place, which then
// does not happen. A Close goes through to the file all the same, so that nothing leaks. It is called concurrently.
type Injector interface {
	Before(op Op, name string) error
}

// Func makes an Injector of a function.
type Func func(op Op, name string) error

// Before implements Injector.
func (f Func) Before(op Op, name string) error { return f(op, name) }

// Counter counts operations, and fails one of them (or all from it on).
type Counter struct {
	// Only limits what is counted, and so what can fail; nil: every operation that changes something.
	Only func(op Op, name string) bool
	// Err is injected; nil: ErrInjected.
	Err error

	n    atomic.Int64
	at   int64
	from bool
}

// FailAt fails the i-th operation (from 0) and no other. A negative i only counts.
func FailAt(i int64) *Counter { return &Counter{at: i} }

// FailFrom fails the i-th operation and all later ones: a disk that died.
func FailFrom(i int64) *Counter { return &Counter{at: i, from: true} }

// Count returns how many operations were seen.
func (c *Counter) Count() int64 { return c.n.Load() }

// Reached tells whether the operation that fails was reached.
func (c *Counter) Reached() bool { return c.at >= 0 && c.n.Load() > c.at }

// Before implements Injector.
func (c *Counter) Before(op Op, name string) error {
	counted := op.Changes()
	if c.Only != nil {
		counted = c.Only(op, name)
	}
	if !counted {
		return nil
	}
	i := c.n.Add(1) - 1
	if c.at < 0 || i < c.at || (i > c.at && !c.from) {
		return nil
	}
	if c.Err != nil {
		return c.Err
	}
	return ErrInjected
}

// Wrap returns fsys with the injector before every operation.
func Wrap(fsys vfs.FS, inj Injector) vfs.FS { return &errFS{fsys: fsys, inj: inj} }

type errFS struct {
	fsys vfs.FS
	inj  Injector
}

func (e *errFS) before(op Op, name string) error {
	if err := e.inj.Before(op, name); err != nil {
		return &fs.PathError{Op: op.String(), Path: name, Err: err}
	}
	return nil
}

func (e *errFS) file(op Op, name string, open func(string) (vfs.File, error)) (vfs.File, error) {
	if err := e.before(op, name); err != nil {
		return nil, err
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	return &errFile{File: f, e: e}, nil
}

func (e *errFS) Create(name string) (vfs.File, error) { return e.file(OpCreate, name, e.fsys.Create) }
func (e *errFS) Open(name string) (vfs.File, error)   { return e.file(OpOpen, name, e.fsys.Open) }
func (e *errFS) OpenReadWrite(name string) (vfs.File, error) {
	return e.file(OpOpen, name, e.fsys.OpenReadWrite)
}

func (e *errFS) Rename(oldname, newname string) error {
	if err := e.before(OpRename, newname); err != nil {
		return err
	}
	return e.fsys.Rename(oldname, newname)
}

func (e *errFS) RenameNew(oldname, newname string) error {
	if err := e.before(OpRename, newname); err != nil {
		return err
	}
	return e.fsys.RenameNew(oldname, newname)
}

func (e *errFS) do(op Op, name string, f func(string) error) error {
	if err := e.before(op, name); err != nil {
		return err
	}
	return f(name)
}

func (e *errFS) Remove(name string) error  { return e.do(OpRemove, name, e.fsys.Remove) }
func (e *errFS) Mkdir(name string) error   { return e.do(OpMkdir, name, e.fsys.Mkdir) }
func (e *errFS) MkdirAll(dir string) error { return e.do(OpMkdir, dir, e.fsys.MkdirAll) }
func (e *errFS) SyncDir(dir string) error  { return e.do(OpSyncDir, dir, e.fsys.SyncDir) }

func (e *errFS) List(dir string) ([]string, error) {
	if err := e.before(OpList, dir); err != nil {
		return nil, err
	}
	return e.fsys.List(dir)
}

func (e *errFS) Stat(name string) (fs.FileInfo, error) {
	if err := e.before(OpStat, name); err != nil {
		return nil, err
	}
	return e.fsys.Stat(name)
}

func (e *errFS) Lock(name string) (io.Closer, error) {
	if err := e.before(OpLock, name); err != nil {
		return nil, err
	}
	return e.fsys.Lock(name)
}

func (e *errFS) Free(dir string) (int64, error) { return e.fsys.Free(dir) }

type errFile struct {
	vfs.File
	e *errFS
}

func (f *errFile) Read(p []byte) (int, error) {
	if err := f.e.before(OpRead, f.Name()); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *errFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.e.before(OpRead, f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *errFile) Write(p []byte) (int, error) {
	if err := f.e.before(OpWrite, f.Name()); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *errFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.e.before(OpWrite, f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *errFile) Truncate(size int64) error {
	if err := f.e.before(OpTruncate, f.Name()); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *errFile) PunchHole(off, n int64) error {
	if err := f.e.before(OpPunch, f.Name()); err != nil {
		return err
	}
	return vfs.PunchHole(f.File, off, n)
}

func (f *errFile) Sync() error {
	if err := f.e.before(OpSync, f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *errFile) Close() error {
	err := f.e.before(OpClose, f.Name())
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}
