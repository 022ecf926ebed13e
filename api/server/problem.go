package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"coffer/api"
)

// problem is an api.Error as an RFC 9457 document.
type problem struct {
	Type   string           `json:"type" doc:"urn:coffer:error: and the code" example:"urn:coffer:error:not_found"`
	Title  string           `json:"title" doc:"the HTTP status in words"`
	Status int              `json:"status" doc:"HTTP status"`
	Code   api.Code         `json:"code" doc:"name of the error, for programs" example:"not_found"`
	Detail string           `json:"detail" doc:"what happened, in a sentence"`
	Hint   string           `json:"hint,omitempty" doc:"what to do about it, in a sentence"`
	Errors []api.FieldError `json:"errors,omitempty" doc:"faults of single fields"`

	retryAfter time.Duration
}

var (
	_ huma.StatusError       = (*problem)(nil)
	_ huma.ContentTypeFilter = (*problem)(nil)
	_ huma.HeadersError      = (*problem)(nil)
)

// Error returns the sentence.
func (p *problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *problem) GetStatus() int { return p.Status }

// ContentType makes the document problem+json.
func (p *problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders returns the headers that belong to the status.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	return h
}

// newProblem completes an api.Error.
func newProblem(e *api.Error) *problem {
	p := &problem{Type: "urn:coffer:error:" + string(e.Code), Status: e.Status, Code: e.Code, Detail: e.Message, Hint: e.Hint, Errors: e.Fields}
	if p.Status == 0 {
		p.Status = api.StatusOf(e.Code)
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// problemOf maps any error of a handler to what the caller is told. It is the one place where that is decided.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return newProblem(e)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return newProblem(api.Errorf(api.CodeTimeout, "the appliance took too long to answer").
			WithHint("try again; if it stays so, look at the appliance's log"))
	}
	if errors.Is(err, context.Canceled) {
		return newProblem(api.Errorf(api.CodeShuttingDown, "the call was cancelled"))
	}
	return newProblem(api.Errorf(api.CodeInternal, "the appliance met an internal error").
		WithHint("its log says more"))
}

// problemOfHuma maps huma's own faults: input that does not fit the schema, a body too large or not JSON. The values
// that huma would echo are left out: a password may be among them.
func problemOfHuma(m *huma.ErrorModel) *problem {
	e := &api.Error{Code: codeOfStatus(m.Status), Status: m.Status, Message: "the request is not valid"}
	if e.Code != api.CodeBadRequest {
		e.Message = m.Detail
	}
	for _, d := range m.Errors {
		e.Fields = append(e.Fields, api.FieldError{Location: d.Location, Message: d.Message})
	}
	if len(e.Fields) == 0 {
		e.Message = m.Detail
	}
	return newProblem(e)
}

func codeOfStatus(status int) api.Code {
	switch status {
	case http.StatusRequestEntityTooLarge:
		return api.CodeTooLarge
	case http.StatusRequestTimeout:
		return api.CodeTimeout
	case http.StatusNotFound:
		return api.CodeNotFound
	}
	if status >= 500 {
		return api.CodeInternal
	}
	return api.CodeBadRequest
}

// transformProblem is the huma transformer that turns huma's error documents into ours.
func transformProblem(_ huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		return problemOfHuma(m), nil
	}
	return v, nil
}

// writeProblem answers outside huma's handlers.
func writeProblem(w http.ResponseWriter, p *problem) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a caller that is gone needs no answer
}
