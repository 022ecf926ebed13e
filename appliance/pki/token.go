package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// TokenPrefix starts every enrolment token of this form; part of the format.
const TokenPrefix = "coffer1-"

// secretSize is the length of a token's secret in bytes; part of the format.
const secretSize = 20

// ErrBadToken says that a string is no enrolment token: wrong prefix, cut short or mistyped.
var ErrBadToken = errors.New("not an enrolment token (cut short or mistyped?)")

// Token is an enrolment token: a one-time secret and the fingerprint of the authority that the agent shall trust.
//
// Its text is TokenPrefix and then, in lower-case base32 without padding:
//
//	offset  size  field
//	0       20    secret
//	20      32    SHA-256 of the authority's certificate
//	52      4     CRC32C of the 52 bytes before, big endian: tells a typing error from an expired token
type Token struct {
	Secret [secretSize]byte
	CA     Fingerprint
}

var (
	tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
)

// NewToken makes a token with a random secret.
func NewToken(ca Fingerprint) Token {
	t := Token{CA: ca}
	_, _ = rand.Read(t.Secret[:]) // never fails: the runtime ends the program instead
	return t
}

// String is the one string that a person copies.
func (t Token) String() string {
	raw := append(append([]byte{}, t.Secret[:]...), t.CA[:]...)
	raw = binary.BigEndian.AppendUint32(raw, crc32.Checksum(raw, castagnoli))
	return TokenPrefix + tokenEncoding.EncodeToString(raw)
}

// ParseToken reads what String wrote; blanks around it and upper case are forgiven. The error wraps ErrBadToken and
// does not repeat the text, which is a secret.
func ParseToken(s string) (Token, error) {
	var t Token
	text, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(s)), TokenPrefix)
	if !ok {
		return t, fmt.Errorf("parse enrolment token: it does not start with %q: %w", TokenPrefix, ErrBadToken)
	}
	const want = secretSize + len(t.CA) + 4
	if len(text) != tokenEncoding.EncodedLen(want) {
		return t, fmt.Errorf("parse enrolment token: %d characters instead of %d: %w", len(text),
			tokenEncoding.EncodedLen(want), ErrBadToken)
	}
	raw, err := tokenEncoding.DecodeString(text)
	if err != nil || len(raw) != want {
		return t, fmt.Errorf("parse enrolment token: %w", ErrBadToken)
	}
	body, sum := raw[:want-4], binary.BigEndian.Uint32(raw[want-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return t, fmt.Errorf("parse enrolment token: checksum differs: %w", ErrBadToken)
	}
	copy(t.Secret[:], body)
	copy(t.CA[:], body[secretSize:])
	return t, nil
}

// SecretHash is the form in which the appliance keeps a token: hex of SHA-256 over the secret, which has 160 random
// bits and needs no salt.
func (t Token) SecretHash() string { return HashSecret(t.Secret[:]) }

// HashSecret is SecretHash for a secret that came over the wire.
func HashSecret(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}
