package digest

import (
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Contexts of the BLAKE3 key derivation. Part of the format.
const (
	dataContext = "coffer 2026 data digest v1"
	nodeContext = "coffer 2026 node digest v1"
)

// DomainID names a dedup domain: the stores that share a digest key and a chunking polynomial, and so chunks.
type DomainID [16]byte

// String returns the id as 32 lower case hex digits.
func (id DomainID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the zero DomainID, which names no domain.
func (id DomainID) IsZero() bool { return id == DomainID{} }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (id DomainID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it accepts what ParseDomainID accepts.
func (id *DomainID) UnmarshalText(p []byte) error { return unhex(id[:], p, "domain id") }

// ParseDomainID reads the form that DomainID.String writes.
func ParseDomainID(s string) (DomainID, error) {
	var id DomainID
	err := unhex(id[:], []byte(s), "domain id")
	return id, err
}

// DomainKey is the secret of a dedup domain. It never rotates. Who has it can tell whether a guessed content is
// stored; it decrypts nothing.
type DomainKey [32]byte

// String hides the key, so that no log line and no error shows it.
func (DomainKey) String() string { return "domain key (hidden)" }

// GoString hides the key from %#v.
func (k DomainKey) GoString() string { return k.String() }

// Keys are the digest keys of a domain.
type Keys struct {
	Data [32]byte // of data chunks
	Node [32]byte // of recipe nodes
}

// String hides the keys, so that no log line and no error shows them.
func (Keys) String() string { return "digest keys (hidden)" }

// GoString hides the keys from %#v.
func (k Keys) GoString() string { return k.String() }

// Derive makes the digest keys of a domain from its key.
func Derive(k DomainKey) Keys {
	var keys Keys
	blake3.DeriveKey(dataContext, k[:], keys.Data[:])
	blake3.DeriveKey(nodeContext, k[:], keys.Node[:])
	return keys
}

// Domain is what one needs to know of a dedup domain to compute digests in it.
type Domain struct {
	ID   DomainID
	Keys Keys
}
