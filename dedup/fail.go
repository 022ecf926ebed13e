package dedup

import (
	"context"
	"errors"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/frame"
	"coffer/dedup/index"
	"coffer/dedup/keys"
	"coffer/dedup/recipe"
	"coffer/dedup/vfs"
)

// wrap makes an *Error of an error from below, with the kind that its chain tells. An *Error passes as it is.
func wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Kind: kindFromBelow(err), Op: op, Object: object, Err: err}
}

// sentinels of the packages below, and what they mean here. The first match counts.
var sentinels = [...]struct {
	err  error
	kind Kind
}{
	{context.Canceled, Other},
	{context.DeadlineExceeded, Other},
	{blob.ErrLocked, Locked},
	{vfs.ErrLocked, Locked},
	{blob.ErrNotExist, NotFound},
	{container.ErrNewerFormat, NewerFormat},
	{container.ErrDamaged, Damaged},
	{keys.ErrWrongKey, WrongKey},
	{keys.ErrNewerFormat, NewerFormat},
	{keys.ErrDamaged, Damaged},
	{keys.ErrUnknownKey, WrongKey},
	{keys.ErrInvalid, Invalid},
	{frame.ErrWrongDigest, WrongDigest},
	{frame.ErrMalformed, BadFrame},
}

func kindFromBelow(err error) Kind {
	if vfs.IsNoSpace(err) {
		return NoSpace
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.kind
		}
	}
	var node *recipe.Error
	if errors.As(err, &node) {
		return BadNode
	}
	var idx *index.Error
	if errors.As(err, &idx) {
		return kindFromIndex(idx.Kind)
	}
	return Other
}

func kindFromIndex(k index.Kind) Kind {
	switch k {
	case index.KindNoSpace:
		return NoSpace
	case index.KindLocked:
		return Locked
	case index.KindClosed:
		return Closed
	case index.KindCorrupt, index.KindForeign:
		return Damaged
	case index.KindNewerFormat:
		return NewerFormat
	}
	return Other
}
