package keys

import (
	"context"
	"encoding/base32"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/blake3"
)

// A recovery key is 20 random bytes and 5 bytes of checksum, as eight groups of five letters and digits. Part of the
// format.
const (
	recoverySize   = 20
	recoverySum    = 5
	recoveryGroup  = 5
	recoveryDigits = (recoverySize + recoverySum) * 8 / 5
	recoveryTitle  = "coffer recovery key v1"
	// maxRecoveryText bounds what is parsed.
	maxRecoveryText = 256
)

// recoveryAlphabet has no letter that is mistaken for a digit or another one: Crockford's.
const recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var recoveryEncoding = base32.NewEncoding(recoveryAlphabet).WithPadding(base32.NoPadding)

// RecoveryKey is a key that a person writes down. Text shows it: once, and it is kept nowhere.
type RecoveryKey struct{ key [recoverySize]byte }

// NewRecoveryKey makes a recovery key. rand nil means crypto/rand.
func NewRecoveryKey(rand io.Reader) (RecoveryKey, error) {
	var k RecoveryKey
	if err := newLockedReader(rand).fill(k.key[:]); err != nil {
		return k, fmt.Errorf("make recovery key: %w", err)
	}
	return k, nil
}

func (k RecoveryKey) sum() []byte {
	h := blake3.New()
	_, _ = h.Write([]byte(recoveryTitle)) // a hash never fails
	_, _ = h.Write(k.key[:])
	return h.Sum(nil)[:recoverySum]
}

// Text returns the key as a person writes it, like 8B5ZK-0QW3R-….
func (k RecoveryKey) Text() string {
	digits := recoveryEncoding.EncodeToString(append(k.key[:len(k.key):len(k.key)], k.sum()...))
	groups := make([]string, 0, recoveryDigits/recoveryGroup)
	for ; digits != ""; digits = digits[recoveryGroup:] {
		groups = append(groups, digits[:recoveryGroup])
	}
	return strings.Join(groups, "-")
}

// String hides the key, so that no log line shows it.
func (RecoveryKey) String() string { return "recovery key" }

// GoString hides the key from %#v.
func (k RecoveryKey) GoString() string { return k.String() }

// ParseRecoveryKey reads a key that a person typed: case, spaces and dashes do not matter, nor O for 0, I and L for 1.
// ErrDamaged: it was mistyped, which its checksum tells from a wrong key.
func ParseRecoveryKey(text string) (RecoveryKey, error) {
	fail := func(what string) (RecoveryKey, error) {
		return RecoveryKey{}, fmt.Errorf("recovery key: %s: %w", what, ErrDamaged)
	}
	if len(text) > maxRecoveryText {
		return fail("too long")
	}
	digits := strings.Map(func(r rune) rune {
		switch r {
		case ' ', '-', '\t', '\r', '\n':
			return -1
		case 'O':
			return '0'
		case 'I', 'L':
			return '1'
		}
		return r
	}, strings.ToUpper(text))
	if len(digits) != recoveryDigits {
		return fail(fmt.Sprintf("%d letters and digits, want %d", len(digits), recoveryDigits))
	}
	raw, err := recoveryEncoding.DecodeString(digits)
	if err != nil {
		return fail("a character that no recovery key has")
	}
	k := RecoveryKey{key: [recoverySize]byte(raw)}
	if string(raw[recoverySize:]) != string(k.sum()) {
		return fail("checksum does not match: it was mistyped")
	}
	return k, nil
}

// Source is what opens a keyring with the key.
func (k RecoveryKey) Source() Source { return recovery{k} }

type recovery struct{ RecoveryKey }

func (recovery) kind() Kind      { return KindRecoveryKey }
func (recovery) cost() argonCost { return argonCost{} }

func (k recovery) kek(_ context.Context, s *slot) (secret, error) {
	return derive(ctxRecovery, append(k.key[:len(k.key):len(k.key)], s.salt[:]...)), nil
}
