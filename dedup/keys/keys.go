// Package keys owns the store's keys: what opens them, how they are kept, and what they seal.
//
// A key file or a password (argon2id) gives a key-encryption key, which opens a slot of the keyring and so the ring key;
// the ring key wraps numbered store keys; a store key wraps the data key of each container and seals small objects
// (manifests, states, domains). A keyring may be plain: then its ring key is a constant that everybody knows, nothing is
// encrypted, and the same places hold keyed BLAKE3 tags that find damage, but stop nobody. FORMAT.md has the bytes.
//
// The package keeps keyring objects in a blob store, and writes a key nowhere else. It does not decide when keys are
// rotated.
package keys

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Errors of this package, wrapped with what was opened. A wrong key and a damaged object are never mistaken for each
// other: the keyring has a checksum of its own bytes, and each slot a check value of the key that opens it.
var (
	ErrWrongKey    = errors.New("wrong key or password")
	ErrDamaged     = errors.New("damaged")
	ErrNewerFormat = errors.New("newer format")
	ErrUnknownKey  = errors.New("store key is not in the keyring")
)

// Derivation contexts. Part of the format.
const (
	ctxKeyFile  = "coffer 2026 key file v1"
	ctxCheck    = "coffer 2026 key check v1"
	ctxPlain    = "coffer 2026 plain ring key v1"
	ctxRingMAC  = "coffer 2026 keyring mac v1"
	ctxWrap     = "coffer 2026 store key wrap v1"
	ctxObject   = "coffer 2026 store key objects v1"
	ctxDirMAC   = "coffer 2026 container directory v1"
	ctxPlainBox = "coffer 2026 plain record v1"
)

const keySize = 32

type secret = [keySize]byte

// storeKey is one numbered key, with the two keys derived from it.
type storeKey struct {
	number       uint32
	key          secret
	wrap, object secret
}

func newStoreKey(number uint32, key secret) storeKey {
	return storeKey{number: number, key: key, wrap: derive(ctxWrap, key[:]), object: derive(ctxObject, key[:])}
}

// Ring holds the store keys, open. Safe for concurrent use.
type Ring struct {
	rand *lockedReader

	mu         sync.RWMutex // guards all below
	mode       mode
	generation uint64
	ringKey    secret
	slots      []slot
	keys       []storeKey // by ascending number; the last one is used for all that is new
}

// lockedReader lets several goroutines draw from a test's source of randomness.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func newLockedReader(r io.Reader) *lockedReader {
	if r == nil {
		r = rand.Reader
	}
	return &lockedReader{r: r}
}

func (l *lockedReader) fill(p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := io.ReadFull(l.r, p); err != nil {
		return fmt.Errorf("read random bytes: %w", err)
	}
	return nil
}

// Encrypted tells whether objects and containers are encrypted, or only authenticated.
func (r *Ring) Encrypted() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.mode == modeEncrypted
}

// Current returns the number of the store key that new objects use.
func (r *Ring) Current() uint32 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.newest().number
}

// Generation counts the changes of the ring.
func (r *Ring) Generation() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.generation
}

// newest returns the key for new objects. The caller holds mu.
func (r *Ring) newest() storeKey { return r.keys[len(r.keys)-1] }

func (r *Ring) current() (storeKey, mode) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.newest(), r.mode
}

func (r *Ring) key(number uint32) (storeKey, mode, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, k := range r.keys {
		if k.number == number {
			return k, r.mode, nil
		}
	}
	return storeKey{}, r.mode, fmt.Errorf("%w: number %d", ErrUnknownKey, number)
}

// Rotate adds a store key, which everything new uses from now on. Save makes it durable first; until then the ring must
// not be used to seal.
func (r *Ring) Rotate() error {
	var key secret
	if err := r.rand.fill(key[:]); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.keys) >= maxKeys {
		return fmt.Errorf("rotate: the keyring holds %d keys already", len(r.keys))
	}
	r.keys = append(r.keys, newStoreKey(r.newest().number+1, key))
	r.generation++
	return nil
}

// String hides the keys, so that no log line and no error shows them.
func (r *Ring) String() string { return fmt.Sprintf("keyring generation %d", r.Generation()) }

// GoString hides the keys from %#v.
func (r *Ring) GoString() string { return r.String() }

var le = binary.LittleEndian
