package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"coffer/appliance/internal/durable"
)

// Validity of the three kinds of certificate, and how far before now they start (clocks of clients run behind).
const (
	caValidity     = 20 * 365 * 24 * time.Hour
	serverValidity = 397 * 24 * time.Hour // the longest that browsers accept
	clientValidity = 365 * 24 * time.Hour // agents renew after two thirds
	serverRenew    = 60 * 24 * time.Hour  // left when the server certificate is issued anew
	backdate       = 24 * time.Hour
)

// Files of an authority's directory.
const (
	caFile     = "ca.pem"     // key and certificate, 0600
	serverFile = "server.pem" // key, certificate, authority's certificate, 0600
	publicFile = "ca.crt"     // copy of the authority's certificate, 0644
)

// renewCheck is how often a running appliance asks whether its server certificate still fits.
const renewCheck = time.Hour

// Options change an Authority; the zero value works.
type Options struct {
	Now func() time.Time // nil: time.Now
	// Names returns the host names and addresses that the server certificate must carry; nil: LocalNames.
	Names func() (dns []string, ips []net.IP)
	// Validity of client certificates; 0: one year.
	ClientValidity time.Duration
	Logger         *slog.Logger // nil: silent
}

// Authority is the appliance's certificate authority and its server certificate. It is safe for concurrent use.
type Authority struct {
	dir  string
	opts Options
	cert *x509.Certificate
	key  crypto.Signer

	mu      sync.Mutex // guards the two below
	server  *tls.Certificate
	checked time.Time
}

// OpenAuthority loads the authority in dir, or makes one where the directory holds none. A damaged one is an error:
// nobody but an administrator decides that all agents must enrol again.
func OpenAuthority(dir string, opts Options) (*Authority, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Names == nil {
		opts.Names = LocalNames
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.ClientValidity == 0 {
		opts.ClientValidity = clientValidity
	}
	a := &Authority{dir: dir, opts: opts}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if err := a.loadOrCreate(); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if _, err := a.serverCertificate(nil); err != nil {
		return nil, err
	}
	return a, nil
}

// Certificate is the authority's own certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Fingerprint is the SHA-256 of the authority's certificate: what clients pin.
func (a *Authority) Fingerprint() Fingerprint { return FingerprintOf(a.cert) }

// Issued is a client certificate as the authority made it.
type Issued struct {
	Cert     []byte // DER
	CA       []byte // DER
	Serial   string // hex, as SerialString
	NotAfter time.Time
}

// SerialString is the form of a certificate's serial number that the catalog keeps.
func SerialString(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// IssueClient signs the request (PKCS #10, DER) for the named client, whatever name the request carries. The request
// must be signed by its own key, which must be an ECDSA or Ed25519 one.
func (a *Authority) IssueClient(client string, csr []byte) (Issued, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for client %s: %w", client, err)
	}
	if req.PublicKeyAlgorithm != x509.ECDSA && req.PublicKeyAlgorithm != x509.Ed25519 {
		return Issued{}, fmt.Errorf("issue certificate for client %s: a %s key is not accepted", client, req.PublicKeyAlgorithm)
	}
	tmpl := a.template(client, a.opts.ClientValidity)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, req.PublicKey, a.key)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for client %s: %w", client, err)
	}
	return Issued{Cert: der, CA: a.cert.Raw, Serial: tmpl.SerialNumber.Text(16), NotAfter: tmpl.NotAfter}, nil
}

func (a *Authority) template(name string, validity time.Duration) *x509.Certificate {
	now := a.opts.Now().UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Coffer"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

// newSerial returns 126 random bits, positive and never zero.
func newSerial() *big.Int {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw)
	raw[0] = raw[0]&0x3f | 0x40
	return new(big.Int).SetBytes(raw)
}

func (a *Authority) loadOrCreate() error {
	path := filepath.Join(a.dir, caFile)
	chain, key, err := loadPair(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a.create(path)
	}
	if err != nil {
		return err
	}
	a.cert, a.key = chain[0], key
	return a.publish()
}

func (a *Authority) create(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make authority key: %w", err)
	}
	host, _ := os.Hostname()
	tmpl := a.template("Coffer authority "+host, caValidity)
	tmpl.IsCA, tmpl.MaxPathLenZero = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make authority certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("make authority certificate: %w", err)
	}
	a.key = key
	if err := savePair(path, key, der); err != nil {
		return err
	}
	return a.publish()
}

// publish keeps a copy of the authority's certificate for administrators and browsers; nothing reads it.
func (a *Authority) publish() error {
	path := filepath.Join(a.dir, publicFile)
	want := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: a.cert.Raw})
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	return durable.WriteFile(path, want, 0o644)
}

// savePair writes a key and its certificates into one file, so that no crash leaves one without the other.
func savePair(path string, key crypto.Signer, ders ...[]byte) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: raw})
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})...)
	}
	return durable.WriteFile(path, out, 0o600)
}

// loadPair reads what savePair wrote and checks that key and first certificate belong together.
func loadPair(path string) ([]*x509.Certificate, crypto.Signer, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, nil, err
	}
	if len(blocks) < 2 || blocks[0].Type != pemPrivateKey {
		return nil, nil, fmt.Errorf("%s does not hold a key and its certificate", path)
	}
	key, err := parseKey(blocks[0].Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	var chain []*x509.Certificate
	for _, block := range blocks[1:] {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		chain = append(chain, cert)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, nil, fmt.Errorf("%s: the key does not belong to the certificate", path)
	}
	return chain, key, nil
}

// serverCertificate is tls.Config.GetCertificate: the current certificate, issued anew when it is near its end or
// lacks a name or address that this machine has now. A failed renewal keeps the old one while it is valid.
func (a *Authority) serverCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opts.Now()
	if a.server != nil && now.Sub(a.checked).Abs() < renewCheck {
		return a.server, nil
	}
	cert, err := a.currentServer(now)
	if err != nil && a.server == nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	if err != nil {
		a.opts.Logger.Error("server certificate not renewed, the old one stays", "error", err, "ends", a.server.Leaf.NotAfter)
		cert = a.server
	}
	a.server, a.checked = cert, now
	return cert, nil
}

// currentServer loads the server certificate, or issues a new one.
func (a *Authority) currentServer(now time.Time) (*tls.Certificate, error) {
	dns, ips := a.opts.Names()
	chain, key, err := loadPair(filepath.Join(a.dir, serverFile))
	if err == nil && a.fits(chain[0], now, dns, ips) {
		return &tls.Certificate{Certificate: [][]byte{chain[0].Raw, a.cert.Raw}, PrivateKey: key, Leaf: chain[0]}, nil
	}
	// Whatever is wrong with the old one (missing, damaged, of another authority), a new one mends it.
	return a.issueServer(dns, ips)
}

// fits says whether the server certificate is ours, covers every name and is not near its end.
func (a *Authority) fits(cert *x509.Certificate, now time.Time, dns []string, ips []net.IP) bool {
	if cert.CheckSignatureFrom(a.cert) != nil || now.Before(cert.NotBefore) || now.Add(serverRenew).After(cert.NotAfter) {
		return false
	}
	for _, name := range dns {
		if !slices.Contains(cert.DNSNames, name) {
			return false
		}
	}
	for _, ip := range ips {
		if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

func (a *Authority) issueServer(dns []string, ips []net.IP) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	name := "coffer"
	if len(dns) > 0 {
		name = dns[0]
	}
	tmpl := a.template(name, serverValidity-backdate)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	tmpl.DNSNames, tmpl.IPAddresses = dns, ips
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	if err := savePair(filepath.Join(a.dir, serverFile), key, der, a.cert.Raw); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// LocalNames returns this machine's host name, "localhost", the loopback addresses and the addresses of its interfaces.
func LocalNames() (dns []string, ips []net.IP) {
	if host, err := os.Hostname(); err == nil && host != "" && host != "localhost" {
		dns = append(dns, host)
	}
	dns = append(dns, "localhost")
	ips = []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return dns, ips
	}
	for _, addr := range addrs {
		ipnet, ok := addr.(*net.IPNet)
		if !ok || ipnet.IP.IsLinkLocalUnicast() || slices.ContainsFunc(ips, ipnet.IP.Equal) {
			continue
		}
		ips = append(ips, ipnet.IP)
	}
	return dns, ips
}
