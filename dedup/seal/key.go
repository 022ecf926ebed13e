package seal

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"
)

// Contexts of the BLAKE3 key derivation. Part of the format.
const (
	idContext      = "coffer 2026 task key id v1"
	chunkIVContext = "coffer 2026 task chunk iv v1"
	chunkContext   = "coffer 2026 task chunk key v1"
	nodeIVContext  = "coffer 2026 task node iv v1"
	nodeContext    = "coffer 2026 task node key v1"
)

// Key is the secret of a task: without it nothing that was sealed can be read.
type Key [32]byte

// String hides the key, so that no log line and no error shows it.
func (Key) String() string { return "task key (hidden)" }

// GoString hides the key from %#v.
func (k Key) GoString() string { return k.String() }

// NewKey returns a random key.
func NewKey() Key {
	var k Key
	rand.Read(k[:])
	return k
}

// ID returns the key's name, which tells nothing about the key.
func (k Key) ID() ID {
	var id ID
	blake3.DeriveKey(idContext, k[:], id[:])
	return id
}

// ID names a task key. The zero ID names none.
type ID [16]byte

// String returns 32 lower case hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names no key.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it accepts what ParseID accepts.
func (id *ID) UnmarshalText(p []byte) (err error) {
	*id, err = ParseID(string(p))
	return err
}

// ParseID reads the form that ID.String writes, in either case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("task key id %q: want %d hex digits: %w", s, 2*len(id), ErrMalformed)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("task key id %q: %w: %w", s, ErrMalformed, err)
	}
	return id, nil
}

// fileTitle is the first line of a key file. Part of the format.
const fileTitle = "coffer task key v1"

// MaxFile bounds a key file, in bytes.
const MaxFile = 4096

// File returns the contents of the key's file: text of three lines.
func (k Key) File() []byte { return fmt.Appendf(nil, "%s\n%x\n%v\n", fileTitle, k[:], k.ID()) }

// ParseFile reads what File wrote. Its last line, the id, is the checksum.
func ParseFile(data []byte) (Key, error) {
	bad := func(what string) (Key, error) { return Key{}, fmt.Errorf("task key file: %s: %w", what, ErrMalformed) }
	rest, ok := strings.CutPrefix(string(data), fileTitle)
	lines := strings.Fields(rest)
	if !ok || len(data) > MaxFile || len(lines) != 2 {
		return bad("it is not one")
	}
	raw, err := hex.DecodeString(lines[0])
	if err != nil || len(raw) != len(Key{}) {
		return bad("no key of 64 hex digits")
	}
	k := Key(raw)
	if id, err := ParseID(lines[1]); err != nil || id != k.ID() {
		return bad("the key does not fit its id, something was mistyped")
	}
	return k, nil
}
