package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Code says by name what went wrong, for programs. Codes are part of the API: they are added, never changed.
type Code string

// Codes of errors.
const (
	CodeBadRequest         Code = "bad_request"          // malformed or contradictory input
	CodeUnauthenticated    Code = "unauthenticated"      // no token, or one that is unknown, expired or removed
	CodeBadCredentials     Code = "bad_credentials"      // wrong user name or password
	CodePasswordChange     Code = "password_must_change" // the password must be changed before anything else
	CodeWeakPassword       Code = "weak_password"        // the new password does not meet the rules
	CodeForbidden          Code = "forbidden"            // the role does not allow it
	CodeNotFound           Code = "not_found"            // no such object
	CodeExists             Code = "exists"               // an object of this name exists
	CodeConflict           Code = "conflict"             // the object's state does not allow it (a run that has ended, say)
	CodeInUse              Code = "in_use"               // something still needs the object
	CodeTooLarge           Code = "too_large"            // the request body is larger than MaxBody
	CodeTooManyLogins      Code = "too_many_logins"      // too many failed logins: wait
	CodeClientOffline      Code = "client_offline"       // the agent is not connected
	CodeClientRevoked      Code = "client_revoked"       // the client's certificate is revoked
	CodeSourceRefused      Code = "source_refused"       // the agent refused the source (it does not exist, say)
	CodeStoreLocked        Code = "store_locked"         // the store is not open: wrong or missing key
	CodeWrongStoreKey      Code = "wrong_store_key"      // the password or recovery key does not open the store
	CodeKeyNeeded          Code = "key_needed"           // the saveset is of an encrypted task, and its key is not here
	CodeWrongTaskKey       Code = "wrong_task_key"       // the key is not that of the saveset's task
	CodeStoreUnwritable    Code = "store_unwritable"     // the store takes no writes: full, damaged
	CodeDamaged            Code = "damaged"              // stored bytes are damaged
	CodeNotSupported       Code = "not_supported"        // the appliance, the client or the object cannot do it
	CodeMountFailed        Code = "mount_failed"         // mounting failed
	CodeShuttingDown       Code = "shutting_down"        // the appliance is stopping
	CodeTimeout            Code = "timeout"              // it took too long
	CodeInternal           Code = "internal"             // a fault of the appliance
	CodeUnreachable        Code = "unreachable"          // made by clients only: no answer from the appliance
	CodeUntrusted          Code = "untrusted"            // made by clients only: the certificate is not the pinned one
	CodeNotLoggedIn        Code = "not_logged_in"        // made by clients only: no session
	CodeUnexpectedResponse Code = "unexpected_response"  // made by clients only: the answer is not the API's
)

// Error is the error of the API, on the wire a problem+json document (RFC 9457): type, title, status, detail, plus code,
// hint and the faults of single fields. The backend returns it (or an error that wraps it) where it knows what the
// caller should be told; api/client returns it for every answer that is not a success.
type Error struct {
	// Code is the name of the error.
	Code Code `json:"code" doc:"name of the error, for programs"`
	// Status is the HTTP status; 0 lets the server choose by Code.
	Status int `json:"status" doc:"HTTP status"`
	// Message is one sentence for people: what happened, to what. No stack, no secrets.
	Message string `json:"detail" doc:"what happened, in a sentence"`
	// Hint is one sentence for people: what to do now. May be empty.
	Hint string `json:"hint,omitempty" doc:"what to do about it, in a sentence"`
	// Fields names the faults of single fields of the request.
	Fields []FieldError `json:"errors,omitempty" doc:"faults of single fields"`
}

// FieldError is a fault of one field of a request.
type FieldError struct {
	Location string `json:"location,omitempty" doc:"where, like body.name or query.limit"`
	Message  string `json:"message" doc:"what is wrong with it"`
}

// Errorf makes an Error of the code, with the message formatted and the status that belongs to the code.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Status: StatusOf(code), Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of the error with the hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Error returns the message and the hint.
func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = string(e.Code)
	}
	for _, f := range e.Fields {
		s += "; " + f.String()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Is reports whether target is an *Error of the same code, so that errors.Is(err, &Error{Code: c}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// String returns "location: message".
func (f FieldError) String() string {
	if f.Location == "" {
		return f.Message
	}
	return f.Location + ": " + f.Message
}

// CodeOf returns the code of the *Error in err's chain, CodeInternal for any other error and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// StatusOf returns the HTTP status that belongs to a code; 500 for unknown ones.
func StatusOf(c Code) int {
	switch c {
	case CodeBadRequest, CodeWeakPassword, CodeSourceRefused, CodeWrongStoreKey, CodeWrongTaskKey:
		return http.StatusUnprocessableEntity
	case CodeUnauthenticated, CodeBadCredentials, CodeNotLoggedIn:
		return http.StatusUnauthorized
	case CodeForbidden, CodePasswordChange:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeExists, CodeConflict, CodeInUse, CodeClientOffline, CodeClientRevoked, CodeKeyNeeded:
		return http.StatusConflict
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeTooManyLogins:
		return http.StatusTooManyRequests
	case CodeStoreLocked, CodeShuttingDown, CodeUnreachable:
		return http.StatusServiceUnavailable
	case CodeStoreUnwritable:
		return http.StatusInsufficientStorage
	case CodeNotSupported:
		return http.StatusNotImplemented
	case CodeTimeout:
		return http.StatusGatewayTimeout
	case CodeUntrusted, CodeUnexpectedResponse:
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}
