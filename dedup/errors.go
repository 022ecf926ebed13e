package dedup

import (
	"errors"
	"fmt"
)

// Kind says what went wrong, so that an edge can map it to a status without reading text.
type Kind uint8

const (
	// Other is an error without a kind of its own: I/O errors, mostly.
	Other Kind = iota
	// NotFound: the saveset, chunk or node does not exist.
	NotFound
	// Damaged: bytes of the store do not match their checksum, seal or digest, or a part is missing.
	Damaged
	// WrongKey: the key or password does not open this store.
	WrongKey
	// NoSpace: the disk is full, or the reserve would be touched. The store stays usable.
	NoSpace
	// UnknownChild: a node refers to a child that is not present and pinned for its run.
	UnknownChild
	// WrongDomain: an object belongs to another dedup domain.
	WrongDomain
	// WrongDigest: bytes that arrived do not have the digest they came under.
	WrongDigest
	// BadFrame: a frame that arrived does not decode, or breaks its limits.
	BadFrame
	// BadNode: a record that arrived is no well-formed node.
	BadNode
	// Locked: another process has the store open, or took it over.
	Locked
	// NewerFormat: written by a newer version of the program.
	NewerFormat
	// Condemned: the container is being removed.
	Condemned
	// Immutable: the saveset's immutable_until forbids the change.
	Immutable
	// InUse: a lease forbids the change.
	InUse
	// Closed: the store, run or view is closed; also every call on a run that has failed or ended.
	Closed
	// Exists: the store to create exists already.
	Exists
	// Invalid: the caller broke the contract of the call.
	Invalid
	// Retained: the saveset is locked against deletion.
	Retained
)

var kindNames = [...]string{"other", "not found", "damaged", "wrong key", "no space", "unknown child", "wrong domain",
	"wrong digest", "bad frame", "bad node", "locked", "newer format", "condemned", "immutable", "in use", "closed",
	"exists", "invalid", "locked against deletion"}

// String returns the kind's words; unknown kinds print as hex.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is the typed error of the engine. Err, when set, is the cause and is reached by errors.Is and errors.As.
type Error struct {
	Kind Kind
	// Op and Object say what was done to what: "put frame", "0000000100000003".
	Op, Object string
	Err        error
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
