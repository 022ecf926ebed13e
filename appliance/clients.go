package appliance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/ingest"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
)

// enrolmentLife is how long an enrolment token can be used.
const enrolmentLife = time.Hour

// clientDesk knows the clients towards ingest: who they are, which certificates count, and how they get one.
type clientDesk struct{ *appliance }

var (
	_ ingest.Clients  = (*clientDesk)(nil)
	_ ingest.Enroller = (*clientDesk)(nil)
)

// Authenticate implements ingest.Clients: the certificate must be one that the catalog knows as issued and not revoked.
func (d *clientDesk) Authenticate(ctx context.Context, cert *x509.Certificate) (string, error) {
	serial := pki.SerialString(cert)
	known, err := d.catalog.CertificateBySerial(ctx, serial)
	if catalog.KindOf(err) == catalog.KindNotFound {
		return "", sms.Errorf(sms.CodeAuth, "certificate %s of %q is not known to this appliance: enrol the agent again", serial, cert.Subject.CommonName)
	}
	if err != nil {
		return "", fmt.Errorf("look up certificate %s: %w", serial, err)
	}
	if !known.RevokedAt.IsZero() {
		return "", sms.Errorf(sms.CodeAuth, "certificate %s of client %s was revoked at %s", serial, known.Client, known.RevokedAt.Format(time.RFC3339))
	}
	return known.Client, nil
}

// Connected implements ingest.Clients.
func (d *clientDesk) Connected(client string, hello sms.Hello, remote net.Addr) {
	s := catalog.Sighting{Hostname: hello.Hostname, OS: hello.OS, Arch: hello.Arch, AgentVersion: hello.Agent, Address: hostOf(remote)}
	if err := d.catalog.ClientConnected(context.Background(), client, s); err != nil {
		d.log.Warn("client's connection not recorded", "client", client, "error", err)
	}
	d.jobs.ClientChanged(client)
	d.machines.Connected(client)
}

// Disconnected implements ingest.Clients.
func (d *clientDesk) Disconnected(client string, _ error) {
	if err := d.catalog.ClientSeen(context.Background(), client); err != nil {
		d.log.Warn("client's last-seen time not recorded", "client", client, "error", err)
	}
	d.jobs.ClientChanged(client)
}

// Enrol implements ingest.Enroller: a token becomes a certificate, once.
func (d *clientDesk) Enrol(ctx context.Context, e sms.Enrol, remote net.Addr) (sms.EnrolResult, error) {
	hash := pki.HashSecret(e.Secret)
	client, err := d.catalog.EnrolmentClient(ctx, hash)
	if err != nil {
		return sms.EnrolResult{}, tokenRefused(err)
	}
	issued, record, err := d.issue(client, e.CSR)
	if err != nil {
		return sms.EnrolResult{}, err
	}
	if err := d.catalog.UseEnrolment(ctx, hash, record); err != nil {
		return sms.EnrolResult{}, tokenRefused(err)
	}
	d.agents.Disconnect(client, "the client enrolled anew")
	d.record(ctx, "client.enrol", client, "from "+remote.String()+", host name "+e.Hostname)
	d.jobs.ClientChanged(client)
	return sms.EnrolResult{Client: client, Certificate: issued.Cert, CA: issued.CA}, nil
}

// tokenRefused words for the agent why a token does not do.
func tokenRefused(err error) error {
	switch catalog.KindOf(err) {
	case catalog.KindNotFound:
		return sms.Errorf(sms.CodeAuth, "the enrolment token is not known here: a newer one may have replaced it")
	case catalog.KindUsed:
		return sms.Errorf(sms.CodeAuth, "the enrolment token was used before: it is good for one agent; make a new one")
	case catalog.KindExpired:
		return sms.Errorf(sms.CodeAuth, "the enrolment token has expired: it is good for an hour; make a new one")
	}
	return err
}

// Renew implements ingest.Enroller.
func (d *clientDesk) Renew(ctx context.Context, client string, cert *x509.Certificate, csr []byte) (sms.EnrolResult, error) {
	issued, record, err := d.issue(client, csr)
	if err != nil {
		return sms.EnrolResult{}, err
	}
	if err := d.catalog.AddCertificate(ctx, record); err != nil {
		return sms.EnrolResult{}, err
	}
	d.record(ctx, "client.renew", client, "certificate "+pki.SerialString(cert)+" followed by "+issued.Serial)
	return sms.EnrolResult{Client: client, Certificate: issued.Cert, CA: issued.CA}, nil
}

func (d *clientDesk) issue(client string, csr []byte) (pki.Issued, catalog.Certificate, error) {
	issued, err := d.authority.IssueClient(client, csr)
	if err != nil {
		return issued, catalog.Certificate{}, sms.Errorf(sms.CodeAuth, "the certificate request is not accepted: %w", err)
	}
	cert, err := x509.ParseCertificate(issued.Cert)
	if err != nil {
		return issued, catalog.Certificate{}, err
	}
	return issued, catalog.Certificate{Serial: issued.Serial, Client: client, Fingerprint: pki.FingerprintOf(cert).String(),
		IssuedAt: d.opts.Now(), NotAfter: issued.NotAfter}, nil
}

// record writes what happens without a call of the API to the audit log.
func (a *appliance) record(ctx context.Context, action, object, detail string) {
	err := a.catalog.AddAudit(context.WithoutCancel(ctx), catalog.AuditEntry{Action: action, Object: object, OK: true, Detail: detail})
	if err != nil {
		a.log.Error("audit log not written", "action", action, "object", object, "error", err)
	}
}

func hostOf(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return host
}

// clients implements server.Clients.
type clients struct{ *appliance }

var _ server.Clients = clients{}

func noClient(name string, err error) error {
	if catalog.KindOf(err) == catalog.KindNotFound {
		return api.Errorf(api.CodeNotFound, "there is no client %q", name).WithHint("see: coffer client list")
	}
	return apiError(err)
}

// Clients implements server.Clients.
func (c clients) Clients(ctx context.Context) ([]api.Client, error) {
	all, err := c.catalog.Clients(ctx)
	if err != nil {
		return nil, apiError(err)
	}
	moved, err := c.moved(ctx)
	return mapped(all, func(cl catalog.Client) api.Client { return c.present(cl, moved) }), apiError(err)
}

// moved are the clients for which the agent of another one works.
func (c clients) moved(ctx context.Context) (map[string]bool, error) {
	tasks, err := c.catalog.Tasks(ctx)
	out := map[string]bool{}
	for _, t := range tasks {
		if t.Worker() != t.Client {
			out[t.Client] = true
		}
	}
	return out, err
}

// Client implements server.Clients.
func (c clients) Client(ctx context.Context, name string) (api.Client, error) {
	cl, err := c.catalog.Client(ctx, name)
	if err != nil {
		return api.Client{}, noClient(name, err)
	}
	moved, err := c.moved(ctx)
	if err != nil {
		return api.Client{}, apiError(err)
	}
	return c.present(cl, moved), nil
}

// present joins what the catalog knows of a client with its connection.
func (c clients) present(cl catalog.Client, moved map[string]bool) api.Client {
	p := c.agents.Presence(cl.Name)
	out := api.Client{Name: cl.Name, Hostname: cl.Hostname, OS: cl.OS, Arch: cl.Arch, Agent: cl.AgentVersion, Address: cl.Address,
		CreatedAt: cl.CreatedAt, EnrolledAt: at(cl.EnrolledAt), LastSeen: at(cl.LastSeen),
		CertSHA256: strings.ToLower(strings.ReplaceAll(cl.Cert.Fingerprint, ":", "")), CertUntil: at(cl.Cert.NotAfter)}
	switch {
	case !cl.RevokedAt.IsZero():
		out.State = api.ClientRevoked
	case cl.EnrolledAt.IsZero() && moved[cl.Name]:
		out.State = api.ClientAgentless
	case cl.EnrolledAt.IsZero():
		out.State = api.ClientPending
	case p.Online:
		out.State, out.LastSeen = api.ClientOnline, at(c.opts.Now())
	default:
		out.State = api.ClientOffline
	}
	return out
}

// AddClient implements server.Clients.
func (c clients) AddClient(ctx context.Context, s api.ClientSpec) (api.Enrolment, error) {
	if err := c.catalog.AddClient(ctx, s.Name); err != nil {
		if catalog.KindOf(err) == catalog.KindExists {
			return api.Enrolment{}, api.Errorf(api.CodeExists, "there is a client %q already", s.Name).
				WithHint("for a new enrolment token of it: coffer client token %s", s.Name)
		}
		return api.Enrolment{}, apiError(err)
	}
	c.jobs.ClientChanged(s.Name)
	return c.NewEnrolment(ctx, s.Name)
}

// NewEnrolment implements server.Clients.
func (c clients) NewEnrolment(ctx context.Context, name string) (api.Enrolment, error) {
	token := pki.NewToken(c.authority.Fingerprint())
	until := c.opts.Now().Add(enrolmentLife).UTC()
	if err := c.catalog.AddEnrolment(ctx, name, token.SecretHash(), until); err != nil {
		return api.Enrolment{}, noClient(name, err)
	}
	return api.Enrolment{Client: name, Token: token.String(), ExpiresAt: until, Server: c.smsAddress()}, nil
}

// smsAddress is where agents reach this machine: the host name where the listener takes all addresses.
func (a *appliance) smsAddress() string {
	host, port, err := net.SplitHostPort(a.sms.Addr().String())
	if err != nil {
		return a.sms.Addr().String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// RevokeClient implements server.Clients.
func (c clients) RevokeClient(ctx context.Context, name string) (api.Client, error) {
	if err := c.catalog.RevokeClient(ctx, name); err != nil {
		return api.Client{}, noClient(name, err)
	}
	c.log.Warn("client revoked", "client", name)
	c.jobs.ClientRevoked(name)
	c.agents.Disconnect(name, "the certificate was revoked")
	c.exports.Revoke(name)
	c.jobs.ClientChanged(name)
	return c.Client(ctx, name)
}

// errNoAnswer is the cause when an agent does not answer a question in time.
var errNoAnswer = errors.New("the agent did not answer in time")
