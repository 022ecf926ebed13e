//go:build !linux

package vfs

import (
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"syscall"
)

const errQuota = syscall.ENOSPC

func renameNew(oldname, newname string) error {
	err := linkNew(oldname, newname)
	if err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, os.ErrNotExist) {
		return checkedRename(oldname, newname)
	}
	return err
}

// SyncDir opens the directory, so that a missing one is an error; not every system can sync one.
func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync()
	return d.Close()
}

// Lock holds for as long as the lock file exists: the store itself runs on Linux, other systems have it for tools.
func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, os.ErrExist) {
		return nil, &os.PathError{Op: "lock", Path: name, Err: ErrLocked}
	}
	if err != nil {
		return nil, err
	}
	return &removingLock{f: f}, nil
}

type removingLock struct {
	f    *os.File
	once sync.Once
}

func (l *removingLock) Close() (err error) {
	l.once.Do(func() { err = errors.Join(l.f.Close(), os.Remove(l.f.Name())) })
	return err
}

// free is unknown here; the first failing write tells.
func free(string) (int64, error) { return math.MaxInt64, nil }
