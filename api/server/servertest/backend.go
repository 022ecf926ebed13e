// Package servertest serves the REST API of a backend that lives in memory, for the tests of the server, the client and
// the command line. It owns sample data with fixed identifiers and times, and no behaviour worth copying: passwords are
// compared as they are, and runs end when a test says so.
package servertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"coffer/api"
	"coffer/api/server"
)

// Epoch is the fixed time of the sample data.
var Epoch = time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)

// Password is the password of every sample user; "first" is the one of user "new", who must change it.
const Password = "correct horse battery"

// Backend is a server.Backend in memory.
type Backend struct {
	mu       sync.Mutex // guards everything below
	users    map[string]*account
	tokens   map[string]*token // by secret
	clients  map[string]api.Client
	tasks    map[string]api.Task
	runs     []api.Run // oldest first
	notices  map[string][]api.Notice
	savesets []api.Saveset // oldest first
	tree     *tree
	log      []api.AuditEntry
	mount    api.Mount
	subs     map[chan api.Event]api.EventFilter
	serial   int // of sessions and tokens
	runCount int

	// Fail, when set, is returned by every call that changes something.
	Fail error
	// Restores are the requests that StartRestore took.
	Restores []api.RestoreRequest
	// Damaged is what Damage returns.
	Damaged api.DamageReport

	maintenance []api.Maintenance // oldest first
	keys        api.StoreKeys
	exports     []api.Export // oldest first
	guests      []api.Guest  // oldest first
}

type account struct {
	api.User
	password string
}

type token struct {
	api.Token
	session bool
}

var _ server.Backend = (*Backend)(nil)

// New makes a backend with users root (superuser), adam, olga, bob and rita of the other roles (bob and rita reach web1),
// and new, who must change the password; a client web1 with tasks; two savesets and the runs that made them.
func New() *Backend {
	b := &Backend{users: map[string]*account{}, tokens: map[string]*token{}, clients: map[string]api.Client{}, tasks: map[string]api.Task{},
		notices: map[string][]api.Notice{}, subs: map[chan api.Event]api.EventFilter{}, tree: sampleTree(),
		mount: api.Mount{Path: "/var/lib/coffer/mnt"}, maintenance: sampleMaintenance(), keys: sampleKeys()}
	b.user("root", api.RoleSuperuser)
	b.user("adam", api.RoleAdmin)
	b.user("olga", api.RoleOperator)
	b.user("bob", api.RoleBackup, "web1")
	b.user("rita", api.RoleRestore, "web1")
	b.user("new", api.RoleSuperuser).MustChange = true
	seen := Epoch.Add(time.Hour)
	b.clients["web1"] = api.Client{Name: "web1", State: api.ClientOnline, Hostname: "web1.example.org", OS: "linux", Arch: "amd64",
		Agent: "1.0.0", Address: "192.0.2.7", CreatedAt: Epoch, EnrolledAt: &seen, LastSeen: &seen}
	b.clients["db1"] = api.Client{Name: "db1", State: api.ClientOffline, OS: "linux", Arch: "arm64", CreatedAt: Epoch, EnrolledAt: &seen, LastSeen: &seen}
	b.tasks["web1-etc"] = api.Task{Name: "web1-etc", Client: "web1", Type: api.TaskPath, Sources: []string{"/etc"}, Excludes: []string{"*.tmp"}, Pool: "default", CreatedAt: Epoch}
	b.tasks["db1-pg"] = api.Task{Name: "db1-pg", Client: "db1", Type: api.TaskStream, Command: []string{"pg_dump", "-Fc", "shop"}, StreamName: "shop.dump", Pool: "default", CreatedAt: Epoch}
	b.sample("a1b2c3d4e5f60718", "web1-etc", api.LevelFull, Epoch)
	b.sample("b2c3d4e5f6071829", "web1-etc", api.LevelIncr, Epoch.Add(24*time.Hour))
	b.sample("c3d4e5f60718293a", "db1-pg", api.LevelFull, Epoch.Add(25*time.Hour))
	return b
}

func (b *Backend) user(name string, r api.Role, clients ...string) *account {
	a := &account{User: api.User{Name: name, Role: r, Clients: clients, CreatedAt: Epoch}, password: Password}
	b.users[name] = a
	return a
}

// sample adds a saveset and the run that made it.
func (b *Backend) sample(id, task string, l api.Level, at time.Time) {
	t := b.tasks[task]
	b.runCount++
	run := fmt.Sprintf("run-%04d", b.runCount)
	end := at.Add(95 * time.Second)
	reason := "requested"
	requested := l
	if l == api.LevelFull {
		requested, reason = api.LevelIncr, "no_valid_full"
	}
	p := api.Progress{Entries: 1500, EntriesTotal: 1500, Bytes: 52 << 20, BytesRead: 52 << 20, BytesNew: 48 << 20, BytesSent: 13 << 20, BytesStored: 13<<20 + 4242,
		FilesNew: 1400, Stages: api.Stages{Source: 1.5, Hashing: 0.25, Compress: 0.75, Network: 2, Store: 1.125}}
	b.runs = append(b.runs, api.Run{ID: run, Kind: api.RunBackup, State: api.RunSuccess, Task: task, Client: t.Client, User: "root", LevelRequested: requested,
		LevelEffective: l, LevelReason: reason, Saveset: id, QueuedAt: at, StartedAt: &at, EndedAt: &end, Progress: p})
	b.savesets = append(b.savesets, api.Saveset{ID: id, Client: t.Client, Task: task, Type: t.Type, Pool: "default", Run: run, State: api.RunSuccess,
		LevelRequested: requested, Level: l, LevelReason: reason, StartedAt: at, EndedAt: end, EOL: end.AddDate(0, 0, 30), Entries: 1500, Bytes: 52 << 20,
		BytesNew: 48 << 20, BytesStored: 13<<20 + 4242, Sources: t.Sources, StreamName: t.StreamName})
}

func notFound(what, name string) error {
	return api.Errorf(api.CodeNotFound, "there is no %s %s", what, name)
}

func sorted[T any](m map[string]T) []T {
	var out []T
	for _, k := range sortedKeys(m) {
		out = append(out, m[k])
	}
	return out
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Login opens a session.
func (b *Backend) Login(_ context.Context, r api.LoginRequest) (api.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.users[r.User]
	if a == nil || a.password != r.Password {
		return api.Session{}, api.Errorf(api.CodeBadCredentials, "wrong user name or password")
	}
	b.serial++
	secret := fmt.Sprintf("session-%d", b.serial)
	b.tokens[secret] = &token{Token: api.Token{ID: fmt.Sprintf("s%d", b.serial), User: r.User}, session: true}
	return api.Session{Token: secret, ExpiresAt: Epoch.Add(12 * time.Hour), User: a.User}, nil
}

// Authenticate finds a token.
func (b *Backend) Authenticate(_ context.Context, secret string) (api.Identity, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tokens[secret]
	if t == nil {
		return api.Identity{}, api.Errorf(api.CodeUnauthenticated, "the session has ended").WithHint("log in again with 'coffer login'")
	}
	return api.Identity{User: b.users[t.User].User, TokenID: t.ID, Session: t.session}, nil
}

// Logout ends a session.
func (b *Backend) Logout(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(func(t *token) bool { return t.ID == id })
	return nil
}

func (b *Backend) drop(which func(*token) bool) (n int) {
	for s, t := range b.tokens {
		if which(t) {
			delete(b.tokens, s)
			n++
		}
	}
	return n
}

// ChangePassword changes a password.
func (b *Backend) ChangePassword(_ context.Context, user, keep string, c api.PasswordChange) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.users[user]
	if a.password != c.Old {
		return api.Errorf(api.CodeBadCredentials, "the present password is wrong")
	}
	a.password, a.MustChange = c.New, false
	b.drop(func(t *token) bool { return t.User == user && t.session && t.ID != keep })
	return nil
}

// Users lists users.
func (b *Backend) Users(context.Context) ([]api.User, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []api.User
	for _, a := range sorted(b.users) {
		out = append(out, a.User)
	}
	return out, nil
}

// AddUser adds a user.
func (b *Backend) AddUser(_ context.Context, s api.UserSpec) (api.User, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users[s.Name] != nil {
		return api.User{}, api.Errorf(api.CodeExists, "there is a user %s already", s.Name)
	}
	a := b.user(s.Name, s.Role, s.Clients...)
	a.password, a.MustChange = s.Password, true
	return a.User, b.Fail
}

// SetUserRole changes a user.
func (b *Backend) SetUserRole(_ context.Context, name string, r api.UserRole) (api.User, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.users[name]
	if a == nil {
		return api.User{}, notFound("user", name)
	}
	a.Role, a.Clients = r.Role, r.Clients
	return a.User, b.Fail
}

// RemoveUser removes a user.
func (b *Backend) RemoveUser(_ context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users[name] == nil {
		return notFound("user", name)
	}
	delete(b.users, name)
	b.drop(func(t *token) bool { return t.User == name })
	return b.Fail
}

// Tokens lists API tokens.
func (b *Backend) Tokens(_ context.Context, user string) ([]api.Token, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []api.Token
	for _, t := range sorted(b.tokens) {
		if !t.session && (user == "" || t.User == user) {
			out = append(out, t.Token)
		}
	}
	return out, nil
}

// AddToken adds an API token.
func (b *Backend) AddToken(_ context.Context, user string, s api.TokenSpec) (api.NewToken, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serial++
	t := &token{Token: api.Token{ID: fmt.Sprintf("t%d", b.serial), User: user, Name: s.Name, CreatedAt: Epoch, ExpiresAt: s.ExpiresAt}}
	secret := fmt.Sprintf("token-%d", b.serial)
	b.tokens[secret] = t
	return api.NewToken{Token: t.Token, Secret: secret}, b.Fail
}

// RemoveToken removes an API token.
func (b *Backend) RemoveToken(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drop(func(t *token) bool { return t.ID == id }) == 0 {
		return notFound("API token", id)
	}
	return b.Fail
}

// Record appends to the audit log.
func (b *Backend) Record(_ context.Context, e api.AuditEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.ID, e.Time = fmt.Sprintf("%06d", len(b.log)+1), Epoch.Add(time.Duration(len(b.log))*time.Second)
	b.log = append(b.log, e)
	return nil
}

// AuditLog lists the audit log.
func (b *Backend) AuditLog(_ context.Context, f api.AuditFilter) (p api.Page[api.AuditEntry], _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range slices.Backward(b.log) {
		if (f.User == "" || e.User == f.User) && (f.Action == "" || e.Action == f.Action) && (f.Before == "" || e.ID < f.Before) && !e.Time.Before(f.Since) {
			p.Items = append(p.Items, e)
		}
	}
	return cut(p, f.Limit, func(e api.AuditEntry) string { return e.ID }), nil
}

func cut[T any](p api.Page[T], limit int, id func(T) string) api.Page[T] {
	if len(p.Items) > limit {
		p.Items = p.Items[:limit]
		p.Next = id(p.Items[limit-1])
	}
	return p
}

// System says what runs.
func (b *Backend) System(context.Context) (api.System, error) {
	return api.System{Name: "backup1", Version: "1.0.0", API: api.APIVersion, StartedAt: Epoch, Time: Epoch.Add(time.Hour), CASHA256: strings.Repeat("AB", 32), SMS: "backup1:11301"}, nil
}

// Mount returns the state of the mount.
func (b *Backend) Mount(context.Context) (api.Mount, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mount, nil
}

// SetMount pretends.
func (b *Backend) SetMount(_ context.Context, on bool) (api.Mount, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mount.On, b.mount.Since = on, nil
	if on {
		b.mount.Since = &Epoch
	}
	return b.mount, b.Fail
}
