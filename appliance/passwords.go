package appliance

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Cost of a password's hash: OWASP's first choice for argon2id. Each hash keeps its own numbers, so that they can grow.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonKey     = 32
	argonSalt    = 16

	// argonMax bounds what a hash in the catalog may ask for, in KiB.
	argonMax = 256 << 10
	// argonParallel is how many hashes are computed at a time: it bounds the memory that logins take.
	argonParallel = 2
)

// passwords hashes and checks passwords, a few at a time. Its hashes read
// $argon2id$v=19$m=19456,t=2,p=1$SALT$KEY, as argon2's own tool writes them; part of the catalog's format.
type passwords struct{ slots chan struct{} }

func newPasswords() *passwords { return &passwords{slots: make(chan struct{}, argonParallel)} }

func (p *passwords) key(ctx context.Context, password string, salt []byte, time, memory uint32, threads uint8, size uint32) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.slots }()
	return argon2.IDKey([]byte(password), salt, time, memory, threads, size), nil
}

func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails: the runtime ends the program instead
	key, err := p.key(ctx, password, salt, argonTime, argonMemory, argonThreads, argonKey)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// check compares in constant time.
func (p *passwords) check(ctx context.Context, password, hash string) (bool, error) {
	var version int
	var memory, time uint32
	var threads uint8
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, fmt.Errorf("check password: its hash has no known form")
	}
	if _, err := fmt.Sscanf(parts[2]+" "+parts[3], "v=%d m=%d,t=%d,p=%d", &version, &memory, &time, &threads); err != nil {
		return false, fmt.Errorf("check password: read its hash: %w", err)
	}
	salt, serr := base64.RawStdEncoding.DecodeString(parts[4])
	want, werr := base64.RawStdEncoding.DecodeString(parts[5])
	if serr != nil || werr != nil || version != argon2.Version || memory > argonMax || time == 0 || time > 100 || threads == 0 || len(want) < 16 || len(want) > 64 {
		return false, fmt.Errorf("check password: its hash is out of bounds")
	}
	got, err := p.key(ctx, password, salt, time, memory, threads, uint32(len(want)))
	if err != nil {
		return false, fmt.Errorf("check password: %w", err)
	}
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

// nobody is a hash that no password has: who logs in under an unknown name waits as long as everybody.
const nobody = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
