package servertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"log/slog"
	"math/big"
	"net"
	"testing"
	"time"

	"coffer/api/server"
)

// Running is a server on a loopback port.
type Running struct {
	Backend     *Backend
	URL         string // https://127.0.0.1:port
	Fingerprint string // SHA-256 of the CA's certificate, hex
	Leaf        string // SHA-256 of the server's certificate, hex
	Stop        func() // stops the server and waits; may be called twice
}

// Start serves b on a loopback port until the test ends.
func Start(t *testing.T, b *Backend) *Running {
	t.Helper()
	conf, ca, leaf := certificates(t)
	s, err := server.New(b, server.Options{TLS: conf, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return &Running{Backend: b, URL: "https://" + ln.Addr().String(), Fingerprint: ca, Leaf: leaf, Stop: stop}
}

// certificates makes a CA and a server certificate under it.
func certificates(t *testing.T) (conf *tls.Config, caSum, leafSum string) {
	t.Helper()
	caKey, caCert := certificate(t, "test CA", nil, nil)
	key, cert := certificate(t, "test server", caCert, caKey)
	conf = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, caCert.Raw}, PrivateKey: key}}}
	return conf, sum(caCert), sum(cert)
}

func sum(c *x509.Certificate) string {
	s := sha256.Sum256(c.Raw)
	return hex.EncodeToString(s[:])
}

// certificate makes a certificate under ca, or a CA when ca is nil.
func certificate(t *testing.T, name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	parent, signer := ca, caKey
	if ca == nil {
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = tmpl, key
	} else {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}
