// Package digest owns the identity of stored bytes: keyed BLAKE3-256 digests, the keys of a dedup domain that
// they are made with, and the hasher.
//
// Data chunks and recipe nodes are hashed with different keys, both derived from the domain's key, so that the
// bytes of a file can never pass for a node. The package does not know what a chunk or a node is.
//
// The derivation contexts and the digest itself are part of the format: changing them makes every stored byte
// unfindable.
package digest

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Size is the length of a digest in bytes. Part of the format.
const Size = 32

// Digest is the keyed BLAKE3-256 of a chunk's plain bytes or of a recipe node's record.
// The zero Digest is never the digest of anything and stands for "none".
type Digest [Size]byte

// String returns the digest as 64 lower case hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is the zero Digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// Compare orders digests by their bytes: -1, 0 or +1.
func (d Digest) Compare(o Digest) int { return bytes.Compare(d[:], o[:]) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it accepts what Parse accepts.
func (d *Digest) UnmarshalText(p []byte) error { return unhex(d[:], p, "digest") }

// Parse reads the form that String writes.
func Parse(s string) (Digest, error) {
	var d Digest
	err := unhex(d[:], []byte(s), "digest")
	return d, err
}

// unhex fills dst from exactly len(dst)*2 hex digits.
func unhex(dst, src []byte, what string) error {
	if len(src) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("parse %s: %d characters, want %d hex digits", what, len(src), hex.EncodedLen(len(dst)))
	}
	if _, err := hex.Decode(dst, src); err != nil {
		return fmt.Errorf("parse %s: %w", what, err)
	}
	return nil
}
