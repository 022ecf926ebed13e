package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"strings"
	"time"

	"coffer/api"
)

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the certificate's fingerprint.
func FingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.Raw) }

// String is the form that openssl prints: upper-case pairs of hex digits, joined by colons.
func (f Fingerprint) String() string {
	pairs := make([]string, len(f))
	for i, b := range f {
		pairs[i] = strings.ToUpper(hex.EncodeToString([]byte{b}))
	}
	return strings.Join(pairs, ":")
}

// ParseFingerprint reads hex in either case, with or without colons and blanks, and an optional "SHA256:" before it.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	text := strings.TrimSpace(s)
	if len(text) > 7 && strings.EqualFold(text[:7], "sha256:") {
		text = text[7:]
	}
	raw, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(text))
	if err != nil || len(raw) != len(f) {
		return f, api.Errorf(api.CodeBadRequest, "fingerprint %q is not the %d hex digits of a SHA-256", s, 2*len(f)).
			WithHint("'coffer login' without --fingerprint shows it, and so does cofferd when it starts")
	}
	copy(f[:], raw)
	return f, nil
}

// Identity is what a server shows before anything is trusted.
type Identity struct {
	// Pin is the fingerprint to show and to pin: the CA's when the server sends it, otherwise the server's own.
	Pin Fingerprint
	// CA says that Pin is a CA's.
	CA bool
	// Leaf is the server's certificate.
	Leaf *x509.Certificate
}

// Inspect connects to a server without trusting it and returns what it shows. Nothing is sent.
func Inspect(ctx context.Context, server string) (Identity, error) {
	u, err := ParseServer(server)
	if err != nil {
		return Identity{}, err
	}
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: &tls.Config{MinVersion: tls.VersionTLS12,
		// The caller decides by the fingerprint; nothing is sent on this connection.
		InsecureSkipVerify: true}}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return Identity{}, (&Client{base: u}).transportError(context.WithoutCancel(ctx), err)
	}
	defer conn.Close()
	return identify(conn.(*tls.Conn).ConnectionState().PeerCertificates), nil
}

// identify chooses what to pin: the CA that signed the leaf, when it is in the chain.
func identify(chain []*x509.Certificate) Identity {
	id := Identity{Leaf: chain[0], Pin: FingerprintOf(chain[0])}
	for _, c := range chain[1:] {
		if c.IsCA && c.CheckSignatureFrom(c) == nil && verify(chain[0], c) == nil {
			id.Pin, id.CA = FingerprintOf(c), true
		}
	}
	return id
}

// pinned is a TLS configuration that trusts one certificate: a CA in the chain that signed the server's certificate, or
// the server's own. Host names are not looked at: the CA is the appliance's own and signs no other servers, and names
// and addresses of an appliance change.
func pinned(pin Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// VerifyConnection does the whole verification; the default one knows only the system's CAs and host names.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return trust(s.PeerCertificates, pin, s.ServerName)
		},
	}
}

func trust(chain []*x509.Certificate, pin Fingerprint, server string) error {
	for i, c := range chain {
		if FingerprintOf(c) != pin {
			continue
		}
		if err := verify(chain[0], c); i > 0 && err != nil {
			return api.Errorf(api.CodeUntrusted, "the certificate of %s is not valid: %v", server, err).
				WithHint("is the clock of this machine right?")
		}
		return inTime(chain[0], server)
	}
	shown := "none"
	if len(chain) > 0 {
		shown = identify(chain).Pin.String()
	}
	return api.Errorf(api.CodeUntrusted, "the certificate of %s is not the trusted one: SHA-256 %s is shown, %s is expected", server, shown, pin).
		WithHint("if the appliance was set up anew, log in again; otherwise somebody else answers in its place")
}

func inTime(leaf *x509.Certificate, server string) error {
	now := time.Now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return api.Errorf(api.CodeUntrusted, "the certificate of %s is valid from %s to %s, and it is %s here", server,
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return nil
}

// verify holds the server's certificate against the CA.
func verify(leaf, ca *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}
