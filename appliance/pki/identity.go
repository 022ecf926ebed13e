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
	"os"
	"time"

	"coffer/appliance/internal/durable"
)

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY"
	maxPEMFile     = 64 << 10 // an identity is under 4 KiB
)

// Request is an agent's wish for a certificate: its new key, which never leaves the agent, and the signing request.
type Request struct {
	Key crypto.Signer
	CSR []byte // PKCS #10, DER
}

// NewRequest makes a new P-256 key and a signing request for it. The name is a hint only: the appliance puts the name
// of the enrolled client into the certificate.
func NewRequest(name string) (Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Request{}, fmt.Errorf("make client key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return Request{}, fmt.Errorf("make certificate request: %w", err)
	}
	return Request{Key: key, CSR: csr}, nil
}

// Identity is what an enrolled agent is: its key, its certificate and the authority that it trusts.
type Identity struct {
	Key  crypto.Signer
	Cert *x509.Certificate
	CA   *x509.Certificate
}

// NewIdentity joins a key with the certificates (DER) that the appliance answered, and checks that they belong together.
func NewIdentity(key crypto.Signer, certDER, caDER []byte) (*Identity, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("parse client certificate: %w", err)
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, fmt.Errorf("parse authority certificate: %w", err)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("client certificate does not belong to the client key")
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("client certificate is not signed by the authority: %w", err)
	}
	return &Identity{Key: key, Cert: cert, CA: ca}, nil
}

// Client is the client's name: the certificate's common name.
func (id *Identity) Client() string { return id.Cert.Subject.CommonName }

// RenewAt is the time from which the agent asks for a new certificate: two thirds through the validity.
func (id *Identity) RenewAt() time.Time {
	validity := id.Cert.NotAfter.Sub(id.Cert.NotBefore)
	return id.Cert.NotBefore.Add(validity * 2 / 3)
}

// Certificate is the identity in the form that crypto/tls wants.
func (id *Identity) Certificate() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{id.Cert.Raw}, PrivateKey: id.Key, Leaf: id.Cert}
}

// Save replaces the file at path, mode 0600, in one step: a renewal cut short leaves the old identity.
func (id *Identity) Save(path string) error {
	key, err := x509.MarshalPKCS8PrivateKey(id.Key)
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	var b bytes.Buffer
	for _, block := range []*pem.Block{
		{Type: pemPrivateKey, Bytes: key},
		{Type: pemCertificate, Bytes: id.Cert.Raw},
		{Type: pemCertificate, Bytes: id.CA.Raw},
	} {
		if err := pem.Encode(&b, block); err != nil {
			return fmt.Errorf("save identity: %w", err)
		}
	}
	return durable.WriteFile(path, b.Bytes(), 0o600)
}

// LoadIdentity reads what Save wrote. A missing file is an error that wraps fs.ErrNotExist: the agent is not enrolled.
func LoadIdentity(path string) (*Identity, error) {
	blocks, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	if len(blocks) != 3 || blocks[0].Type != pemPrivateKey || blocks[1].Type != pemCertificate || blocks[2].Type != pemCertificate {
		return nil, fmt.Errorf("load identity: %s does not hold a key and two certificates", path)
	}
	key, err := parseKey(blocks[0].Bytes)
	if err != nil {
		return nil, fmt.Errorf("load identity %s: %w", path, err)
	}
	id, err := NewIdentity(key, blocks[1].Bytes, blocks[2].Bytes)
	if err != nil {
		return nil, fmt.Errorf("load identity %s: %w", path, err)
	}
	return id, nil
}

// readPEM returns all PEM blocks of a small file.
func readPEM(path string) ([]*pem.Block, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPEMFile {
		return nil, fmt.Errorf("%s is %d bytes long: not a key file", path, info.Size())
	}
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var blocks []*pem.Block
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return blocks, nil
		}
		blocks = append(blocks, block)
	}
}

func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("parse private key: %T cannot sign", key)
	}
	return signer, nil
}
