package keys

import (
	"bytes"
	"errors"
	"fmt"
)

// Sealed object: see FORMAT.md. Part of the format.
const (
	objectMagic   = "COFO"
	objectVersion = 1
	objectHeader  = 4 + 2 + 1 + 1 + 4 + keySize
)

// SealedOverhead is how much longer a sealed object is than its plain bytes.
const SealedOverhead = objectHeader + tagSize

// Seal encrypts (in a plain ring: authenticates) a small object under the newest store key. kind and name are
// authenticated with it: it opens only as what it was sealed as.
func (r *Ring) Seal(kind, name string, plain []byte) ([]byte, error) {
	sk := r.current()
	out := make([]byte, objectHeader, objectHeader+len(plain)+tagSize)
	copy(out, objectMagic)
	le.PutUint16(out[4:], objectVersion)
	out[6] = byte(sk.mode())
	le.PutUint32(out[8:], sk.number)
	if err := r.rand.fill(out[12:objectHeader]); err != nil {
		return nil, fmt.Errorf("seal %s %s: %w", kind, name, err)
	}
	key := objectKey(sk, out[12:objectHeader])
	return newBox(sk.mode(), &key).Seal(out, zeroNonce[:], plain, objectAAD(out[:objectHeader], kind, name)), nil
}

// zeroNonce is the nonce of every object: the key is used once.
var zeroNonce [nonceSize]byte

// objectKey is the one-time key of an object.
func objectKey(sk *storeKey, salt []byte) (key secret) {
	h := keyedHash(&sk.object)
	_, _ = h.Write(salt) // a hash never fails
	copy(key[:], h.Sum(nil))
	return key
}

func objectAAD(header []byte, kind, name string) []byte {
	aad := append(make([]byte, 0, len(header)+4+len(kind)+len(name)), header...)
	aad = le.AppendUint32(aad, uint32(len(kind)))
	return append(append(aad, kind...), name...)
}

// Open is the reverse of Seal. ErrDamaged, ErrUnknownKey, ErrNewerFormat.
func (r *Ring) Open(kind, name string, sealed []byte) ([]byte, error) {
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("open %s %s: %w", kind, name, err) }
	number, err := ObjectKey(sealed)
	if errors.Is(err, ErrNewerFormat) && r.isOurs(kind, name, sealed) {
		return fail(fmt.Errorf("version: %w", ErrDamaged))
	}
	if err != nil {
		return fail(err)
	}
	sk, err := r.key(number, flagNoObjects)
	if err != nil {
		return fail(err)
	}
	if mode(sealed[6]) != sk.mode() {
		return fail(fmt.Errorf("encryption does not match the store key: %w", ErrDamaged))
	}
	key := objectKey(sk, sealed[12:objectHeader])
	plain, err := newBox(sk.mode(), &key).Open(nil, zeroNonce[:], sealed[objectHeader:],
		objectAAD(sealed[:objectHeader], kind, name))
	if err != nil {
		return fail(ErrDamaged)
	}
	return plain, nil
}

// isOurs reports whether an object opens as one of this version, but for what it says its version is: then a bit of that is
// wrong, which is no reason to call the store newer.
func (r *Ring) isOurs(kind, name string, sealed []byte) bool {
	ours := bytes.Clone(sealed)
	le.PutUint16(ours[4:], objectVersion)
	_, err := r.Open(kind, name, ours)
	return err == nil
}

// ObjectHead is how many bytes of a sealed object ObjectKey needs.
const ObjectHead = objectHeader

// ObjectKey returns the number of the store key that a sealed object names; nothing is authenticated. ErrDamaged,
// ErrNewerFormat.
func ObjectKey(sealed []byte) (uint32, error) {
	if len(sealed) < objectHeader || string(sealed[:4]) != objectMagic {
		return 0, fmt.Errorf("%w: not a sealed object", ErrDamaged)
	}
	if v := le.Uint16(sealed[4:]); v > objectVersion {
		return 0, fmt.Errorf("%w: version %d", ErrNewerFormat, v)
	} else if v != objectVersion || sealed[7] != 0 {
		return 0, fmt.Errorf("%w: header of a sealed object", ErrDamaged)
	}
	return le.Uint32(sealed[8:]), nil
}
