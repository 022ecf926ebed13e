package index

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/dgraph-io/badger/v4"

	"coffer/dedup/vfs"
)

// Kind classifies an Error by what its receiver can do about it.
type Kind uint8

const (
	KindIO          Kind = iota // the file system, or badger, refused
	KindCorrupt                 // damaged: Remove and rebuild
	KindForeign                 // of another store: Remove and rebuild
	KindNewerFormat             // written by a newer version: Remove and rebuild, or use that version
	KindNoSpace                 // the reserve is reached
	KindLocked                  // another process, or another Index of this one, has it open
	KindClosed
)

func (k Kind) String() string {
	switch k {
	case KindIO:
		return "I/O"
	case KindCorrupt:
		return "corrupt"
	case KindForeign:
		return "of another store"
	case KindNewerFormat:
		return "newer format"
	case KindNoSpace:
		return "no space"
	case KindLocked:
		return "locked"
	case KindClosed:
		return "closed"
	}
	return fmt.Sprintf("kind(%#02x)", uint8(k))
}

// Error is every error of this package, but those of a context.
type Error struct {
	Op   string
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("index: %s: %v: %v", e.Op, e.Kind, e.Err) }

func (e *Error) Unwrap() error { return e.Err }

// IsDamage tells whether an error says that the index must be removed and rebuilt.
func IsDamage(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Kind == KindCorrupt || e.Kind == KindForeign || e.Kind == KindNewerFormat)
}

var (
	errDamage = errors.New("damaged")
	errClosed = errors.New("index is closed")
)

// guard runs f and turns a panic into an error: badger trusts its files.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: panic: %.200v", errDamage, r)
		}
	}()
	return f()
}

// classify wraps an error of badger while it works. Those that the system gave are I/O; what is left is about content.
func classify(op string, err error) error {
	var own *Error
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &own):
		return err
	}
	return &Error{Op: op, Kind: kindOf(err), Err: err}
}

func kindOf(err error) Kind {
	var errno syscall.Errno
	switch {
	case vfs.IsNoSpace(err):
		return KindNoSpace
	case errors.Is(err, errDamage):
		return KindCorrupt
	case errors.Is(err, badger.ErrDBClosed), errors.Is(err, badger.ErrBlockedWrites):
		return KindClosed
	case errors.Is(err, syscall.ENOENT): // a table that badger's manifest names
		return KindCorrupt
	case errors.As(err, &errno):
		return KindIO
	}
	return KindCorrupt
}
