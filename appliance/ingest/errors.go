package ingest

import (
	"errors"

	"coffer/appliance/sms"
	"coffer/dedup"
)

// wireError makes an *sms.Error of an error of the store: the code that the agent and the run's record get to see. The
// cause stays within reach of errors.Is and errors.As.
func wireError(err error) *sms.Error {
	if e, ok := errors.AsType[*sms.Error](err); ok {
		return e
	}
	code := sms.CodeStore
	switch dedup.KindOf(err) {
	case dedup.WrongDigest, dedup.BadFrame:
		code = sms.CodeWrongBytes
	case dedup.BadNode, dedup.UnknownChild, dedup.WrongDomain:
		code = sms.CodeBadNode
	case dedup.NoSpace:
		code = sms.CodeNoSpace
	}
	return &sms.Error{Code: code, Message: err.Error(), Err: err}
}
