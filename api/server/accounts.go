package server

import (
	"context"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"coffer/api"
)

type loginInput struct {
	Body api.LoginRequest
}

func (in *loginInput) audit() (object, detail string) { return in.Body.User, "" }

func (s *Server) login(ctx context.Context, in *loginInput) (*body[api.Session], error) {
	var session api.Session
	err := s.guarded(ctx, in.Body.User, func() (err error) {
		session, err = s.backend.Login(ctx, in.Body)
		return err
	})
	return bodyOf(session, err)
}

// guarded runs a check of user's password within the limits of the limiter.
func (s *Server) guarded(ctx context.Context, user string, check func() error) error {
	address := callerOf(ctx).Remote
	if wait := s.logins.allow(address, user); wait > 0 {
		p := newProblem(api.Errorf(api.CodeTooManyLogins, "too many wrong passwords from %s or for user %s", address, user).
			WithHint("try again in %d seconds", int(math.Ceil(wait.Seconds()))))
		p.retryAfter = wait.Truncate(time.Second) + time.Second
		return p
	}
	if err := s.logins.enter(ctx); err != nil {
		s.logins.forgive(address, user)
		return err
	}
	defer s.logins.leave()
	err := check()
	if api.CodeOf(err) != api.CodeBadCredentials {
		s.logins.forgive(address, user)
	}
	return err
}

func (s *Server) logout(ctx context.Context, _ *noInput) (*noOutput, error) {
	c := callerOf(ctx)
	if !c.Session {
		return nil, api.Errorf(api.CodeConflict, "an API token has no session to end").
			WithHint("remove it with 'coffer token remove %s'", c.TokenID)
	}
	return nil, s.backend.Logout(ctx, c.TokenID)
}

func (s *Server) whoami(ctx context.Context, _ *noInput) (*body[api.Identity], error) {
	return bodyOf(callerOf(ctx).Identity, nil)
}

type passwordInput struct {
	Body api.PasswordChange
}

func (s *Server) changePassword(ctx context.Context, in *passwordInput) (*noOutput, error) {
	c := callerOf(ctx)
	if !c.Session {
		return nil, api.Errorf(api.CodeForbidden, "a password cannot be changed with an API token").
			WithHint("log in with 'coffer login' first")
	}
	if err := checkPassword(c.User.Name, in.Body.New); err != nil {
		return nil, err
	}
	if in.Body.New == in.Body.Old {
		return nil, api.Errorf(api.CodeWeakPassword, "the new password is the old one")
	}
	return nil, s.guarded(ctx, c.User.Name, func() error {
		return s.backend.ChangePassword(ctx, c.User.Name, c.TokenID, in.Body)
	})
}

// checkPassword holds a new password against the rules: long enough, and not the user's name.
func checkPassword(user, password string) error {
	if utf8.RuneCountInString(password) < api.MinPassword {
		return api.Errorf(api.CodeWeakPassword, "the password is shorter than %d characters", api.MinPassword)
	}
	if strings.EqualFold(user, password) {
		return api.Errorf(api.CodeWeakPassword, "the password is the user's name")
	}
	return nil
}

func (s *Server) listUsers(ctx context.Context, _ *noInput) (*body[api.Page[api.User]], error) {
	users, err := s.backend.Users(ctx)
	return listBody(users, err, nil)
}

type userInput struct {
	Body api.UserSpec
}

func (in *userInput) audit() (object, detail string) {
	return in.Body.Name, grant(in.Body.Role, in.Body.Clients)
}

func grant(r api.Role, clients []string) string {
	if len(clients) == 0 {
		return "role " + string(r)
	}
	return "role " + string(r) + ", clients " + strings.Join(clients, " ")
}

func (s *Server) addUser(ctx context.Context, in *userInput) (*body[api.User], error) {
	if err := checkPassword(in.Body.Name, in.Body.Password); err != nil {
		return nil, err
	}
	if err := checkClients(in.Body.Role, in.Body.Clients); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.AddUser(ctx, in.Body))
}

func checkClients(r api.Role, clients []string) error {
	if len(clients) > 0 && !r.Limited() {
		return api.Errorf(api.CodeBadRequest, "role %s reaches every client: it takes no list of clients", r)
	}
	return nil
}

type roleInput struct {
	Name string `path:"name" maxLength:"64"`
	Body api.UserRole
}

func (in *roleInput) audit() (object, detail string) {
	return in.Name, grant(in.Body.Role, in.Body.Clients)
}

func (s *Server) setUserRole(ctx context.Context, in *roleInput) (*body[api.User], error) {
	if err := checkClients(in.Body.Role, in.Body.Clients); err != nil {
		return nil, err
	}
	return bodyOf(s.backend.SetUserRole(ctx, in.Name, in.Body))
}

func (s *Server) removeUser(ctx context.Context, in *nameInput) (*noOutput, error) {
	return nil, s.backend.RemoveUser(ctx, in.Name)
}

func (s *Server) listTokens(ctx context.Context, _ *noInput) (*body[api.Page[api.Token]], error) {
	tokens, err := s.backend.Tokens(ctx, ownOrAll(ctx))
	return listBody(tokens, err, nil)
}

// ownOrAll is the user whose tokens a caller sees: "" (all) for the superuser.
func ownOrAll(ctx context.Context) string {
	c := callerOf(ctx)
	if c.User.Role == api.RoleSuperuser {
		return ""
	}
	return c.User.Name
}

type tokenInput struct {
	Body api.TokenSpec
}

func (in *tokenInput) audit() (object, detail string) { return in.Body.Name, "" }

// addToken wants a login: a leaked token with an end must not make one without.
func (s *Server) addToken(ctx context.Context, in *tokenInput) (*body[api.NewToken], error) {
	if !callerOf(ctx).Session {
		return nil, api.Errorf(api.CodeForbidden, "an API token cannot make further API tokens").
			WithHint("log in with 'coffer login' first")
	}
	if t := in.Body.ExpiresAt; t != nil && !t.After(time.Now()) {
		return nil, api.Errorf(api.CodeBadRequest, "the token would expire in the past, at %s", t.UTC().Format(time.RFC3339))
	}
	return bodyOf(s.backend.AddToken(ctx, callerOf(ctx).User.Name, in.Body))
}

func (s *Server) removeToken(ctx context.Context, in *idInput) (*noOutput, error) {
	tokens, err := s.backend.Tokens(ctx, ownOrAll(ctx))
	if err != nil {
		return nil, err
	}
	for _, t := range tokens {
		if t.ID == in.ID {
			return nil, s.backend.RemoveToken(ctx, in.ID)
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "there is no API token %s", in.ID).WithHint("'coffer token list' shows them")
}
