package maintenance

import (
	"errors"
	"fmt"
)

// ErrorKind tells why a start or a cancel was refused.
type ErrorKind uint8

// Kinds of errors.
const (
	KindOther       ErrorKind = iota
	KindNotFound              // no such job
	KindInvalid               // options that do not go with the kind
	KindWaiting               // a job of the kind waits already
	KindEnded                 // the job has ended
	KindUnsupported           // this appliance cannot do it
	KindStopping              // the appliance is stopping
)

var errorKindNames = [...]string{"other", "not found", "invalid", "waiting", "ended", "unsupported", "stopping"}

// String names the kind; unknown ones print as hex.
func (k ErrorKind) String() string {
	if int(k) < len(errorKindNames) {
		return errorKindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is a refusal: Message says what happened, Hint what to do.
type Error struct {
	Kind          ErrorKind
	Message, Hint string
}

func refuse(kind ErrorKind, hint, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Error returns the message and the hint.
func (e *Error) Error() string {
	if e.Hint != "" {
		return e.Message + " (" + e.Hint + ")"
	}
	return e.Message
}

// KindOf returns the kind of the first Error in err's chain, KindOther where there is none.
func KindOf(err error) ErrorKind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindOther
}
