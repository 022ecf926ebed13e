package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"coffer/dedup/frame"
)

// Layout of a box. Part of the format.
const (
	version  = 1
	ivSize   = 24
	tagSize  = 16
	headSize = 1 + 4 // codec and plain length, inside

	// Overhead is the most bytes that a box has more than what is in it.
	Overhead = 1 + ivSize + headSize + tagSize
	// MaxPlain is the most bytes that a box holds: it fits into a frame.
	MaxPlain = frame.MaxChunk - Overhead
)

// cipherKeys are the keys of one purpose.
type cipherKeys struct {
	iv, key *blake3.Hasher
}

func newCipherKeys(k Key, ivContext, keyContext string) cipherKeys {
	keyed := func(context string) *blake3.Hasher {
		var sub [32]byte
		blake3.DeriveKey(context, k[:], sub[:])
		h, err := blake3.NewKeyed(sub[:])
		if err != nil {
			panic("seal: blake3 refuses a 32-byte key: " + err.Error())
		}
		return h
	}
	return cipherKeys{iv: keyed(ivContext), key: keyed(keyContext)}
}

// siv returns the synthetic IV of a message: it depends on all that the box authenticates and encrypts.
func (c *cipherKeys) siv(clear, inner []byte) (iv [ivSize]byte) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(clear)))
	c.iv.Reset()
	c.iv.Write(n[:])
	c.iv.Write(clear)
	c.iv.Write(inner)
	_, _ = c.iv.Digest().Read(iv[:]) // never fails
	return iv
}

// aead returns the cipher and nonce that belong to an IV.
func (c *cipherKeys) aead(iv []byte) (cipher.AEAD, []byte) {
	var out [32 + 12]byte
	c.key.Reset()
	c.key.Write(iv)
	_, _ = c.key.Digest().Read(out[:]) // never fails
	block, err := aes.NewCipher(out[:32])
	if err != nil {
		panic("seal: aes refuses a 32-byte key: " + err.Error())
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("seal: " + err.Error())
	}
	return gcm, out[32:]
}

// Sealer seals and opens under one key. It holds about 2 MiB: keep one per goroutine. Not safe for concurrent use.
type Sealer struct {
	id          ID
	chunk, node cipherKeys
	enc         *frame.Encoder
	dec         *frame.Decoder
	ref         [1]frame.Ref
	stored      []byte
	inner       []byte
	clear       []byte
}

// NewSealer returns a Sealer for a key.
func NewSealer(k Key) *Sealer {
	return &Sealer{id: k.ID(), chunk: newCipherKeys(k, chunkIVContext, chunkContext), node: newCipherKeys(k, nodeIVContext, nodeContext)}
}

// ID names the key.
func (s *Sealer) ID() ID { return s.id }

// box appends a box to dst.
func (s *Sealer) box(keys *cipherKeys, dst, clear, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return dst, fmt.Errorf("seal %d bytes, limit %d: %w", len(plain), MaxPlain, ErrMalformed)
	}
	s.pack(plain)
	iv := keys.siv(clear, s.inner)
	gcm, nonce := keys.aead(iv[:])
	s.clear = append(append(s.clear[:0], version), clear...) // dst may lie where clear does
	dst = append(append(dst, version), iv[:]...)
	return gcm.Seal(dst, nonce, s.inner, s.clear), nil
}

// pack makes the inside of a box: compressed where that pays.
func (s *Sealer) pack(plain []byte) {
	f := frame.Frame{Codec: frame.Raw}
	if len(plain) > 0 {
		if s.enc == nil {
			s.enc = frame.NewEncoder()
		}
		s.ref[0] = frame.Ref{Length: uint32(len(plain))}
		f = s.enc.Encode(s.ref[:], plain, s.stored)
		s.stored = f.Stored
	}
	s.inner = append(s.inner[:0], byte(f.Codec))
	s.inner = binary.LittleEndian.AppendUint32(s.inner, uint32(len(plain)))
	s.inner = append(s.inner, f.Stored...)
}

// unbox appends what is in a box to dst.
func (s *Sealer) unbox(keys *cipherKeys, dst, clear, box []byte) ([]byte, error) {
	if len(box) < Overhead || len(box) > frame.MaxChunk {
		return dst, fmt.Errorf("a box of %d bytes: %w", len(box), ErrMalformed)
	}
	if box[0] != version {
		return dst, fmt.Errorf("a box of version %d, this program knows %d: %w", box[0], version, ErrMalformed)
	}
	gcm, nonce := keys.aead(box[1 : 1+ivSize])
	s.clear = append(append(s.clear[:0], version), clear...)
	inner, err := gcm.Open(s.inner[:0], nonce, box[1+ivSize:], s.clear)
	if err != nil {
		return dst, ErrKey
	}
	s.inner = inner
	return s.unpack(dst, inner)
}

func (s *Sealer) unpack(dst, inner []byte) ([]byte, error) {
	f := frame.Frame{Codec: frame.Codec(inner[0]), Stored: inner[headSize:]}
	n := binary.LittleEndian.Uint32(inner[1:])
	if n == 0 && f.Codec == frame.Raw && len(f.Stored) == 0 {
		return dst, nil
	}
	if s.dec == nil {
		s.dec = frame.NewDecoder()
	}
	s.ref[0] = frame.Ref{Length: n}
	f.Refs = s.ref[:]
	out, err := s.dec.Decode(f, dst)
	if err != nil {
		return dst, fmt.Errorf("inside of a box: %w: %w", ErrMalformed, err)
	}
	return out, nil
}
