package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string, opts Options) *Authority {
	t.Helper()
	if opts.Names == nil {
		opts.Names = func() ([]string, []net.IP) { return []string{"backup1", "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)} }
	}
	a, err := OpenAuthority(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func enrolled(t *testing.T, a *Authority, client string) *Identity {
	t.Helper()
	req, err := NewRequest("what the agent thinks")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := a.IssueClient(client, req.CSR)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(req.Key, issued.Cert, issued.CA)
	if err != nil {
		t.Fatal(err)
	}
	if SerialString(id.Cert) != issued.Serial || !id.Cert.NotAfter.Equal(issued.NotAfter) {
		t.Errorf("issued %s until %v, the certificate says %s until %v", issued.Serial, issued.NotAfter, SerialString(id.Cert), id.Cert.NotAfter)
	}
	return id
}

// handshake connects a client to the server over loopback and returns the client certificate that the server saw.
func handshake(t *testing.T, server, client *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		cert *x509.Certificate
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer conn.Close()
		tc := conn.(*tls.Conn)
		if err := tc.Handshake(); err != nil {
			done <- result{nil, err}
			return
		}
		var r result
		if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
			r.cert = certs[0]
		}
		_, r.err = tc.Write([]byte("x"))
		done <- r
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		<-done
		return nil, err
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		<-done
		return nil, err
	}
	r := <-done
	return r.cert, r.err
}

func TestEnrolAndConnect(t *testing.T) {
	a := open(t, t.TempDir(), Options{})
	token := NewToken(a.Fingerprint())
	if cert, err := handshake(t, a.SMSConfig(), EnrolTLS(token.CA)); err != nil || cert != nil {
		t.Fatalf("enrolling connection: %v, %v", cert, err)
	}
	id := enrolled(t, a, "web1")
	if id.Client() != "web1" {
		t.Errorf("the certificate is for %q", id.Client())
	}
	cert, err := handshake(t, a.SMSConfig(), ClientTLS(id))
	if err != nil || cert == nil || SerialString(cert) != SerialString(id.Cert) {
		t.Fatalf("mutual TLS: %v, %v", cert, err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	a, other := open(t, t.TempDir(), Options{}), open(t, t.TempDir(), Options{})
	id, stranger := enrolled(t, a, "web1"), enrolled(t, other, "web1")
	if _, err := handshake(t, other.SMSConfig(), EnrolTLS(a.Fingerprint())); !errors.Is(err, ErrUntrusted) {
		t.Errorf("enrolling with another appliance: %v", err)
	}
	if _, err := handshake(t, other.SMSConfig(), ClientTLS(id)); !errors.Is(err, ErrUntrusted) {
		t.Errorf("connecting to another appliance: %v", err)
	}
	conf := ClientTLS(stranger)
	conf.VerifyConnection = nil
	if _, err := handshake(t, a.SMSConfig(), conf); err == nil {
		t.Error("a certificate of another authority is accepted")
	}
	// A client must not pass for the appliance towards other clients.
	server := a.SMSConfig()
	leaf := id.Certificate()
	leaf.Certificate = append(leaf.Certificate, a.cert.Raw)
	server.GetCertificate, server.Certificates = nil, []tls.Certificate{leaf}
	if _, err := handshake(t, server, EnrolTLS(a.Fingerprint())); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a client certificate passes for the server's: %v", err)
	}
	old := ClientTLS(id)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := handshake(t, a.SMSConfig(), old); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
}

func TestAuthoritySurvivesAndServerCertificateRenews(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)
	names := []string{"backup1"}
	opts := Options{Now: func() time.Time { return now }, Names: func() ([]string, []net.IP) { return names, nil }}
	serial := func() (Fingerprint, string) {
		a := open(t, dir, opts)
		c, err := a.serverCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], a.cert.Raw) {
			t.Fatal("the authority is not sent along")
		}
		return a.Fingerprint(), SerialString(c.Leaf)
	}
	ca, first := serial()
	if ca2, again := serial(); ca2 != ca || again != first {
		t.Error("a restart makes new certificates")
	}
	names = []string{"backup1", "backup1.example.org"}
	_, second := serial()
	if second == first {
		t.Error("a new name is not in the certificate")
	}
	now = now.Add(serverValidity - serverRenew)
	if _, third := serial(); third == second {
		t.Error("a certificate near its end is not renewed")
	}
	for name, mode := range map[string]fs.FileMode{caFile: 0o600, serverFile: 0o600, publicFile: 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, serverFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ca3, _ := serial(); ca3 != ca {
		t.Error("a damaged server certificate costs the authority")
	}
	if err := os.WriteFile(filepath.Join(dir, caFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, opts); err == nil {
		t.Error("a damaged authority is replaced in silence")
	}
}

func TestRunningServerRenews(t *testing.T) {
	now := time.Date(2026, 11, 22, 2, 15, 0, 0, time.UTC)
	a := open(t, t.TempDir(), Options{Now: func() time.Time { return now }})
	first, _ := a.serverCertificate(nil)
	now = now.Add(serverValidity - serverRenew)
	second, err := a.serverCertificate(nil)
	if err != nil || SerialString(first.Leaf) == SerialString(second.Leaf) {
		t.Errorf("a running appliance does not renew its certificate: %v", err)
	}
}

func TestIdentityFile(t *testing.T) {
	a := open(t, t.TempDir(), Options{})
	id := enrolled(t, a, "web1")
	path := filepath.Join(t.TempDir(), "identity.pem")
	if _, err := LoadIdentity(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing identity: %v", err)
	}
	if err := id.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity file: %v, %v", info.Mode(), err)
	}
	back, err := LoadIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, a.SMSConfig(), ClientTLS(back)); err != nil {
		t.Errorf("an identity that was saved does not connect: %v", err)
	}
	if at := back.RenewAt(); !at.After(back.Cert.NotBefore) || !at.Before(back.Cert.NotAfter) {
		t.Errorf("renewal at %v", at)
	}
	raw, _ := os.ReadFile(path)
	if err := os.WriteFile(path, raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(path); err == nil {
		t.Error("half an identity is accepted")
	}
	other := enrolled(t, a, "web2")
	if _, err := NewIdentity(other.Key, id.Cert.Raw, a.cert.Raw); err == nil {
		t.Error("a foreign key is accepted")
	}
}

func TestIssueRefusesWeakAndForgedRequests(t *testing.T) {
	a := open(t, t.TempDir(), Options{})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueClient("web1", csr); err == nil {
		t.Error("an RSA key is accepted")
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, _ = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, ec)
	csr[len(csr)-1] ^= 1
	if _, err := a.IssueClient("web1", csr); err == nil {
		t.Error("a request that its key did not sign is accepted")
	}
}

func TestToken(t *testing.T) {
	token := NewToken(Fingerprint{1, 2, 3})
	text := token.String()
	back, err := ParseToken("  " + strings.ToUpper(text) + "\n")
	if err != nil || back != token {
		t.Fatalf("parse: %v", err)
	}
	if token.SecretHash() != HashSecret(token.Secret[:]) || len(token.SecretHash()) != 64 {
		t.Error("hash of the secret")
	}
	for name, bad := range map[string]string{
		"empty": "", "no prefix": "x" + text, "short": text[:len(text)-1], "long": text + "a",
		"mistyped": text[:20] + "z" + text[21:], "not base32": text[:20] + "!" + text[21:],
	} {
		if bad == text {
			continue
		}
		_, err := ParseToken(bad)
		if !errors.Is(err, ErrBadToken) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && len(bad) > 20 && strings.Contains(err.Error(), bad[:20]) {
			t.Errorf("%s: the error repeats the secret", name)
		}
	}
}

// The token's form is part of the product: tokens are copied between versions.
func TestTokenGolden(t *testing.T) {
	var token Token
	for i := range token.Secret {
		token.Secret[i] = byte(i)
	}
	for i := range token.CA {
		token.CA[i] = byte(0x80 + i)
	}
	const want = "coffer1-aaaqeayeaudaocajbifqydiob4ibceqtqcayfa4eqwdipcejrkfyzdmor6ijdeutsskznf4ytgnjxhe5t2pzc6rssq"
	if got := token.String(); got != want {
		t.Errorf("token reads %s", got)
	}
	if back, err := ParseToken(want); err != nil || back != token {
		t.Errorf("parse: %v", err)
	}
}

func TestFingerprint(t *testing.T) {
	f := Fingerprint{0xab, 0xcd}
	for _, text := range []string{f.String(), strings.ToLower(f.String()), strings.ReplaceAll(f.String(), ":", "")} {
		if back, err := ParseFingerprint(text); err != nil || back != f {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseFingerprint("AB:CD"); err == nil {
		t.Error("a short fingerprint is accepted")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken(Fingerprint{1}).String())
	f.Add("coffer1-")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			return
		}
		if back, err := ParseToken(token.String()); err != nil || back != token {
			t.Errorf("%q does not come back", s)
		}
	})
}
