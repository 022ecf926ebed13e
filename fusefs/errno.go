//go:build linux

package fusefs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// errInterrupted is the cause of a request's end when the caller was interrupted; errStopped, when the mount goes.
var (
	errInterrupted = errors.New("caller was interrupted")
	errTimeout     = errors.New("no answer from the store in time")
	errStopped     = errors.New("file system is being unmounted")
)

// status is the one place where an error of a model becomes an errno. ordinary tells that it needs no log line.
func status(ctx context.Context, err error) (st fuse.Status, ordinary bool) {
	switch {
	case err == nil:
		return fuse.OK, true
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT, true
	case errors.Is(err, ErrNoXattr):
		return fuse.ENODATA, true
	case errors.Is(err, ErrNoKey):
		return fuse.Status(syscall.ENOKEY), true
	case errors.Is(err, ErrNoData):
		return fuse.Status(syscall.ENXIO), true
	case errors.Is(context.Cause(ctx), errInterrupted):
		return fuse.EINTR, true
	case errors.Is(context.Cause(ctx), errStopped):
		return fuse.EIO, true
	}
	return fuse.EIO, false
}
