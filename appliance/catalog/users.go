package catalog

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"
)

// Superuser is the role that may manage users; at least one user has it.
const Superuser = "superuser"

// User is an account. Password is its hash; the catalog does not read it.
type User struct {
	Name, Role, Password string
	Clients              []string
	MustChange           bool
	CreatedAt, LastLogin time.Time // LastLogin zero: never
}

// Token is a session or an API token. The secret is kept as Hash only.
type Token struct {
	ID, Hash, User, Name           string
	Session                        bool
	CreatedAt, ExpiresAt, LastUsed time.Time // ExpiresAt zero: does not expire
}

const userColumns = `SELECT name, role, password, clients, must_change, created_at, last_login FROM users`

func scanUser(row scanner) (User, error) {
	var u User
	err := row.Scan(&u.Name, &u.Role, &u.Password, asJSON{&u.Clients}, &u.MustChange, when{&u.CreatedAt}, when{&u.LastLogin})
	return u, err
}

// Users lists all users by name.
func (c *Catalog) Users(ctx context.Context) ([]User, error) {
	out, err := list(ctx, c.r, scanUser, userColumns+` ORDER BY name`)
	return out, c.fail("list users", err)
}

// User returns one user; KindNotFound.
func (c *Catalog) User(ctx context.Context, name string) (User, error) {
	out, err := one(ctx, c.r, scanUser, userColumns+` WHERE name = ?`, name)
	return out, c.fail("user "+name, err)
}

// AddUser makes a user; KindExists.
func (c *Catalog) AddUser(ctx context.Context, u User) error {
	clients, err := toJSON(u.Clients)
	if err != nil {
		return c.fail("add user "+u.Name, err)
	}
	return c.exec(ctx, "add user "+u.Name, nil, `INSERT INTO users (name, role, clients, password, must_change, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		u.Name, u.Role, clients, u.Password, u.MustChange, micros(c.opts.Now()))
}

// SetUserRole changes role and clients. KindNotFound; KindInUse: the last superuser stays one.
func (c *Catalog) SetUserRole(ctx context.Context, name, role string, clients []string) error {
	op := "set role of user " + name
	text, err := toJSON(clients)
	if err != nil {
		return c.fail(op, err)
	}
	return c.write(ctx, op, func(tx *sql.Tx) error {
		err := execOne(ctx, tx, failf(KindNotFound, "%s", op), `UPDATE users SET role = ?, clients = ? WHERE name = ?`, role, text, name)
		if err != nil {
			return err
		}
		return keepSuperuser(ctx, tx, op)
	})
}

// RemoveUser removes a user with all tokens. KindNotFound; KindInUse: the last superuser stays.
func (c *Catalog) RemoveUser(ctx context.Context, name string) error {
	op := "remove user " + name
	return c.write(ctx, op, func(tx *sql.Tx) error {
		if err := execOne(ctx, tx, failf(KindNotFound, "%s", op), `DELETE FROM users WHERE name = ?`, name); err != nil {
			return err
		}
		return keepSuperuser(ctx, tx, op)
	})
}

// keepSuperuser fails the transaction that would leave no superuser.
func keepSuperuser(ctx context.Context, tx *sql.Tx, op string) error {
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM users WHERE role = ?`, Superuser).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return failf(KindInUse, "%s", op)
	}
	return nil
}

// SetPassword changes a user's password hash and ends the user's sessions but the one with the id keep. KindNotFound.
func (c *Catalog) SetPassword(ctx context.Context, name, hash string, mustChange bool, keep string) error {
	op := "set password of user " + name
	return c.write(ctx, op, func(tx *sql.Tx) error {
		err := execOne(ctx, tx, failf(KindNotFound, "%s", op), `UPDATE users SET password = ?, must_change = ? WHERE name = ?`, hash, mustChange, name)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM tokens WHERE user = ? AND session = 1 AND id <> ?`, name, keep)
		return err
	})
}

// AddToken keeps a session or an API token; a session is a login. Expired tokens of the user go. KindInUse: no such user.
func (c *Catalog) AddToken(ctx context.Context, t Token) (Token, error) {
	now := c.opts.Now()
	t.CreatedAt = fromMicros(micros(now))
	err := c.write(ctx, "add token of user "+t.User, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE user = ? AND expires_at <= ?`, t.User, micros(now)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO tokens (id, hash, user, session, name, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			t.ID, t.Hash, t.User, t.Session, t.Name, micros(t.CreatedAt), microsOrNull(t.ExpiresAt))
		if err != nil || !t.Session {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE users SET last_login = ? WHERE name = ?`, micros(now), t.User)
		return err
	})
	return t, err
}

const tokenColumns = `SELECT id, hash, user, session, name, created_at, expires_at, last_used FROM tokens`

func scanToken(row scanner) (Token, error) {
	var t Token
	err := row.Scan(&t.ID, &t.Hash, &t.User, &t.Session, &t.Name, when{&t.CreatedAt}, when{&t.ExpiresAt}, when{&t.LastUsed})
	return t, err
}

// Tokens lists the API tokens (no sessions) of a user, or of all users where the name is empty, by their time.
func (c *Catalog) Tokens(ctx context.Context, user string) ([]Token, error) {
	w := where{conds: []string{"session = 0"}}
	w.equal("user", user)
	out, err := list(ctx, c.r, scanToken, tokenColumns+w.String()+` ORDER BY created_at, id`, w.args...)
	return out, c.fail("list tokens", err)
}

// TokenByHash returns a token that has not expired, with its user. KindNotFound, KindExpired.
func (c *Catalog) TokenByHash(ctx context.Context, hash string) (Token, User, error) {
	t, err := one(ctx, c.r, scanToken, tokenColumns+` WHERE hash = ?`, hash)
	if err != nil {
		return t, User{}, c.fail("token", err)
	}
	if !t.ExpiresAt.IsZero() && !c.opts.Now().Before(t.ExpiresAt) {
		return t, User{}, failf(KindExpired, "token %s", t.ID)
	}
	u, err := c.User(ctx, t.User)
	return t, u, err
}

// TouchToken keeps that a token was used now.
func (c *Catalog) TouchToken(ctx context.Context, id string) error {
	return c.exec(ctx, "touch token "+id, nil, `UPDATE tokens SET last_used = ? WHERE id = ?`, micros(c.opts.Now()), id)
}

// RemoveToken removes an API token or, with session set, a session; KindNotFound.
func (c *Catalog) RemoveToken(ctx context.Context, id string, session bool) error {
	return c.exec(ctx, "remove token "+id, failf(KindNotFound, "remove token %s", id), `DELETE FROM tokens WHERE id = ? AND session = ?`, id, session)
}

// AuditEntry is one line of the audit log.
type AuditEntry struct {
	ID                                   int64
	Time                                 time.Time
	User, Remote, Action, Object, Detail string
	OK                                   bool
}

// AddAudit appends to the audit log; ids are set here, times where they are zero.
func (c *Catalog) AddAudit(ctx context.Context, entries ...AuditEntry) error {
	return c.write(ctx, "append to the audit log", func(tx *sql.Tx) error { return c.addAudit(ctx, tx, entries...) })
}

func (c *Catalog) addAudit(ctx context.Context, tx *sql.Tx, entries ...AuditEntry) error {
	for _, e := range entries {
		if e.Time.IsZero() {
			e.Time = c.opts.Now()
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO audit (time, user, remote, action, object, ok, detail) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			micros(e.Time), e.User, e.Remote, e.Action, e.Object, e.OK, e.Detail)
		if err != nil {
			return err
		}
	}
	return nil
}

// AuditFilter selects audit entries; zero fields select all.
type AuditFilter struct {
	User, Action string
	Since        time.Time
	Before       int64 // entries older than this id
	Limit        int   // 0: all
}

// Audit lists audit entries, newest first.
func (c *Catalog) Audit(ctx context.Context, f AuditFilter) ([]AuditEntry, error) {
	var w where
	w.equal("user", f.User)
	w.equal("action", f.Action)
	if !f.Since.IsZero() {
		w.add("time >= ?", micros(f.Since))
	}
	if f.Before > 0 {
		w.add("id < ?", f.Before)
	}
	out, err := list(ctx, c.r, func(s scanner) (e AuditEntry, err error) {
		err = s.Scan(&e.ID, when{&e.Time}, &e.User, &e.Remote, &e.Action, &e.Object, &e.OK, &e.Detail)
		return e, err
	}, `SELECT id, time, user, remote, action, object, ok, detail FROM audit`+w.String()+` ORDER BY id DESC LIMIT ?`,
		append(slices.Clone(w.args), limitOrAll(f.Limit))...)
	return out, c.fail("read audit log", err)
}

// Setting returns a value that the appliance keeps under a key; empty where there is none.
func (c *Catalog) Setting(ctx context.Context, key string) (string, error) {
	v, err := one(ctx, c.r, func(s scanner) (v string, err error) { err = s.Scan(&v); return v, err }, `SELECT value FROM settings WHERE key = ?`, key)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return v, c.fail("setting "+key, err)
}

// SetSetting keeps a value under a key.
func (c *Catalog) SetSetting(ctx context.Context, key, value string) error {
	return c.exec(ctx, "set setting "+key, nil, `INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value`, key, value)
}
