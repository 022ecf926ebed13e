package exports

import (
	"errors"
	"fmt"
)

// Kind says what went wrong, so that the edge can map it to a status.
type Kind uint8

const (
	Other    Kind = iota
	NotFound      // there is no such export, saveset or disk
	Invalid       // the request makes no sense
	InUse         // connections are open, or it is being committed
	Locked        // the store is not open
	Sealed        // the task's key is needed
	Broken        // the export cannot be served any more
	Full          // no space for it
)

var kindNames = [...]string{"other", "not found", "invalid", "in use", "locked", "sealed", "broken", "full"}

// String returns the kind's words; unknown kinds print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is the typed error of the package. Its text is for people and says all.
type Error struct {
	Kind Kind
	Text string
	Err  error // may be nil
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

func failf(k Kind, err error, format string, args ...any) error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the first *Error in err's chain, Other when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Other
}
