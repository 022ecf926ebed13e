package jobs

import (
	"errors"
	"fmt"
)

// Kind tells why a start or a cancel was refused.
type Kind uint8

// Kinds of errors.
const (
	KindOther      Kind = iota
	KindNotFound        // no such task, client, saveset or run
	KindInvalid         // the request contradicts itself or the saveset
	KindOffline         // the client's agent is not connected
	KindPending         // the client's agent has not enrolled yet
	KindRevoked         // the client's certificate is revoked
	KindEnded           // the run has ended
	KindNoStore         // the store is not open
	KindStopping        // the appliance is stopping
	KindUnwritable      // store or catalog take no writes
)

var kindNames = [...]string{"other", "not found", "invalid", "offline", "pending", "revoked", "ended", "no store", "stopping", "unwritable"}

// String names the kind; unknown ones print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is a refusal: Message says what happened, Hint what to do.
type Error struct {
	Kind          Kind
	Message, Hint string
	Err           error // may be nil
}

func refuse(kind Kind, hint, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Error returns the message and the hint.
func (e *Error) Error() string {
	s := e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
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
