package overlay

import (
	"errors"
	"fmt"
	"syscall"
)

// Kind says what went wrong.
type Kind uint8

const (
	Other       Kind = iota // I/O
	Damaged                 // the map or the data file is not what it was
	NewerFormat             // written by a newer version of the program
	Mismatch                // the base is not the disk that the overlay was made for
	Full                    // the overlay's limit, or the reserve of its file system; wraps ENOSPC
	Failed                  // a sync failed before: nothing is written any more
	Closed                  // the overlay is closed
	Invalid                 // the caller broke the contract of the call
)

var kindNames = [...]string{"other", "damaged", "newer format", "another disk", "full", "failed", "closed", "invalid"}

// String returns the kind's words; unknown kinds print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is the typed error of the package.
type Error struct {
	Kind   Kind
	Op     string // what was done
	Object string // to what: the directory, a range
	Err    error
}

func (e *Error) Error() string {
	s := e.Op
	if e.Object != "" {
		s += " " + e.Object
	}
	if e.Kind != Other {
		s += ": " + e.Kind.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain, Other when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Other
}

// full is a refusal for want of space.
func full(op, why string) error {
	return &Error{Kind: Full, Op: op, Object: why, Err: syscall.ENOSPC}
}
