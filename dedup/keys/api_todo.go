package keys

import (
	"context"
	"crypto/cipher"
	"io"

	"coffer/dedup/blob"
)

// Create makes a new ring with one store key. src None() makes a store without encryption.
func Create(ctx context.Context, rand io.Reader, src Source) (*Ring, error) { panic("todo") }

// Save puts the ring into the store as its newest keyring object, and deletes older ones.
func Save(ctx context.Context, b blob.Store, r *Ring) error { panic("todo") }

// Load opens the newest keyring of a store. blob.ErrNotExist: there is none; ErrWrongKey, ErrDamaged, ErrNewerFormat.
func Load(ctx context.Context, b blob.Store, src Source) (*Ring, error) { panic("todo") }

// Ring holds the store keys, open. Safe for concurrent use.
type Ring struct{}

// Encrypted tells whether new objects are encrypted, or only authenticated.
func (r *Ring) Encrypted() bool { panic("todo") }

// Seal encrypts (or, without encryption, authenticates) a small object under the newest store key. kind and name are
// authenticated with it: it opens only as what it was sealed as.
func (r *Ring) Seal(kind, name string, plain []byte) ([]byte, error) { panic("todo") }

// Open is the reverse of Seal. ErrDamaged, ErrUnknownKey, ErrNewerFormat.
func (r *Ring) Open(kind, name string, sealed []byte) ([]byte, error) { panic("todo") }

// Source yields the key that opens a ring: KeyFile(data), Password(pw) or None().
type Source interface {
	kek(ctx context.Context, p slotParams) ([32]byte, error)
}
type slotParams struct{}

// KeyFile is the source of a key file's contents. NewKeyFile makes one.
func KeyFile(data []byte) (Source, error)            { panic("todo") }
func NewKeyFile(rand io.Reader) ([]byte, error)      { panic("todo") }
func Password(pw []byte, opt PasswordOptions) Source { panic("todo") }
func None() Source                                   { panic("todo") }

// PasswordOptions are the argon2id cost for new slots; zero values mean the defaults. Tests lower them.
type PasswordOptions struct {
	Time, MemoryKiB uint32
	Threads         uint8
}

var _ cipher.AEAD
