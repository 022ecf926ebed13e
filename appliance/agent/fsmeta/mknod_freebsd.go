package fsmeta

import (
	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

// Mknod makes a device or fifo with the mode's type, for its owner only.
func (d *Dir) Mknod(name string, mode uint32, rdev uint64) error {
	var dev uint64
	switch mode & recipe.ModeType {
	case recipe.ModeFifo:
		return errnoErr(unix.Mknodat(d.fd, name, mode&recipe.ModeType|0o600, 0))
	case recipe.ModeBlock, recipe.ModeChar:
		dev = unix.Mkdev(deviceNumbers(rdev))
		return errnoErr(unix.Mknodat(d.fd, name, mode&recipe.ModeType|0o600, dev))
	}
	return ErrUnsupported
}
