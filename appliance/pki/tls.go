package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ALPN is the protocol name that both ends of an SMS connection agree on; part of the protocol.
const ALPN = "coffer-sms/1"

// ALPNNBD asks the port of SMS for NBD: the connection, with the agent's certificate, is one to the appliance's NBD server.
// Part of the protocol.
const ALPNNBD = "coffer-nbd/1"

// ErrUntrusted says that a server is not the appliance that the client knows.
var ErrUntrusted = errors.New("the server is not the appliance that this client trusts")

// EnrolTLS is the agent's side before it has a certificate: TLS 1.3, the server verified by the fingerprint of its
// authority alone.
func EnrolTLS(ca Fingerprint) *tls.Config {
	return pinned(func(state tls.ConnectionState) (*x509.Certificate, error) {
		for _, cert := range state.PeerCertificates[1:] {
			if FingerprintOf(cert) == ca {
				return cert, nil
			}
		}
		return nil, fmt.Errorf("its authority's fingerprint is not %s: %w", ca, ErrUntrusted)
	})
}

// ClientTLS is the enrolled agent's side: TLS 1.3, its own certificate shown, the server verified against its authority.
func ClientTLS(id *Identity) *tls.Config {
	conf := pinned(func(tls.ConnectionState) (*x509.Certificate, error) { return id.CA, nil })
	conf.Certificates = []tls.Certificate{id.Certificate()}
	return conf
}

// pinned verifies the server against one authority and checks no host name; see the package documentation.
func pinned(authority func(tls.ConnectionState) (*x509.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ALPN},
		// VerifyConnection below does the whole verification; the default one would want a host name.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return fmt.Errorf("verify server: no certificate: %w", ErrUntrusted)
			}
			ca, err := authority(state)
			if err != nil {
				return fmt.Errorf("verify server: %w", err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(ca)
			_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			if err != nil {
				return fmt.Errorf("verify server: %w: %w", err, ErrUntrusted)
			}
			return nil
		},
	}
}

// SMSConfig is the appliance's side of SMS: TLS 1.3; a client certificate is verified when shown, and may be absent
// only because an enrolling agent has none yet. INVARIANT: ingest serves nothing but the enrolment exchange to a
// connection without a verified certificate, and asks the catalog whether the serial is revoked.
func (a *Authority) SMSConfig() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{ALPN, ALPNNBD},
		GetCertificate:         a.serverCertificate,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              pool,
		SessionTicketsDisabled: true, // every connection verifies its certificate anew
	}
}

// NBDConfig is the appliance's side of NBD's STARTTLS: TLS 1.3; a client certificate is verified when shown. INVARIANT: who
// serves asks the catalog whether the serial is revoked.
func (a *Authority) NBDConfig() *tls.Config {
	c := a.SMSConfig()
	c.NextProtos = nil
	return c
}

// RESTConfig is the appliance's side of REST: TLS 1.3, no client certificates.
func (a *Authority) RESTConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: a.serverCertificate,
	}
}
