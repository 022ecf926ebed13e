package recipe

import (
	"errors"
	"fmt"
)

// ErrNotFound: Lookup's directory has no such name.
var ErrNotFound = errors.New("not found")

// SkipDir is returned by Walk's function to leave a directory out.
//
//lint:ignore ST1012 the name that io/fs has for it
var SkipDir = errors.New("skip this directory")

// ErrorKind tells the errors of nodes apart.
type ErrorKind uint8

// The kinds of errors.
const (
	Malformed    ErrorKind = iota + 1 // the record breaks a rule of the format
	NewerVersion                      // the record has a version that this program does not know
	UnknownField                      // the record has a kind or field that this program does not know
	Sealed                            // the body is sealed by a task's own key
	BadName                           // an entry's name cannot be a name
	BadOrder                          // names are not strictly ascending
	BadEntry                          // an entry that is added contradicts itself
	TooLong                           // something exceeds a limit of the format
	Mismatch                          // a child is not what its parent says
)

func (k ErrorKind) String() string {
	switch k {
	case Malformed:
		return "malformed node"
	case NewerVersion:
		return "newer node version"
	case UnknownField:
		return "unknown field in node"
	case Sealed:
		return "sealed node"
	case BadName:
		return "invalid name"
	case BadOrder:
		return "names out of order"
	case BadEntry:
		return "invalid entry"
	case TooLong:
		return "too long"
	case Mismatch:
		return "child does not match its parent"
	}
	return fmt.Sprintf("error kind(0x%02x)", uint8(k))
}

// Error is the error of every decoder and builder here.
type Error struct {
	Kind   ErrorKind
	Detail string
}

func (e *Error) Error() string { return "recipe: " + e.Kind.String() + ": " + e.Detail }

// fail makes an *Error.
func fail(k ErrorKind, format string, args ...any) error {
	return &Error{Kind: k, Detail: fmt.Sprintf(format, args...)}
}
