package sms

import (
	"errors"
	"fmt"
)

// Code says why a message, a stream or a connection was refused. It travels as text; unknown ones are kept as they came.
type Code string

// The codes.
const (
	CodeProtocol     Code = "protocol"      // the peer broke the protocol: the connection is closed
	CodeVersion      Code = "version"       // no protocol version in common
	CodeAuth         Code = "auth"          // no, unknown or revoked certificate; wrong, used or expired enrolment token
	CodeUnknownRun   Code = "unknown_run"   // no run has this token, or it is over
	CodeUnknownOrder Code = "unknown_order" // the agent does not know this kind of order
	CodeRefused      Code = "refused"       // the agent does not do what is ordered; the message says why
	CodeNotFound     Code = "not_found"     // what an order names does not exist
	CodeNotShown     Code = "not_shown"     // fetch of something that the run was never shown
	CodeWrongBytes   Code = "wrong_bytes"   // bytes that do not have their digest, or do not decompress
	CodeBadNode      Code = "bad_node"      // not a node, or one with unknown children
	CodeNoSpace      Code = "no_space"      // the store is full
	CodeStore        Code = "store"         // the store failed otherwise
	CodeCancelled    Code = "cancelled"     // cancelled by the appliance
	CodeBusy         Code = "busy"          // too many streams or runs
	CodeTimeout      Code = "timeout"       // the peer is dead, or did not come back in time
	CodeShutdown     Code = "shutdown"      // the program ends
	CodeReplaced     Code = "replaced"      // a newer connection of the same client took over
	CodeInternal     Code = "internal"      // anything else
)

// Error is how every failure of this protocol shows, on both ends. Remote says that the peer reported it.
type Error struct {
	Code    Code
	Message string
	Remote  bool
	Err     error
}

// Errorf makes an Error of ours; %w keeps a cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Error implements error.
func (e *Error) Error() string {
	if e.Remote {
		return fmt.Sprintf("refused by the peer: %s (%s)", e.Message, e.Code)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Code)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first Error in err's chain, CodeInternal where there is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
