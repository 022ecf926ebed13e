package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

// Sizes of a wrapped key and of a tag. Part of the format.
const (
	nonceSize   = 12
	tagSize     = 16
	wrappedSize = nonceSize + keySize + tagSize
)

// WrappedSize is the length of a wrapped data key in bytes.
const WrappedSize = wrappedSize

// Overhead is what a DataKey adds to what it seals, in bytes, in a plain store too.
const Overhead = tagSize

func derive(context string, material []byte) (out secret) {
	blake3.DeriveKey(context, material, out[:])
	return out
}

// keyedHash returns a keyed BLAKE3 hasher. The key has the right length, so New cannot fail.
func keyedHash(key *secret) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err)
	}
	return h
}

// newGCM returns AES-256-GCM; neither step fails with a key of 32 bytes.
func newGCM(key *secret) cipher.AEAD {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return g
}

// wrapKey encrypts a key under another, with a random nonce.
func wrapKey(r *lockedReader, under, key *secret, aad []byte) (w [wrappedSize]byte, err error) {
	if err := r.fill(w[:nonceSize]); err != nil {
		return w, err
	}
	newGCM(under).Seal(w[nonceSize:nonceSize], w[:nonceSize], key[:], aad)
	return w, nil
}

func unwrapKey(under *secret, w *[wrappedSize]byte, aad []byte) (key secret, err error) {
	if _, err := newGCM(under).Open(key[:0], w[:nonceSize], w[nonceSize:], aad); err != nil {
		return secret{}, ErrDamaged
	}
	return key, nil
}

// plainBox is the AEAD of a plain store: the text stays as it is, the tag is a keyed BLAKE3 of everything.
type plainBox struct{ key secret }

var _ cipher.AEAD = (*plainBox)(nil)

func newPlainBox(key *secret) cipher.AEAD { return &plainBox{key: derive(ctxPlainBox, key[:])} }

func (*plainBox) NonceSize() int { return nonceSize }
func (*plainBox) Overhead() int  { return tagSize }

func (b *plainBox) tag(nonce, text, aad []byte) []byte {
	h := keyedHash(&b.key)
	_, _ = h.Write(nonce) // a hash never fails
	_, _ = h.Write(le.AppendUint64(nil, uint64(len(aad))))
	_, _ = h.Write(aad)
	_, _ = h.Write(text)
	return h.Sum(nil)[:tagSize]
}

func (b *plainBox) Seal(dst, nonce, text, aad []byte) []byte {
	tag := b.tag(nonce, text, aad)
	return append(append(dst, text...), tag...)
}

var errTag = errors.New("tag does not match")

func (b *plainBox) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < tagSize {
		return nil, errTag
	}
	text, tag := sealed[:len(sealed)-tagSize], sealed[len(sealed)-tagSize:]
	if subtle.ConstantTimeCompare(b.tag(nonce, text, aad), tag) != 1 {
		return nil, errTag
	}
	return append(dst, text...), nil
}

func newBox(m mode, key *secret) cipher.AEAD {
	if m == modeEncrypted {
		return newGCM(key)
	}
	return newPlainBox(key)
}

// DataKey is the key of one container: AEAD for its records, MAC (a BLAKE3 key) for its directory.
type DataKey struct {
	AEAD cipher.AEAD // nonces of 12 bytes, Overhead bytes of tag
	MAC  [32]byte
}

// WrappedKey is a data key as a container's header carries it.
type WrappedKey struct {
	Number    uint32 // of the store key
	Encrypted bool
	Bytes     [WrappedSize]byte
}

// NewDataKey makes a random data key and wraps it under the newest store key. What aad returns is bound to it; it is
// called once, with Number and Encrypted set.
func (r *Ring) NewDataKey(aad func(WrappedKey) []byte) (DataKey, WrappedKey, error) {
	var key secret
	if err := r.rand.fill(key[:]); err != nil {
		return DataKey{}, WrappedKey{}, err
	}
	sk := r.current()
	w := WrappedKey{Number: sk.number, Encrypted: sk.mode() == modeEncrypted}
	var err error
	if w.Bytes, err = wrapKey(r.rand, &sk.wrap, &key, aad(w)); err != nil {
		return DataKey{}, WrappedKey{}, err
	}
	return newDataKey(sk.mode(), &key), w, nil
}

// OpenDataKey is the reverse, with the same additional data. ErrUnknownKey, ErrDamaged.
func (r *Ring) OpenDataKey(w WrappedKey, aad []byte) (DataKey, error) {
	sk, err := r.key(w.Number, flagNoContainers)
	if err != nil {
		return DataKey{}, err
	}
	if w.Encrypted != (sk.mode() == modeEncrypted) {
		return DataKey{}, fmt.Errorf("data key: encryption does not match the store key: %w", ErrDamaged)
	}
	key, err := unwrapKey(&sk.wrap, &w.Bytes, aad)
	if err != nil {
		return DataKey{}, fmt.Errorf("data key: %w", err)
	}
	return newDataKey(sk.mode(), &key), nil
}

func newDataKey(m mode, key *secret) DataKey {
	return DataKey{AEAD: newBox(m, key), MAC: derive(ctxDirMAC, key[:])}
}
