package keys

import (
	"bytes"
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
)

// mode says whether a ring's objects are encrypted. Part of the format.
type mode uint8

const (
	modePlain     mode = 0
	modeEncrypted mode = 1
)

// keyFlags say what a store key may do. Part of the format.
type keyFlags uint8

const (
	// flagPlain: what the key seals is not encrypted. All keys of a plain ring have it, and in an encrypted ring those of
	// the time before.
	flagPlain keyFlags = 1
	// flagNoObjects, flagNoContainers: nothing of the store names the key any more, so whatever shows up under it is not
	// what the store wrote.
	flagNoObjects    keyFlags = 2
	flagNoContainers keyFlags = 4
	flagsKnown                = flagPlain | flagNoObjects | flagNoContainers
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

// kindsOf returns the kinds of slots, each once, in order.
func kindsOf(slots []slot) []Kind {
	if len(slots) == 0 {
		return []Kind{KindNone}
	}
	var out []Kind
	for i := range slots {
		if !slices.Contains(out, slots[i].kind) {
			out = append(out, slots[i].kind)
		}
	}
	slices.Sort(out)
	return out
}

func joinKinds(kinds []Kind) string {
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = k.String()
	}
	return strings.Join(words, " or ")
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
	ringVersion = 2
	ringHeader  = 32
	slotSize    = 1 + 1 + 2 + 4 + 4 + 16 + 16 + wrappedSize
	keyRowSize  = 4 + 1 + 3 + wrappedSize
	keyRowSize1 = 4 + wrappedSize // of version 1
	ringTrailer = 32 + 32
	maxSlots    = 8
	maxKeys     = 4096
	maxRing     = ringHeader + maxSlots*slotSize + maxKeys*keyRowSize + ringTrailer
)

// Create makes a new ring with one store key, which any of the sources opens. With None alone the store is plain. rand
// nil means crypto/rand.
func Create(ctx context.Context, rand io.Reader, sources ...Source) (*Ring, error) {
	e := &Edit{rand: newLockedReader(rand)}
	e.c.generation = 1
	err := e.create(ctx, sources)
	if err == nil {
		_, err = e.AddKey()
	}
	if err != nil {
		return nil, fmt.Errorf("create keyring: %w", err)
	}
	return newRing(e.rand, &e.c), nil
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
func (r *Ring) Marshal() ([]byte, error) { return r.contents().marshal(r.rand) }

func (c *contents) marshal(rand *lockedReader) ([]byte, error) {
	b := make([]byte, 0, ringHeader+len(c.slots)*slotSize+len(c.keys)*keyRowSize+ringTrailer)
	b = append(b, ringMagic...)
	b = le.AppendUint16(b, ringVersion)
	b = append(b, byte(c.mode), byte(len(c.slots)))
	b = le.AppendUint32(b, uint32(len(c.keys)))
	b = le.AppendUint64(b, c.generation)
	b = le.AppendUint64(b, 0)
	for i := range c.slots {
		b = append(c.slots[i].head(b), c.slots[i].ring[:]...)
	}
	for i := range c.keys {
		k := &c.keys[i]
		w, err := wrapKey(rand, &c.ringKey, &k.key, keyAAD(k.number))
		if err != nil {
			return nil, fmt.Errorf("marshal keyring: %w", err)
		}
		b = append(le.AppendUint32(b, k.number), byte(k.flags), 0, 0, 0)
		b = append(b, w[:]...)
	}
	mac := ringMAC(&c.ringKey, b)
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
	keys       []parsedKey
	body       []byte // what the MAC covers
	mac        secret
}

type parsedKey struct {
	number  uint32
	flags   keyFlags
	wrapped [wrappedSize]byte
}

func damagedRing(what string) error { return fmt.Errorf("%w: %s", ErrDamaged, what) }

// parseRing checks all that can be checked without a key.
func parseRing(b []byte) (*parsed, error) {
	if len(b) < ringHeader+ringTrailer || len(b) > maxRing || string(b[:8]) != ringMagic {
		return nil, damagedRing("not a keyring")
	}
	version := le.Uint16(b[8:])
	if version > ringVersion {
		ours := bytes.Clone(b)
		for v := range uint16(ringVersion) {
			le.PutUint16(ours[8:], v+1)
			if sum := blake3.Sum256(ours[:len(b)-32]); string(sum[:]) == string(b[len(b)-32:]) {
				return nil, damagedRing("version") // a bit of it is wrong
			}
		}
		return nil, fmt.Errorf("%w: version %d", ErrNewerFormat, version)
	} else if version == 0 {
		return nil, damagedRing("version")
	}
	if sum := blake3.Sum256(b[:len(b)-32]); string(sum[:]) != string(b[len(b)-32:]) {
		return nil, damagedRing("checksum does not match")
	}
	rowSize := keyRowSize
	if version == 1 {
		rowSize = keyRowSize1
	}
	p := &parsed{mode: mode(b[10]), generation: le.Uint64(b[16:])}
	slots, keys := int(b[11]), le.Uint32(b[12:])
	if p.mode > modeEncrypted || slots > maxSlots || (slots == 0) != (p.mode == modePlain) ||
		keys == 0 || keys > maxKeys || le.Uint64(b[24:]) != 0 ||
		len(b) != ringHeader+slots*slotSize+int(keys)*rowSize+ringTrailer {
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
		k, err := p.parseKey(version, rest[:rowSize])
		if err != nil {
			return nil, err
		}
		p.keys = append(p.keys, k)
		rest = rest[rowSize:]
	}
	return p, nil
}

// parseKey reads the row of one store key. In version 1 the ring's mode is that of all its keys.
func (p *parsed) parseKey(version uint16, row []byte) (parsedKey, error) {
	k := parsedKey{number: le.Uint32(row), wrapped: [wrappedSize]byte(row[len(row)-wrappedSize:])}
	if version == 1 {
		if p.mode == modePlain {
			k.flags = flagPlain
		}
		return k, nil
	}
	k.flags = keyFlags(row[4])
	if k.flags&^flagsKnown != 0 || row[5]|row[6]|row[7] != 0 || (p.mode == modePlain && k.flags&flagPlain == 0) {
		return k, damagedRing(fmt.Sprintf("row of store key %d", k.number))
	}
	return k, nil
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
	c := &contents{mode: p.mode, generation: p.generation, ringKey: ringKey, slots: p.slots}
	for i, k := range p.keys {
		key, err := unwrapKey(&ringKey, &k.wrapped, keyAAD(k.number))
		if err != nil || (i > 0 && k.number <= p.keys[i-1].number) {
			return nil, fmt.Errorf("open keyring: %w", damagedRing(fmt.Sprintf("store key %d", k.number)))
		}
		c.keys = append(c.keys, newStoreKey(k.number, k.flags, key))
	}
	if last := c.newest(); last.mode() != c.mode || last.flags&^flagPlain != 0 {
		return nil, fmt.Errorf("open keyring: %w", damagedRing("current store key"))
	}
	return newRing(newLockedReader(rand), c), nil
}

// open returns the ring key. A source on a plain ring is refused: who gave a key believes that the store is encrypted,
// and an exchanged keyring must not make it write in clear.
func (p *parsed) open(ctx context.Context, src Source) (secret, error) {
	if p.mode == modePlain {
		if src.kind() != KindNone {
			return secret{}, fmt.Errorf("%w: %v was given, but the store is not encrypted", ErrWrongKey, src.kind())
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
		return secret{}, fmt.Errorf("%w: %v was given, the store opens with %v", ErrWrongKey, src.kind(), joinKinds(kindsOf(p.slots)))
	}
	return secret{}, ErrWrongKey
}
