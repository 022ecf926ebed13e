//go:build darwin || freebsd

package fsmeta

import (
	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

const (
	oNoATime      = 0
	atNoAutomount = 0
	errNoAttr     = unix.ENOATTR
)

// Names appends all names of the directory but "." and "..", in no order.
func (d *Dir) Names(sc *Scratch, names []Named) ([]Named, error) {
	buf := sc.buffer(&sc.dirents, 64<<10)
	for {
		n, err := unix.ReadDirent(d.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return names, errnoErr(err)
		}
		if n <= 0 {
			return names, nil
		}
		_, _, list := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range list {
			names = append(names, Named{Name: name})
		}
	}
}

// Xattrs returns the attributes of the directory itself, ascending by name.
func (d *Dir) Xattrs(sc *Scratch) ([]recipe.Xattr, error) { return readXattrs(fdAttrs(d.fd), sc) }

// Xattrs returns the attributes of the file, ascending by name.
func (f File) Xattrs(sc *Scratch) ([]recipe.Xattr, error) { return readXattrs(fdAttrs(f.fd), sc) }

// LXattrs returns none: these systems reach the attributes of a file that is not opened by its path only.
func (d *Dir) LXattrs(string, *Scratch) ([]recipe.Xattr, error) { return nil, nil }

// Flags returns 0: chflags' flags are not Linux' and are not kept.
func (d *Dir) Flags() (uint32, error) { return 0, nil }

// Flags returns 0: chflags' flags are not Linux' and are not kept.
func (f File) Flags() (uint32, error) { return 0, nil }

// pseudo are the file systems whose files are the kernel's and not data.
var pseudo = map[string]bool{"devfs": true, "procfs": true, "linprocfs": true, "linsysfs": true, "fdescfs": true,
	"autofs": true, "tracefs": true}

// Mount tells what the directory lies on.
func (d *Dir) Mount() (Mount, error) {
	var raw unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &raw); err != nil {
		return Mount{}, errnoErr(err)
	}
	name := fstypeName(&raw)
	return Mount{Type: name, Pseudo: pseudo[name]}, nil
}
