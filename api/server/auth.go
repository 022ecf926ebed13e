package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"coffer/api"
)

// authorize is the middleware of every operation: it finds the caller by the bearer token, holds the call against the
// table of operations, and puts the caller into the context.
func (s *Server) authorize(ctx huma.Context, next func(huma.Context)) {
	op := s.table[ctx.Operation().OperationID]
	caller := api.Caller{Remote: remoteOf(ctx.RemoteAddr())}
	ctx = huma.WithValue(ctx, controllerKey{}, http.NewResponseController(humagin.Unwrap(ctx).Writer))
	if op.roles == nil {
		next(huma.WithContext(ctx, api.WithCaller(ctx.Context(), caller)))
		return
	}
	id, err := s.authenticate(ctx.Context(), ctx.Header("Authorization"))
	if err == nil {
		caller.Identity = id
		err = permit(op, id)
		if err != nil && op.audit != "" {
			s.recordRefusal(ctx, op, caller, err)
		}
	}
	if err != nil {
		p := problemOf(err)
		if p.Code == api.CodeInternal {
			s.log.Error("API call could not be authenticated", "operation", op.id, "error", err)
		}
		writeProblem(humagin.Unwrap(ctx).Writer, p)
		return
	}
	next(huma.WithContext(ctx, api.WithCaller(ctx.Context(), caller)))
}

// controllerKey is the context key of the call's *http.ResponseController.
type controllerKey struct{}

// bodyRead lifts the deadline for reading the request. Without it, net/http would take the deadline's passing for a
// caller that is gone, and cancel a call that takes longer than its body may.
func bodyRead(ctx context.Context) {
	if c, ok := ctx.Value(controllerKey{}).(*http.ResponseController); ok {
		_ = c.SetReadDeadline(time.Time{}) // of the connections we serve, all can
	}
}

// authenticate finds whose token an Authorization header carries.
func (s *Server) authenticate(ctx context.Context, header string) (api.Identity, error) {
	scheme, token, _ := strings.Cut(header, " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return api.Identity{}, api.Errorf(api.CodeUnauthenticated, "this call needs a login").
			WithHint("log in with 'coffer login', or send 'Authorization: Bearer TOKEN'")
	}
	return s.backend.Authenticate(ctx, token)
}

// permit holds an identity against the table.
func permit(op operation, id api.Identity) error {
	if id.User.MustChange && !op.early {
		return api.Errorf(api.CodePasswordChange, "user %s must change the password first", id.User.Name).
			WithHint("change it with 'coffer passwd'")
	}
	if !op.allows(id.User.Role) {
		return api.Errorf(api.CodeForbidden, "role %s may not do this (%s)", id.User.Role, lowerFirst(op.summary)).
			WithHint("roles that may: %s", roleList(op.roles))
	}
	return nil
}

// callerOf returns the caller of a handler's context; authorize has put it there.
func callerOf(ctx context.Context) api.Caller {
	c, _ := api.CallerFrom(ctx)
	return c
}

// reach refuses callers who do not reach the client.
func reach(ctx context.Context, client string) error {
	c := callerOf(ctx)
	if c.Reaches(client) {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "user %s does not reach client %s", c.User.Name, client).
		WithHint("the superuser grants it with 'coffer user role %s %s --client %s'", c.User.Name, c.User.Role, client)
}

// reachable returns the clients to which lists are limited for this caller: nil means all.
func reachable(ctx context.Context) []string {
	c := callerOf(ctx)
	if !c.User.Role.Limited() || slices.Contains(c.User.Clients, api.AllClients) {
		return nil
	}
	return append([]string{}, c.User.Clients...)
}

func roleList(roles []api.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

func lowerFirst(s string) string {
	if s == "" || strings.HasPrefix(s, "API") {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
