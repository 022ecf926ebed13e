package machines

import (
	"errors"
	"fmt"
)

// Kind says what went wrong, so that the edge can map it to a status.
type Kind uint8

// Kinds.
const (
	Other    Kind = iota
	NotFound      // there is no such machine
	Invalid       // the saveset is of no machine, or the request makes no sense
	Conflict      // not in this state
	Refused       // by the agent
	Offline       // the agent is not connected
	Stopping      // the appliance stops
)

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
