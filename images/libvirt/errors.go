package libvirt

import (
	"errors"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Kind tells what went wrong, for those who treat it differently.
type Kind uint8

// Kinds of errors.
const (
	KindOther       Kind = iota
	KindInvalid          // a URI, name or option that cannot be used
	KindUnreachable      // the host, its libvirtd or its files cannot be reached, or the connection was lost
	KindNoDomain         // no such domain
	KindLost             // a checkpoint, or the bitmap of a disk in it, is gone or inconsistent: only a full backup helps
	KindBusy             // a job of somebody else runs on the domain
	KindNotFound         // no such file
)

var kindNames = [...]string{"other", "invalid", "unreachable", "no domain", "checkpoint lost", "busy", "not found"}

// String names the kind; unknown ones print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is what the methods of this package return.
type Error struct {
	Kind Kind
	Op   string // what was tried, with the object
	Err  error
}

func (e *Error) Error() string { return e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func failf(kind Kind, op, format string, args ...any) *Error {
	return &Error{kind, op, fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the first Error in err's chain, KindOther where there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindOther
}

// codeOf returns libvirt's number of an error, 0 for one that is not libvirt's.
func codeOf(err error) golibvirt.ErrorNumber {
	if e, ok := errors.AsType[golibvirt.Error](err); ok {
		return golibvirt.ErrorNumber(e.Code)
	}
	return 0
}

// failure makes an Error of what a call of libvirt returned; nil stays nil.
func failure(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{e.Kind, op, err}
	}
	kind := KindOther
	switch codeOf(err) {
	case golibvirt.ErrNoDomain:
		kind = KindNoDomain
	case golibvirt.ErrNoDomainCheckpoint, golibvirt.ErrCheckpointInconsistent:
		kind = KindLost
	}
	return &Error{kind, op, err}
}
