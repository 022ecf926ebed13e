package api

import (
	"context"
	"slices"
	"time"
)

// Role is what a user may do, as DOMAIN's "People": each word is part of the API.
type Role string

// Roles.
const (
	RoleSuperuser Role = "superuser" // all, and the only one who manages users
	RoleAdmin     Role = "admin"     // all but users and their permissions
	RoleOperator  Role = "operator"  // sees everything, runs jobs and mounts
	RoleBackup    Role = "backup"    // starts backups of its clients
	RoleRestore   Role = "restore"   // browses and restores savesets of its clients
)

// Roles lists every role, the mightiest first.
func Roles() []Role {
	return []Role{RoleSuperuser, RoleAdmin, RoleOperator, RoleBackup, RoleRestore}
}

// Valid reports whether r is a role.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Limited reports whether users of the role reach only the clients that they were given.
func (r Role) Limited() bool { return r == RoleBackup || r == RoleRestore }

// AllClients in a user's client list stands for every client.
const AllClients = "*"

// User is an account.
type User struct {
	Name       string     `json:"name" doc:"login name"`
	Role       Role       `json:"role" enum:"superuser,admin,operator,backup,restore" doc:"what the user may do"`
	Clients    []string   `json:"clients,omitempty" doc:"roles backup and restore: the clients that the user reaches; * means all"`
	MustChange bool       `json:"must_change_password" doc:"the password must be changed before anything else"`
	CreatedAt  time.Time  `json:"created_at"`
	LastLogin  *time.Time `json:"last_login,omitempty" doc:"last login by password"`
}

// UserSpec makes an account.
type UserSpec struct {
	Name     string   `json:"name" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9][A-Za-z0-9._@-]*$" doc:"login name"`
	Role     Role     `json:"role" enum:"superuser,admin,operator,backup,restore"`
	Clients  []string `json:"clients,omitempty" maxItems:"10000" doc:"roles backup and restore: the clients that the user reaches; * means all"`
	Password string   `json:"password" maxLength:"1024" doc:"first password; the user must change it at the first login"`
}

// UserRole changes what a user may do.
type UserRole struct {
	Role    Role     `json:"role" enum:"superuser,admin,operator,backup,restore"`
	Clients []string `json:"clients,omitempty" maxItems:"10000" doc:"roles backup and restore: the clients that the user reaches; * means all"`
}

// LoginRequest opens a session.
type LoginRequest struct {
	User     string `json:"user" minLength:"1" maxLength:"64" doc:"login name"`
	Password string `json:"password" maxLength:"1024"`
}

// Session is a login: a bearer token and whose it is.
type Session struct {
	Token     string    `json:"token" doc:"bearer token, to be sent as 'Authorization: Bearer …'; shown once"`
	ExpiresAt time.Time `json:"expires_at"`
	User      User      `json:"user"`
}

// PasswordChange changes the caller's own password. Every other session of the user ends.
type PasswordChange struct {
	Old string `json:"old" maxLength:"1024" doc:"present password"`
	New string `json:"new" minLength:"10" maxLength:"1024" doc:"new password, at least 10 characters"`
}

// MinPassword is the least length of a password in characters.
const MinPassword = 10

// Token is a long-lived API token of a user (the secret itself is shown once, in NewToken).
type Token struct {
	ID        string     `json:"id"`
	User      string     `json:"user"`
	Name      string     `json:"name" doc:"what the token is for"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"absent: it does not expire"`
	LastUsed  *time.Time `json:"last_used,omitempty"`
}

// TokenSpec makes an API token for the caller.
type TokenSpec struct {
	Name      string     `json:"name" minLength:"1" maxLength:"100" doc:"what the token is for"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"absent: it does not expire"`
}

// NewToken is a fresh API token with its secret, which is shown this once.
type NewToken struct {
	Token
	Secret string `json:"secret" doc:"bearer token; shown once"`
}

// Identity is who makes a call: the answer to a bearer token.
type Identity struct {
	User    User   `json:"user"`
	TokenID string `json:"token_id" doc:"id of the session or API token used"`
	Session bool   `json:"session" doc:"true for a login, false for an API token"`
}

// Reaches reports whether the identity's user may touch the client's data.
func (i Identity) Reaches(client string) bool {
	if !i.User.Role.Limited() {
		return true
	}
	return slices.Contains(i.User.Clients, AllClients) || slices.Contains(i.User.Clients, client)
}

// Caller is who called, and from where; the server puts it into the context of every call to the backend.
type Caller struct {
	Identity
	Remote string // IP address
}

type callerKey struct{}

// WithCaller returns a context that carries the caller.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller of ctx; ok is false outside a call of the API.
func CallerFrom(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// AuditEntry is one line of the audit log: a change, a restore (reading a saveset's content counts), or a login.
type AuditEntry struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	User   string    `json:"user" doc:"login name; empty for the appliance itself"`
	Remote string    `json:"remote,omitempty" doc:"IP address of the caller"`
	Action string    `json:"action" doc:"what was done, like task.add"`
	Object string    `json:"object,omitempty" doc:"to what"`
	OK     bool      `json:"ok"`
	Detail string    `json:"detail,omitempty" doc:"parameters, or why it failed"`
}

// AuditFilter selects audit entries; zero fields select all.
type AuditFilter struct {
	User   string
	Action string
	Since  time.Time
	Before string // cursor: entries older than this id
	Limit  int    // 1..MaxPage; the server has set it
}
