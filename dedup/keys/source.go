package keys

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/crypto/argon2"
)

// Source is what opens a keyring: KeyFile, Password or None.
type Source interface {
	// kind is the kind of slot that the source opens.
	kind() Kind
	// cost returns the parameters of a new slot.
	cost() argonCost
	// kek derives the key-encryption key of a slot.
	kek(ctx context.Context, s *slot) (secret, error)
}

// None is the source of a store without encryption.
func None() Source { return noSource{} }

type noSource struct{}

func (noSource) kind() Kind                                 { return KindNone }
func (noSource) cost() argonCost                            { return argonCost{} }
func (noSource) kek(context.Context, *slot) (secret, error) { return secret{}, nil }

// PasswordOptions are the argon2id cost of new slots; a slot that exists says its own. Zero values mean the default:
// RFC 9106's second recommendation, 64 MiB and three passes. Tests lower it.
type PasswordOptions struct {
	Time      uint32 // passes
	MemoryKiB uint32
	Threads   uint8
}

// Default and highest cost. The bounds keep a forged keyring from asking for all memory.
const (
	defaultTime, maxTime           = 3, 64
	defaultMemoryKiB, maxMemoryKiB = 64 << 10, 1 << 20
	defaultThreads, maxThreads     = 4, 64
)

type argonCost struct {
	time, memoryKiB uint32
	threads         uint8
}

func (c argonCost) valid() bool {
	return c.time >= 1 && c.time <= maxTime && c.threads >= 1 && c.threads <= maxThreads &&
		c.memoryKiB >= 8*uint32(c.threads) && c.memoryKiB <= maxMemoryKiB
}

// Password is the source of a password. The bytes are used as they are: the caller strips line ends.
func Password(pw []byte, o PasswordOptions) Source {
	c := argonCost{time: o.Time, memoryKiB: o.MemoryKiB, threads: o.Threads}
	if c.time == 0 {
		c.time = defaultTime
	}
	if c.memoryKiB == 0 {
		c.memoryKiB = defaultMemoryKiB
	}
	if c.threads == 0 {
		c.threads = defaultThreads
	}
	return &password{pw: bytes.Clone(pw), c: c}
}

type password struct {
	pw []byte
	c  argonCost
}

func (*password) kind() Kind        { return KindPassword }
func (p *password) cost() argonCost { return p.c }

func (p *password) kek(ctx context.Context, s *slot) (secret, error) {
	if err := ctx.Err(); err != nil {
		return secret{}, err
	}
	if !s.cost.valid() {
		return secret{}, fmt.Errorf("keyring slot: argon2id cost out of range: %w", ErrDamaged)
	}
	return secret(argon2.IDKey(p.pw, s.salt[:], s.cost.time, s.cost.memoryKiB, s.cost.threads, keySize)), nil
}

// keyFileTitle is the first line of a key file. Part of the format.
const keyFileTitle = "coffer key file v1"

// maxKeyFile bounds what is parsed as a key file.
const maxKeyFile = 4096

// NewKeyFile returns the contents of a new key file. rand nil means crypto/rand.
func NewKeyFile(rand io.Reader) ([]byte, error) {
	var key secret
	if err := newLockedReader(rand).fill(key[:]); err != nil {
		return nil, fmt.Errorf("make key file: %w", err)
	}
	return fmt.Appendf(nil, "%s\n%x\n%x\n", keyFileTitle, key, keyFileSum(key)), nil
}

func keyFileSum(key secret) []byte {
	sum := blake3.Sum256(key[:])
	return sum[:4]
}

// KeyFile is the source of a key file's contents. ErrDamaged: they are not what NewKeyFile made.
func KeyFile(data []byte) (Source, error) {
	damaged := func(what string) error { return fmt.Errorf("key file: %s: %w", what, ErrDamaged) }
	if len(data) > maxKeyFile {
		return nil, damaged("too long")
	}
	lines := strings.Fields(strings.TrimPrefix(string(data), keyFileTitle))
	if !strings.HasPrefix(string(data), keyFileTitle) || len(lines) != 2 {
		return nil, damaged("not a key file")
	}
	key, err := hex.DecodeString(lines[0])
	if err != nil || len(key) != keySize {
		return nil, damaged("no key of 64 hex digits")
	}
	if hex.EncodeToString(keyFileSum(secret(key))) != lines[1] {
		return nil, damaged("checksum does not match")
	}
	return &keyFile{key: secret(key)}, nil
}

type keyFile struct{ key secret }

func (*keyFile) kind() Kind      { return KindKeyFile }
func (*keyFile) cost() argonCost { return argonCost{} }

func (k *keyFile) kek(_ context.Context, s *slot) (secret, error) {
	return derive(ctxKeyFile, append(k.key[:len(k.key):len(k.key)], s.salt[:]...)), nil
}
