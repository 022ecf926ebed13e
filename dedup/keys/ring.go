package keys

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// mode says whether a ring's objects are encrypted. Part of the format.
type mode uint8

const (
	modePlain     mode = 0
	modeEncrypted mode = 1
)

// Kind is what opens a keyring. Part of the format.
type Kind uint8

// Kinds of openers.
const (
	KindNone        Kind = 0 // never stored: a plain ring has no slots
	KindKeyFile     Kind = 1
	KindPassword    Kind = 2
	KindRecoveryKey Kind = 3
)

// String returns the kind's words; unknown kinds print as hex.
func (k Kind) String() string {
	switch k {
	case KindNone:
		return "no key"
	case KindKeyFile:
		return "key file"
	case KindPassword:
		return "password"
	case KindRecoveryKey:
		return "recovery key"
	}
	return fmt.Sprintf("opener(%#02x)", uint8(k))
}

// slot is one way to open a ring.
type slot struct {
	kind  Kind
	cost  argonCost
	salt  [16]byte
	check [16]byte // tells a wrong key from a damaged slot
	ring  [wrappedSize]byte
}

// Bounds and sizes of the keyring object. Part of the format.
const (
	ringMagic   = "COFFKEYR"
	ringVersion = 1
	ringHeader  = 32
	slotSize    = 1 + 1 + 2 + 4 + 4 + 16 + 16 + wrappedSize
	keyRowSize  = 4 + wrappedSize
	ringTrailer = 32 + 32
	maxSlots    = 8
	maxKeys     = 4096
	maxRing     = ringHeader + maxSlots*slotSize + maxKeys*keyRowSize + ringTrailer
)

// Create makes a new ring with one store key, which any of the sources opens. With None alone the store is plain. rand
// nil means crypto/rand.
func Create(ctx context.Context, rand io.Reader, sources ...Source) (*Ring, error) {
	r := &Ring{rand: newLockedReader(rand), mode: modeEncrypted, generation: 1}
	if len(sources) == 1 && sources[0].kind() == KindNone {
		r.mode = modePlain
		r.ringKey = derive(ctxPlain, nil)
	} else {
		if err := r.rand.fill(r.ringKey[:]); err != nil {
			return nil, fmt.Errorf("create keyring: %w", err)
		}
		if err := r.fillSlots(ctx, sources); err != nil {
			return nil, fmt.Errorf("create keyring: %w", err)
		}
	}
	var key secret
	if err := r.rand.fill(key[:]); err != nil {
		return nil, fmt.Errorf("create keyring: %w", err)
	}
	r.keys = []storeKey{newStoreKey(1, key)}
	return r, nil
}

// fillSlots replaces the slots. The caller holds mu, or has the only reference.
func (r *Ring) fillSlots(ctx context.Context, sources []Source) error {
	if len(sources) == 0 || len(sources) > maxSlots {
		return fmt.Errorf("%d keys, want 1 to %d", len(sources), maxSlots)
	}
	slots := make([]slot, len(sources))
	for i, src := range sources {
		s := &slots[i]
		s.kind, s.cost = src.kind(), src.cost()
		if s.kind == KindNone {
			return errors.New("no encryption beside a key")
		}
		if err := r.rand.fill(s.salt[:]); err != nil {
			return err
		}
		kek, err := src.kek(ctx, s)
		if err != nil {
			return err
		}
		s.check = keyCheck(&kek)
		if s.ring, err = wrapKey(r.rand, &kek, &r.ringKey, s.aad()); err != nil {
			return err
		}
	}
	r.slots = slots
	return nil
}

// ChangeSources replaces what opens the ring; the store keys stay. Save makes it durable. A plain ring stays plain.
func (r *Ring) ChangeSources(ctx context.Context, sources ...Source) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mode == modePlain {
		return errors.New("change keys: the store is not encrypted")
	}
	if err := r.fillSlots(ctx, sources); err != nil {
		return fmt.Errorf("change keys: %w", err)
	}
	r.generation++
	return nil
}

func keyCheck(kek *secret) [16]byte {
	c := derive(ctxCheck, kek[:])
	return [16]byte(c[:16])
}

// head encodes a slot up to its wrapped key.
func (s *slot) head(b []byte) []byte {
	b = append(b, byte(s.kind), s.cost.threads, 0, 0)
	b = le.AppendUint32(b, s.cost.time)
	b = le.AppendUint32(b, s.cost.memoryKiB)
	b = append(b, s.salt[:]...)
	return append(b, s.check[:]...)
}

func (s *slot) aad() []byte { return s.head([]byte(ringMagic)) }

func keyAAD(number uint32) []byte { return le.AppendUint32([]byte(ringMagic), number) }

// Marshal returns the keyring object.
func (r *Ring) Marshal() ([]byte, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := make([]byte, 0, ringHeader+len(r.slots)*slotSize+len(r.keys)*keyRowSize+ringTrailer)
	b = append(b, ringMagic...)
	b = le.AppendUint16(b, ringVersion)
	b = append(b, byte(r.mode), byte(len(r.slots)))
	b = le.AppendUint32(b, uint32(len(r.keys)))
	b = le.AppendUint64(b, r.generation)
	b = le.AppendUint64(b, 0)
	for i := range r.slots {
		b = append(r.slots[i].head(b), r.slots[i].ring[:]...)
	}
	for i := range r.keys {
		k := &r.keys[i]
		w, err := wrapKey(r.rand, &r.ringKey, &k.key, keyAAD(k.number))
		if err != nil {
			return nil, fmt.Errorf("marshal keyring: %w", err)
		}
		b = append(le.AppendUint32(b, k.number), w[:]...)
	}
	mac := ringMAC(&r.ringKey, b)
	b = append(b, mac[:]...)
	sum := blake3.Sum256(b)
	return append(b, sum[:]...), nil
}

func ringMAC(ringKey *secret, b []byte) (mac secret) {
	key := derive(ctxRingMAC, ringKey[:])
	h := keyedHash(&key)
	_, _ = h.Write(b) // a hash never fails
	copy(mac[:], h.Sum(nil))
	return mac
}

// parsed is a keyring object whose checksum and lengths are good, not yet opened.
type parsed struct {
	mode       mode
	generation uint64
	slots      []slot
	numbers    []uint32
	wrapped    [][wrappedSize]byte
	body       []byte // what the MAC covers
	mac        secret
}

func damagedRing(what string) error { return fmt.Errorf("%w: %s", ErrDamaged, what) }

// parseRing checks all that can be checked without a key.
func parseRing(b []byte) (*parsed, error) {
	if len(b) < ringHeader+ringTrailer || len(b) > maxRing || string(b[:8]) != ringMagic {
		return nil, damagedRing("not a keyring")
	}
	if v := le.Uint16(b[8:]); v > ringVersion {
		return nil, fmt.Errorf("%w: version %d", ErrNewerFormat, v)
	} else if v != ringVersion {
		return nil, damagedRing("version")
	}
	if sum := blake3.Sum256(b[:len(b)-32]); string(sum[:]) != string(b[len(b)-32:]) {
		return nil, damagedRing("checksum does not match")
	}
	p := &parsed{mode: mode(b[10]), generation: le.Uint64(b[16:])}
	slots, keys := int(b[11]), le.Uint32(b[12:])
	if p.mode > modeEncrypted || slots > maxSlots || (slots == 0) != (p.mode == modePlain) ||
		keys == 0 || keys > maxKeys || le.Uint64(b[24:]) != 0 ||
		len(b) != ringHeader+slots*slotSize+int(keys)*keyRowSize+ringTrailer {
		return nil, damagedRing("header")
	}
	p.body = b[:len(b)-ringTrailer]
	p.mac = secret(b[len(p.body):])
	rest := b[ringHeader:]
	for range slots {
		p.slots = append(p.slots, parseSlot(rest))
		rest = rest[slotSize:]
	}
	for range keys {
		p.numbers = append(p.numbers, le.Uint32(rest))
		p.wrapped = append(p.wrapped, [wrappedSize]byte(rest[4:]))
		rest = rest[keyRowSize:]
	}
	return p, nil
}

func parseSlot(b []byte) slot {
	return slot{
		kind:  Kind(b[0]),
		cost:  argonCost{threads: b[1], time: le.Uint32(b[4:]), memoryKiB: le.Uint32(b[8:])},
		salt:  [16]byte(b[12:]),
		check: [16]byte(b[28:]),
		ring:  [wrappedSize]byte(b[44:]),
	}
}

// Unmarshal opens a keyring object. ErrWrongKey: the object is whole, and src does not open it. ErrDamaged: it is not
// what Marshal made. ErrNewerFormat. rand nil means crypto/rand.
func Unmarshal(ctx context.Context, rand io.Reader, b []byte, src Source) (*Ring, error) {
	p, err := parseRing(b)
	if err != nil {
		return nil, fmt.Errorf("open keyring: %w", err)
	}
	ringKey, err := p.open(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("open keyring: %w", err)
	}
	if mac := ringMAC(&ringKey, p.body); subtle.ConstantTimeCompare(mac[:], p.mac[:]) != 1 {
		return nil, fmt.Errorf("open keyring: %w", damagedRing("mac does not match"))
	}
	r := &Ring{rand: newLockedReader(rand), mode: p.mode, generation: p.generation, ringKey: ringKey, slots: p.slots}
	for i, n := range p.numbers {
		key, err := unwrapKey(&ringKey, &p.wrapped[i], keyAAD(n))
		if err != nil || (i > 0 && n <= p.numbers[i-1]) {
			return nil, fmt.Errorf("open keyring: %w", damagedRing(fmt.Sprintf("store key %d", n)))
		}
		r.keys = append(r.keys, newStoreKey(n, key))
	}
	return r, nil
}

// open returns the ring key. A source on a plain ring is refused: who gave a key believes that the store is encrypted,
// and an exchanged keyring must not make it write in clear.
func (p *parsed) open(ctx context.Context, src Source) (secret, error) {
	if p.mode == modePlain {
		if src.kind() != KindNone {
			return secret{}, fmt.Errorf("%w: the store is not encrypted, but a %v was given", ErrWrongKey, src.kind())
		}
		return derive(ctxPlain, nil), nil
	}
	tried := 0
	for i := range p.slots {
		s := &p.slots[i]
		if s.kind != src.kind() {
			continue
		}
		tried++
		kek, err := src.kek(ctx, s)
		if err != nil {
			return secret{}, err
		}
		if keyCheck(&kek) != s.check {
			continue
		}
		key, err := unwrapKey(&kek, &s.ring, s.aad())
		if err != nil {
			return secret{}, damagedRing("slot")
		}
		return key, nil
	}
	if tried == 0 {
		return secret{}, fmt.Errorf("%w: the store opens with a %v, not with a %v", ErrWrongKey, p.slots[0].kind, src.kind())
	}
	return secret{}, ErrWrongKey
}
