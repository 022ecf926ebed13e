package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Client is a machine that owns data.
type Client struct {
	Name                                       string
	CreatedAt, EnrolledAt, LastSeen, RevokedAt time.Time // zero: never
	Hostname, OS, Arch, AgentVersion, Address  string
	// Cert is the newest certificate; its Serial is empty where the client has none.
	Cert Certificate
}

// Certificate is a client certificate that the authority issued.
type Certificate struct {
	Serial      string // hex
	Client      string
	Fingerprint string
	IssuedAt    time.Time
	NotAfter    time.Time
	RevokedAt   time.Time // zero: not revoked
}

const clientColumns = `c.name, c.created_at, c.enrolled_at, c.last_seen, c.revoked_at, c.hostname, c.os, c.arch, c.agent_version, c.address,
	coalesce(x.serial, ''), coalesce(x.fingerprint, ''), x.issued_at, x.not_after, x.revoked_at
	FROM clients c LEFT JOIN certificates x ON x.serial =
		(SELECT serial FROM certificates WHERE client = c.name ORDER BY issued_at DESC, serial LIMIT 1)`

func scanClient(row scanner) (Client, error) {
	var c Client
	err := row.Scan(&c.Name, when{&c.CreatedAt}, when{&c.EnrolledAt}, when{&c.LastSeen}, when{&c.RevokedAt}, &c.Hostname, &c.OS, &c.Arch,
		&c.AgentVersion, &c.Address, &c.Cert.Serial, &c.Cert.Fingerprint, when{&c.Cert.IssuedAt}, when{&c.Cert.NotAfter},
		when{&c.Cert.RevokedAt})
	c.Cert.Client = c.Name
	return c, err
}

// Clients lists all clients by name.
func (c *Catalog) Clients(ctx context.Context) ([]Client, error) {
	out, err := list(ctx, c.r, scanClient, `SELECT `+clientColumns+` ORDER BY c.name`)
	return out, c.fail("list clients", err)
}

// Client returns one client; KindNotFound.
func (c *Catalog) Client(ctx context.Context, name string) (Client, error) {
	out, err := one(ctx, c.r, scanClient, `SELECT `+clientColumns+` WHERE c.name = ?`, name)
	return out, c.fail("client "+name, err)
}

// AddClient adds a client; KindExists.
func (c *Catalog) AddClient(ctx context.Context, name string) error {
	return c.exec(ctx, "add client "+name, nil, `INSERT INTO clients (name, created_at) VALUES (?, ?)`, name, micros(c.opts.Now()))
}

// AddEnrolment keeps a new enrolment token (hashed) of a client and ends its earlier ones that were not used.
// KindNotFound: no such client.
func (c *Catalog) AddEnrolment(ctx context.Context, client, hash string, expires time.Time) error {
	op := "add enrolment token of client " + client
	return c.write(ctx, op, func(tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT 1 FROM clients WHERE name = ?`, client).Scan(&n); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM enrolment_tokens WHERE client = ? AND used_at IS NULL`, client); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO enrolment_tokens (hash, client, created_at, expires_at) VALUES (?, ?, ?, ?)`,
			hash, client, micros(c.opts.Now()), micros(expires))
		return err
	})
}

// EnrolmentClient says whose the token is, without using it up. KindNotFound, KindUsed, KindExpired.
func (c *Catalog) EnrolmentClient(ctx context.Context, hash string) (string, error) {
	client, err := enrolmentClient(ctx, c.r, hash, c.opts.Now())
	return client, c.fail("enrolment token", err)
}

func enrolmentClient(ctx context.Context, q querier, hash string, now time.Time) (string, error) {
	type row struct {
		client        string
		expires, used time.Time
	}
	t, err := one(ctx, q, func(s scanner) (r row, err error) {
		err = s.Scan(&r.client, when{&r.expires}, when{&r.used})
		return r, err
	}, `SELECT client, expires_at, used_at FROM enrolment_tokens WHERE hash = ?`, hash)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", &Error{Kind: KindNotFound, Op: "enrolment token", Err: errors.New("it is not known")}
	case err != nil:
		return "", err
	case !t.used.IsZero():
		return t.client, &Error{Kind: KindUsed, Op: "enrolment token of client " + t.client, Err: fmt.Errorf("it was used at %s", t.used.Format(time.RFC3339))}
	case !now.Before(t.expires):
		return t.client, &Error{Kind: KindExpired, Op: "enrolment token of client " + t.client, Err: fmt.Errorf("it expired at %s", t.expires.Format(time.RFC3339))}
	}
	return t.client, nil
}

// UseEnrolment uses the token up and enrols its client with the certificate: one step, so that of two agents with the
// same token one wins. Earlier certificates of the client are revoked, and a revoked client is one again.
// KindNotFound, KindUsed, KindExpired.
func (c *Catalog) UseEnrolment(ctx context.Context, hash string, cert Certificate) error {
	return c.write(ctx, "enrol", func(tx *sql.Tx) error {
		now := c.opts.Now()
		client, err := enrolmentClient(ctx, tx, hash, now)
		if err != nil {
			return err
		}
		for _, s := range []struct {
			query string
			args  []any
		}{
			{`UPDATE enrolment_tokens SET used_at = ? WHERE hash = ?`, []any{micros(now), hash}},
			{`UPDATE certificates SET revoked_at = ? WHERE client = ? AND revoked_at IS NULL`, []any{micros(now), client}},
			{`UPDATE clients SET enrolled_at = ?, revoked_at = NULL WHERE name = ?`, []any{micros(now), client}},
		} {
			if _, err := tx.ExecContext(ctx, s.query, s.args...); err != nil {
				return err
			}
		}
		cert.Client = client
		return insertCertificate(ctx, tx, cert)
	})
}

func insertCertificate(ctx context.Context, tx *sql.Tx, cert Certificate) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO certificates (serial, client, fingerprint, issued_at, not_after) VALUES (?, ?, ?, ?, ?)`,
		cert.Serial, cert.Client, cert.Fingerprint, micros(cert.IssuedAt), micros(cert.NotAfter))
	return err
}

// AddCertificate keeps a certificate that was issued to renew another; the older ones stay valid until they end.
func (c *Catalog) AddCertificate(ctx context.Context, cert Certificate) error {
	return c.write(ctx, "add certificate of client "+cert.Client, func(tx *sql.Tx) error { return insertCertificate(ctx, tx, cert) })
}

// CertificateBySerial returns a certificate; KindNotFound.
func (c *Catalog) CertificateBySerial(ctx context.Context, serial string) (Certificate, error) {
	cert, err := one(ctx, c.r, func(s scanner) (x Certificate, err error) {
		err = s.Scan(&x.Serial, &x.Client, &x.Fingerprint, when{&x.IssuedAt}, when{&x.NotAfter}, when{&x.RevokedAt})
		return x, err
	}, `SELECT serial, client, fingerprint, issued_at, not_after, revoked_at FROM certificates WHERE serial = ?`, serial)
	return cert, c.fail("certificate "+serial, err)
}

// RevokeClient revokes all certificates and open enrolment tokens of a client. KindNotFound.
func (c *Catalog) RevokeClient(ctx context.Context, name string) error {
	op := "revoke client " + name
	return c.write(ctx, op, func(tx *sql.Tx) error {
		now := micros(c.opts.Now())
		err := execOne(ctx, tx, failf(KindNotFound, "%s", op), `UPDATE clients SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?`, now, name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE certificates SET revoked_at = ? WHERE client = ? AND revoked_at IS NULL`, now, name); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM enrolment_tokens WHERE client = ? AND used_at IS NULL`, name)
		return err
	})
}

// Sighting is what an agent tells of itself when it connects.
type Sighting struct {
	Hostname, OS, Arch, AgentVersion, Address string
}

// ClientConnected keeps what the agent told and that it was seen now.
func (c *Catalog) ClientConnected(ctx context.Context, name string, s Sighting) error {
	op := "client connected " + name
	return c.exec(ctx, op, failf(KindNotFound, "%s", op),
		`UPDATE clients SET last_seen = ?, hostname = ?, os = ?, arch = ?, agent_version = ?, address = ? WHERE name = ?`,
		micros(c.opts.Now()), s.Hostname, s.OS, s.Arch, s.AgentVersion, s.Address, name)
}

// ClientSeen keeps that the agent was seen now.
func (c *Catalog) ClientSeen(ctx context.Context, name string) error {
	return c.exec(ctx, "client seen "+name, nil, `UPDATE clients SET last_seen = ? WHERE name = ?`, micros(c.opts.Now()), name)
}
