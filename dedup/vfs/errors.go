package vfs

import (
	"errors"
	"syscall"
)

// ErrLocked is what Lock returns when another holder has the lock.
var ErrLocked = errors.New("locked by another process")

// IsNoSpace tells whether an error says that the disk, or a quota, is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, errQuota)
}

// IsCrossDevice tells whether a rename failed because the new name lies in another file system.
func IsCrossDevice(err error) bool { return errors.Is(err, syscall.EXDEV) }

// IsInvalid tells whether the file system refuses a call in this form, as those do that cannot write past the cache.
func IsInvalid(err error) bool { return errors.Is(err, syscall.EINVAL) }
