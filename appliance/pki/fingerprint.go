package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
)

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the certificate's fingerprint.
func FingerprintOf(cert *x509.Certificate) Fingerprint { return sha256.Sum256(cert.Raw) }

// String is the form openssl prints: upper-case hex pairs joined by colons.
func (f Fingerprint) String() string {
	var b strings.Builder
	for i, c := range f {
		if i > 0 {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%02X", c)
	}
	return b.String()
}

// ParseFingerprint reads hex in either case, with or without colons and blanks.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	plain := strings.NewReplacer(":", "", " ", "").Replace(strings.TrimSpace(s))
	raw, err := hex.DecodeString(plain)
	if err != nil || len(raw) != len(f) {
		return f, fmt.Errorf("parse fingerprint %q: want the %d hex digits of a SHA-256", s, 2*len(f))
	}
	copy(f[:], raw)
	return f, nil
}
