package digest

import "github.com/zeebo/blake3"

// Hasher computes digests under one key. It holds about 16 KiB of state: keep one per goroutine and use it again
// and again. A Hasher is not safe for concurrent use; Sum does not allocate.
type Hasher struct {
	h *blake3.Hasher
}

// NewHasher returns a Hasher for Keys.Data or Keys.Node.
func NewHasher(key [32]byte) *Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("digest: blake3 refuses a 32-byte key: " + err.Error())
	}
	return &Hasher{h: h}
}

// Sum returns the digest of p. It forgets whatever was written with Write before.
func (h *Hasher) Sum(p []byte) Digest {
	h.h.Reset()
	h.h.Write(p)
	return h.Digest()
}

// Write adds p to a digest that is computed in pieces: Reset, Write…, Digest. It never fails.
func (h *Hasher) Write(p []byte) (int, error) { return h.h.Write(p) }

// Digest returns the digest of all bytes written since the last Reset, and resets the Hasher.
func (h *Hasher) Digest() Digest {
	var d Digest
	h.h.Sum(d[:0])
	h.h.Reset()
	return d
}

// Reset forgets what was written.
func (h *Hasher) Reset() { h.h.Reset() }
