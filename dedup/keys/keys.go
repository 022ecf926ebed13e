// Package keys owns the store's keys: what opens them, how they are kept, and what they seal.
//
// A key file or a password opens the keyring; the keyring holds numbered store keys; a store key wraps the data key of
// each container and seals small objects (manifests, domains). FORMAT.md has the bytes. The package does not decide
// when keys are rotated, and it never writes a key outside the keyring object.
package keys

import "errors"

// Errors of this package, wrapped with what was opened. A wrong key and a damaged object are never mistaken for each
// other: the keyring has a checksum of its own bytes and a check value per slot.
var (
	ErrWrongKey    = errors.New("wrong key or password")
	ErrDamaged     = errors.New("damaged")
	ErrNewerFormat = errors.New("newer format")
	ErrUnknownKey  = errors.New("store key is not in the keyring")
)
