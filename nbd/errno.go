package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errno is an error of the transmission phase (proto.md, "Error values"). Its numbers are the protocol's, whatever the
// system's are. A Client returns them, wrapped with operation and range; a Device may return them.
type Errno uint32

// The numbers are part of the protocol.
const (
	EPERM     Errno = 1   // the export is read-only, or the operation is not allowed
	EIO       Errno = 5   // anything that failed below
	ENOMEM    Errno = 12  //
	EINVAL    Errno = 22  // a request that breaks the rules; reads past the end
	ENOSPC    Errno = 28  // no space, quota reached; writes past the end
	EOVERFLOW Errno = 75  // too long for one chunk
	ENOTSUP   Errno = 95  // what was asked for would be slow, or is not there
	ESHUTDOWN Errno = 108 // the server is going away
)

var errnoNames = map[Errno]string{
	EPERM: "operation not permitted", EIO: "input/output error", ENOMEM: "out of memory", EINVAL: "invalid argument",
	ENOSPC: "no space left on device", EOVERFLOW: "value too large", ENOTSUP: "operation not supported",
	ESHUTDOWN: "server is shutting down",
}

func (e Errno) Error() string {
	if s := errnoNames[e]; s != "" {
		return s
	}
	return fmt.Sprintf("nbd error %d", uint32(e))
}

// Is lets errors.Is(err, syscall.ENOSPC) and fs.ErrPermission find what a client's server said.
func (e Errno) Is(target error) bool {
	switch e {
	case EPERM:
		return target == fs.ErrPermission || target == syscall.EPERM
	case ENOSPC:
		return target == syscall.ENOSPC
	case EINVAL:
		return target == fs.ErrInvalid || target == syscall.EINVAL
	case EIO:
		return target == syscall.EIO
	}
	return false
}

// ErrnoOf is the one place where a Device's error becomes a number on the wire.
func ErrnoOf(err error) Errno {
	var e Errno
	var failed *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		if errnoNames[e] == "" {
			return EIO // no number of the protocol's
		}
		return e
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return ENOSPC
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return EPERM
	case errors.Is(err, fs.ErrInvalid), errors.Is(err, syscall.EINVAL):
		return EINVAL
	case errors.Is(err, syscall.ENOMEM):
		return ENOMEM
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.As(err, &failed) && failed.Kind == KindShutdown, errors.Is(err, context.Canceled):
		return ESHUTDOWN
	}
	return EIO
}
