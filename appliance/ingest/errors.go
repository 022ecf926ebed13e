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

// ended is why a run is over, told to an agent that comes to it later: no fault of the message that asked.
type ended struct{ err *sms.Error }

func (e ended) Error() string { return e.err.Error() }

func (e ended) Unwrap() error { return e.err }
