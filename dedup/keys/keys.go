// Package keys owns the store's keys: what opens them, how they are kept, and what they seal.
//
// A key file, a password (argon2id) or a recovery key gives a key-encryption key, which opens a slot of the keyring and so
// the ring key;
// the ring key wraps numbered store keys; a store key wraps the data key of each container and seals small objects
// (manifests, states, domains). A keyring may be plain: then its ring key is a constant that everybody knows, nothing is
// encrypted, and the same places hold keyed BLAKE3 tags that find damage, but stop nobody. FORMAT.md has the bytes.
//
// The package keeps keyring objects in a blob store, and writes a key nowhere else. It does not decide when keys are
// rotated.
package keys

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Errors of this package, wrapped with what was opened. A wrong key and a damaged object are never mistaken for each
// other: the keyring has a checksum of its own bytes, and each slot a check value of the key that opens it.
var (
	ErrWrongKey    = errors.New("wrong key or password")
	ErrDamaged     = errors.New("damaged")
	ErrNewerFormat = errors.New("newer format")
	ErrUnknownKey  = errors.New("store key is not in the keyring")
	// ErrInvalid: a change of the keyring that makes no sense.
	ErrInvalid = errors.New("not possible")
	// ErrOldKeyrings: a change of the keyring is in force, but keyrings from before it could not be deleted. The next change,
	// and Mend, try again.
	ErrOldKeyrings = errors.New("older keyrings remain")
)

// Derivation contexts. Part of the format.
const (
	ctxKeyFile  = "coffer 2026 key file v1"
	ctxRecovery = "coffer 2026 recovery key v1"
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
	flags        keyFlags
	key          secret
	wrap, object secret
}

func newStoreKey(number uint32, flags keyFlags, key secret) storeKey {
	return storeKey{number: number, flags: flags, key: key, wrap: derive(ctxWrap, key[:]), object: derive(ctxObject, key[:])}
}

// mode says what the key does to what it seals.
func (k *storeKey) mode() mode {
	if k.flags&flagPlain != 0 {
		return modePlain
	}
	return modeEncrypted
}

// Ring holds the store keys, open. Safe for concurrent use. It changes only by Update, which makes the change durable
// before the first byte is sealed with it.
type Ring struct {
	rand     *lockedReader
	changing sync.Mutex // held by Update from end to end

	mu sync.RWMutex // guards now
	// now is replaced as a whole and never changed.
	now *contents
}

// contents are what a keyring object says, opened.
type contents struct {
	generation uint64
	mode       mode
	ringKey    secret
	slots      []slot
	keys       []storeKey // by ascending number; the last one is used for all that is new
}

func newRing(rand *lockedReader, c *contents) *Ring { return &Ring{rand: rand, now: c} }

func (r *Ring) contents() *contents {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.now
}

func (r *Ring) replace(c *contents) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = c
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

// Encrypted tells whether what is new is encrypted, or only authenticated.
func (r *Ring) Encrypted() bool { return r.contents().mode == modeEncrypted }

// Current returns the number of the store key that new objects use.
func (r *Ring) Current() uint32 { return r.contents().newest().number }

// Generation counts the changes of the ring.
func (r *Ring) Generation() uint64 { return r.contents().generation }

// Openers returns the kinds of what opens the ring; KindNone alone when it is plain.
func (r *Ring) Openers() []Kind { return kindsOf(r.contents().slots) }

// KeyState is what a ring says about one store key.
type KeyState struct {
	Number uint32
	// Encrypted: what the key seals is encrypted. Objects and Containers: it still opens such.
	Encrypted, Objects, Containers bool
}

// Keys returns the store keys, by ascending number; the last one is the current one.
func (r *Ring) Keys() []KeyState {
	c := r.contents()
	out := make([]KeyState, len(c.keys))
	for i := range c.keys {
		k := &c.keys[i]
		out[i] = KeyState{Number: k.number, Encrypted: k.mode() == modeEncrypted,
			Objects: k.flags&flagNoObjects == 0, Containers: k.flags&flagNoContainers == 0}
	}
	return out
}

// newest returns the key for new objects.
func (c *contents) newest() *storeKey { return &c.keys[len(c.keys)-1] }

func (r *Ring) current() *storeKey { return r.contents().newest() }

// key finds a store key by its number, if it may still open such things: without is the flag that forbids it.
func (r *Ring) key(number uint32, without keyFlags) (*storeKey, error) {
	c := r.contents()
	i, ok := c.find(number)
	if !ok {
		return nil, fmt.Errorf("%w: number %d", ErrUnknownKey, number)
	}
	if c.keys[i].flags&without != 0 {
		return nil, fmt.Errorf("store key %d was replaced and opens nothing like this any more: %w", number, ErrDamaged)
	}
	return &c.keys[i], nil
}

func (c *contents) find(number uint32) (int, bool) {
	return slices.BinarySearchFunc(c.keys, number, func(k storeKey, n uint32) int { return cmp.Compare(k.number, n) })
}

// String hides the keys, so that no log line and no error shows them.
func (r *Ring) String() string { return fmt.Sprintf("keyring generation %d", r.Generation()) }

// GoString hides the keys from %#v.
func (r *Ring) GoString() string { return r.String() }

var le = binary.LittleEndian
