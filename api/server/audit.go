package server

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"coffer/api"
)

// audited is an input that says what the audit log should name: the object, and the parameters worth keeping.
type audited interface {
	audit() (object, detail string)
}

// record writes an operation that has been done, or has failed, to the audit log.
func (s *Server) record(ctx context.Context, op operation, in any, failure error) error {
	if op.audit == "" || failure != nil && problemOf(failure).Code == api.CodeTooManyLogins {
		return nil
	}
	caller := callerOf(ctx)
	e := api.AuditEntry{User: caller.User.Name, Remote: caller.Remote, Action: op.audit, OK: failure == nil}
	if a, ok := in.(audited); ok {
		e.Object, e.Detail = a.audit()
	}
	if e.User == "" { // a login: its object is the user
		e.User = e.Object
	}
	if failure != nil {
		e.Detail = problemOf(failure).Detail
	}
	return s.append(ctx, e)
}

// recordRefusal writes a call that was not permitted.
func (s *Server) recordRefusal(ctx huma.Context, op operation, c api.Caller, err error) {
	u := ctx.URL()
	e := api.AuditEntry{User: c.User.Name, Remote: c.Remote, Action: op.audit, Object: u.Path, Detail: problemOf(err).Detail}
	if err := s.append(ctx.Context(), e); err != nil {
		s.log.Error("audit log not written", "action", e.Action, "user", e.User, "error", err)
	}
}

// append records an entry even when the caller has gone meanwhile.
func (s *Server) append(ctx context.Context, e api.AuditEntry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	e.Time = time.Now().UTC()
	if err := s.backend.Record(ctx, e); err != nil {
		return fmt.Errorf("record %s in the audit log: %w", e.Action, err)
	}
	return nil
}

type auditInput struct {
	User   string    `query:"user" maxLength:"64" doc:"only this user's"`
	Action string    `query:"action" maxLength:"64" doc:"only this action, like restore"`
	Since  time.Time `query:"since" doc:"only since then"`
	PageInput
}

func (s *Server) listAudit(ctx context.Context, in *auditInput) (*body[api.Page[api.AuditEntry]], error) {
	return pageBody(s.backend.AuditLog(ctx, api.AuditFilter{User: in.User, Action: in.Action, Since: in.Since, Before: in.Before, Limit: in.Limit}))
}
