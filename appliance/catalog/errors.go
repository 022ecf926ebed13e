package catalog

import (
	"database/sql"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Kind tells what kind of failure an Error is.
type Kind uint8

// Kinds of errors.
const (
	KindOther    Kind = iota
	KindNotFound      // no such row
	KindExists        // a row of that name exists
	KindInUse         // other rows need it
	KindExpired       // a token's time is over
	KindUsed          // a one-time token was used before
	KindNoSpace       // the disk is full
	KindDamaged       // the database file is not whole
	KindNewer         // written by a newer program
)

var kindNames = [...]string{"other", "not found", "exists", "in use", "expired", "used", "no space", "damaged", "newer schema"}

// String names the kind; unknown ones print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is what every method of the catalog returns: Op is the operation and its object.
type Error struct {
	Kind Kind
	Op   string
	Err  error // may be nil
}

// Error joins operation, kind and cause.
func (e *Error) Error() string {
	switch {
	case e.Kind == KindNoSpace:
		return fmt.Sprintf("catalog: %s: no space left on its disk: %v", e.Op, e.Err)
	case e.Err == nil:
		return fmt.Sprintf("catalog: %s: %s", e.Op, e.Kind)
	}
	return fmt.Sprintf("catalog: %s: %v", e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first Error in err's chain, KindOther where there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindOther
}

// fail turns any error of the driver into an Error; nil stays nil. An Error stays as it is.
func (c *Catalog) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return &Error{Kind: c.classify(err), Op: op, Err: err}
}

func failf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Op: fmt.Sprintf(format, args...)}
}

func (c *Catalog) classify(err error) Kind {
	if errors.Is(err, sql.ErrNoRows) {
		return KindNotFound
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return KindNoSpace
	}
	serr, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return KindOther
	}
	switch code := serr.Code(); code & 0xff { // the low byte is the primary result code
	case sqlite3.SQLITE_FULL:
		return KindNoSpace
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
		// Where the journal or the shared memory cannot grow, SQLite tells of an I/O error without errno.
		if c.diskFull() {
			return KindNoSpace
		}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return KindDamaged
	case sqlite3.SQLITE_CONSTRAINT:
		return constraintKind(code)
	}
	return KindOther
}

func constraintKind(code int) Kind {
	switch code {
	case sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE:
		return KindExists
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return KindInUse
	}
	return KindOther
}

// fullBelow is the free space under which an I/O error is taken for a full disk: less than one growth of the journal.
const fullBelow = 1 << 20

func (c *Catalog) diskFull() bool {
	var st unix.Statfs_t
	return unix.Statfs(c.dir, &st) == nil && st.Bavail*uint64(st.Bsize) < fullBelow
}
