//go:build linux || darwin || freebsd

package fsmeta

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"coffer/dedup/recipe"
)

const (
	listBuffer  = 4 << 10
	valueBuffer = 64 << 10 // the longest value that Linux has
	maxXattrs   = 1 << 20  // bytes of a list, or of a value, beyond which it is refused
)

// attrs are the two ways to a file's attributes: its descriptor, and a path where it cannot be opened.
type attrs interface {
	list(dst []byte) (int, error)
	get(name string, dst []byte) (int, error)
}

type fdAttrs int

func (a fdAttrs) list(dst []byte) (int, error)             { return unix.Flistxattr(int(a), dst) }
func (a fdAttrs) get(name string, dst []byte) (int, error) { return unix.Fgetxattr(int(a), name, dst) }

type pathAttrs string

func (a pathAttrs) list(dst []byte) (int, error) { return unix.Llistxattr(string(a), dst) }
func (a pathAttrs) get(name string, dst []byte) (int, error) {
	return unix.Lgetxattr(string(a), name, dst)
}

// readXattrs reads all attributes; a file system without any has none.
func readXattrs(a attrs, sc *Scratch) ([]recipe.Xattr, error) {
	list, err := sized(sc.buffer(&sc.list, listBuffer), func(dst []byte) (int, error) { return a.list(dst) })
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", errnoErr(err))
	}
	if len(list) == 0 {
		return nil, nil
	}
	names := splitNames(list)
	slices.Sort(names)
	out := make([]recipe.Xattr, 0, len(names))
	for _, name := range slices.Compact(names) {
		value, err := sized(sc.buffer(&sc.value, valueBuffer), func(dst []byte) (int, error) { return a.get(name, dst) })
		if err == errNoAttr || err == unix.EOPNOTSUPP {
			continue // removed meanwhile, or listed but not to be had
		}
		if err != nil {
			return out, fmt.Errorf("read extended attribute %q: %w", name, errnoErr(err))
		}
		out = append(out, recipe.Xattr{Name: name, Value: slices.Clone(value)})
	}
	return out, nil
}

// sized calls get with more and more room.
func sized(buf []byte, get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(buf)
		switch {
		case err == nil:
			return buf[:n], nil
		case err == unix.EINTR:
		case err == unix.ERANGE && len(buf) < maxXattrs:
			buf = make([]byte, 4*len(buf))
		default:
			return nil, err
		}
	}
}
