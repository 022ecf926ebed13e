package sms

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// Token is the secret that an order gives to an agent for one run: who opens the run or one of its lanes shows it.
type Token [32]byte

// NewToken makes a random token.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails: crypto/rand ends the program instead
	return t
}

// IsZero reports whether t is no token.
func (t Token) IsZero() bool { return t == Token{} }

// String hides the token, so that no log line shows it.
func (Token) String() string { return "token(hidden)" }

// GoString hides the token.
func (Token) GoString() string { return "sms.Token(hidden)" }

// MarshalText writes the token as 64 hex digits.
func (t Token) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(t[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (t *Token) UnmarshalText(b []byte) error {
	if len(b) != 2*len(t) {
		return fmt.Errorf("parse run token: %d bytes, want %d", len(b), 2*len(t))
	}
	if _, err := hex.Decode(t[:], b); err != nil {
		return fmt.Errorf("parse run token: %w", err)
	}
	return nil
}
