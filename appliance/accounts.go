package appliance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/internal/durable"
)

const (
	// firstUser is the superuser that a new appliance has.
	firstUser = "admin"
	// sessionLife is how long a login holds.
	sessionLife = 24 * time.Hour
	// touchEvery is how often the use of a token is recorded.
	touchEvery = time.Minute
)

// accounts implements server.Accounts.
type accounts struct {
	*appliance
	passwords *passwords

	mu      sync.Mutex // guards touched
	touched map[string]time.Time
}

func newAccounts(a *appliance) *accounts {
	return &accounts{appliance: a, passwords: newPasswords(), touched: map[string]time.Time{}}
}

// firstUser makes the superuser of a new appliance, with a random password that must be changed: in a file first, then
// in the catalog, so that no crash leaves a user whose password nobody knows.
func (a *appliance) firstUser(ctx context.Context) error {
	users, err := a.catalog.Users(ctx)
	if err != nil || len(users) > 0 {
		return err
	}
	password := rand.Text() // 128 bits and more
	path := a.data.FirstPassword()
	if err := durable.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
		return fmt.Errorf("first password: %w", err)
	}
	hash, err := newPasswords().hash(ctx, password)
	if err != nil {
		return err
	}
	err = a.catalog.AddUser(ctx, catalog.User{Name: firstUser, Role: string(api.RoleSuperuser), Password: hash, MustChange: true})
	if err != nil {
		return err
	}
	a.log.Info("first superuser made: its password must be changed at the first login", "user", firstUser, "password_file", path)
	if a.opts.Terminal != nil {
		_, _ = fmt.Fprintf(a.opts.Terminal, "\nFirst login:  user %s  password %s  (also in %s; to be changed at login)\nCertificate:  SHA-256 %s\n\n",
			firstUser, password, path, a.authority.Fingerprint()) // a terminal that is gone is no reason to stop
	}
	return nil
}

// Login implements server.Accounts.
func (a *accounts) Login(ctx context.Context, req api.LoginRequest) (api.Session, error) {
	user, err := a.verify(ctx, req.User, req.Password)
	if err != nil {
		return api.Session{}, err
	}
	secret := newSecret()
	t, err := a.catalog.AddToken(ctx, catalog.Token{ID: newID("s"), Hash: hashSecret(secret), User: user.Name, Session: true,
		Name: "login", ExpiresAt: a.opts.Now().Add(sessionLife)})
	if err != nil {
		return api.Session{}, apiError(err)
	}
	user.LastLogin = t.CreatedAt
	return api.Session{Token: secret, ExpiresAt: t.ExpiresAt.UTC(), User: apiUser(user)}, nil
}

// verify checks name and password; both wrong are one error and take the same time.
func (a *accounts) verify(ctx context.Context, name, password string) (catalog.User, error) {
	user, err := a.catalog.User(ctx, name)
	known := err == nil
	if !known {
		if catalog.KindOf(err) != catalog.KindNotFound {
			return user, apiError(err)
		}
		user.Password = nobody
	}
	ok, err := a.passwords.check(ctx, password, user.Password)
	if err != nil {
		return user, err
	}
	if !known || !ok {
		return user, api.Errorf(api.CodeBadCredentials, "wrong user name or password")
	}
	return user, nil
}

// Authenticate implements server.Accounts.
func (a *accounts) Authenticate(ctx context.Context, secret string) (api.Identity, error) {
	t, u, err := a.catalog.TokenByHash(ctx, hashSecret(secret))
	switch catalog.KindOf(err) {
	case catalog.KindNotFound:
		return api.Identity{}, api.Errorf(api.CodeUnauthenticated, "the token is not known: it was removed, or its session ended").WithHint("log in again: coffer login")
	case catalog.KindExpired:
		return api.Identity{}, api.Errorf(api.CodeUnauthenticated, "the token has expired").WithHint("log in again: coffer login")
	}
	if err != nil {
		return api.Identity{}, apiError(err)
	}
	a.touch(ctx, t.ID)
	return api.Identity{User: apiUser(u), TokenID: t.ID, Session: t.Session}, nil
}

// touch records the use of a token, once in a while.
func (a *accounts) touch(ctx context.Context, id string) {
	now := a.opts.Now()
	a.mu.Lock()
	fresh := now.Sub(a.touched[id]).Abs() < touchEvery
	if !fresh {
		for old, at := range a.touched {
			if now.Sub(at) > touchEvery {
				delete(a.touched, old)
			}
		}
		a.touched[id] = now
	}
	a.mu.Unlock()
	if fresh {
		return
	}
	if err := a.catalog.TouchToken(ctx, id); err != nil {
		a.log.Debug("use of a token not recorded", "error", err)
	}
}

// Logout implements server.Accounts.
func (a *accounts) Logout(ctx context.Context, tokenID string) error {
	return apiError(a.catalog.RemoveToken(ctx, tokenID, true))
}

// ChangePassword implements server.Accounts.
func (a *accounts) ChangePassword(ctx context.Context, user, keep string, c api.PasswordChange) error {
	if _, err := a.verify(ctx, user, c.Old); err != nil {
		if api.CodeOf(err) == api.CodeBadCredentials {
			return api.Errorf(api.CodeBadCredentials, "the present password is wrong")
		}
		return err
	}
	if err := checkPassword(user, c.New); err != nil {
		return err
	}
	if c.New == c.Old {
		return api.Errorf(api.CodeWeakPassword, "the new password is the old one")
	}
	hash, err := a.passwords.hash(ctx, c.New)
	if err != nil {
		return err
	}
	if err := a.catalog.SetPassword(ctx, user, hash, false, keep); err != nil {
		return apiError(err)
	}
	if user != firstUser {
		return nil
	}
	// The password in the file is worth nothing now; that it stays is no reason to fail the change.
	if err := os.Remove(a.data.FirstPassword()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("file of the first password not removed", "error", err)
	}
	return nil
}

// checkPassword holds the rules: length counts, nothing else does.
func checkPassword(user, password string) error {
	if utf8.RuneCountInString(password) < api.MinPassword {
		return api.Errorf(api.CodeWeakPassword, "a password has at least %d characters", api.MinPassword).WithHint("several words make a good one")
	}
	if password == user {
		return api.Errorf(api.CodeWeakPassword, "the password is the user's name")
	}
	return nil
}

// Users implements server.Accounts.
func (a *accounts) Users(ctx context.Context) ([]api.User, error) {
	users, err := a.catalog.Users(ctx)
	return mapped(users, apiUser), apiError(err)
}

// AddUser implements server.Accounts.
func (a *accounts) AddUser(ctx context.Context, s api.UserSpec) (api.User, error) {
	if err := checkPassword(s.Name, s.Password); err != nil {
		return api.User{}, err
	}
	if err := a.checkReach(ctx, s.Role, s.Clients); err != nil {
		return api.User{}, err
	}
	hash, err := a.passwords.hash(ctx, s.Password)
	if err != nil {
		return api.User{}, err
	}
	u := catalog.User{Name: s.Name, Role: string(s.Role), Clients: s.Clients, Password: hash, MustChange: true}
	if err := a.catalog.AddUser(ctx, u); err != nil {
		if catalog.KindOf(err) == catalog.KindExists {
			return api.User{}, api.Errorf(api.CodeExists, "there is a user %q already", s.Name)
		}
		return api.User{}, apiError(err)
	}
	return a.user(ctx, s.Name)
}

func (a *accounts) user(ctx context.Context, name string) (api.User, error) {
	u, err := a.catalog.User(ctx, name)
	return apiUser(u), apiError(err)
}

// checkReach holds a role against its clients.
func (a *accounts) checkReach(ctx context.Context, role api.Role, clients []string) error {
	if !role.Limited() {
		if len(clients) > 0 {
			return api.Errorf(api.CodeBadRequest, "role %s reaches every client: it takes no list of clients", role)
		}
		return nil
	}
	for _, name := range clients {
		if name == api.AllClients {
			continue
		}
		if _, err := a.catalog.Client(ctx, name); err != nil {
			return noClient(name, err)
		}
	}
	return nil
}

// SetUserRole implements server.Accounts.
func (a *accounts) SetUserRole(ctx context.Context, name string, r api.UserRole) (api.User, error) {
	if err := a.checkReach(ctx, r.Role, r.Clients); err != nil {
		return api.User{}, err
	}
	if err := a.catalog.SetUserRole(ctx, name, string(r.Role), r.Clients); err != nil {
		return api.User{}, userError(name, err)
	}
	return a.user(ctx, name)
}

// RemoveUser implements server.Accounts.
func (a *accounts) RemoveUser(ctx context.Context, name string) error {
	return userError(name, a.catalog.RemoveUser(ctx, name))
}

func userError(name string, err error) error {
	switch catalog.KindOf(err) {
	case catalog.KindNotFound:
		return api.Errorf(api.CodeNotFound, "there is no user %q", name)
	case catalog.KindInUse:
		return api.Errorf(api.CodeConflict, "user %s is the last superuser", name).WithHint("make another user a superuser first")
	}
	return apiError(err)
}

// Tokens implements server.Accounts.
func (a *accounts) Tokens(ctx context.Context, user string) ([]api.Token, error) {
	tokens, err := a.catalog.Tokens(ctx, user)
	return mapped(tokens, apiToken), apiError(err)
}

// AddToken implements server.Accounts.
func (a *accounts) AddToken(ctx context.Context, user string, s api.TokenSpec) (api.NewToken, error) {
	t := catalog.Token{ID: newID("t"), User: user, Name: s.Name}
	if s.ExpiresAt != nil {
		if t.ExpiresAt = *s.ExpiresAt; !t.ExpiresAt.After(a.opts.Now()) {
			return api.NewToken{}, api.Errorf(api.CodeBadRequest, "the token would have expired before it is made")
		}
	}
	secret := newSecret()
	t.Hash = hashSecret(secret)
	t, err := a.catalog.AddToken(ctx, t)
	if err != nil {
		return api.NewToken{}, userError(user, err)
	}
	return api.NewToken{Token: apiToken(t), Secret: secret}, nil
}

// RemoveToken implements server.Accounts.
func (a *accounts) RemoveToken(ctx context.Context, id string) error {
	err := a.catalog.RemoveToken(ctx, id, false)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return api.Errorf(api.CodeNotFound, "there is no API token %q", id)
	}
	return apiError(err)
}

// newSecret makes a bearer token of 256 random bits; its prefix lets scanners of leaked secrets find it.
func newSecret() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails: the runtime ends the program instead
	return "coffer_" + base64.RawURLEncoding.EncodeToString(raw)
}

// hashSecret is how a bearer token is kept: its bits are random, so that it needs no salt.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func newID(prefix string) string {
	raw := make([]byte, 8)
	_, _ = rand.Read(raw) // never fails: the runtime ends the program instead
	return prefix + hex.EncodeToString(raw)
}
