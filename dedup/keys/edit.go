package keys

import (
	"context"
	"fmt"
	"slices"
)

// invalid refuses a change that makes no sense: ErrInvalid.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Edit is a change of a ring while it is being made; see Update. It is for one goroutine.
type Edit struct {
	rand *lockedReader
	c    contents // slots and keys are the edit's own
}

func (r *Ring) edit() *Edit {
	e := &Edit{rand: r.rand, c: *r.contents()}
	e.c.slots, e.c.keys = slices.Clone(e.c.slots), slices.Clone(e.c.keys)
	return e
}

// create fills an empty ring's mode, ring key and slots.
func (e *Edit) create(ctx context.Context, sources []Source) error {
	if len(sources) == 1 && sources[0].kind() == KindNone {
		e.c.mode, e.c.ringKey = modePlain, derive(ctxPlain, nil)
		return nil
	}
	return e.encrypt(ctx, sources)
}

// encrypt gives the ring a secret key, and slots for the sources.
func (e *Edit) encrypt(ctx context.Context, sources []Source) error {
	if len(sources) == 0 {
		return invalid("nothing that opens the ring")
	}
	e.c.mode, e.c.slots = modeEncrypted, nil
	if err := e.rand.fill(e.c.ringKey[:]); err != nil {
		return err
	}
	for _, src := range sources {
		if err := e.addSlot(ctx, src); err != nil {
			return err
		}
	}
	return nil
}

func (e *Edit) addSlot(ctx context.Context, src Source) error {
	s := slot{kind: src.kind(), cost: src.cost()}
	if s.kind == KindNone {
		return invalid("no encryption beside a key")
	}
	if len(e.c.slots) >= maxSlots {
		return invalid("the ring has %d openers already", maxSlots)
	}
	if err := e.rand.fill(s.salt[:]); err != nil {
		return err
	}
	kek, err := src.kek(ctx, &s)
	if err != nil {
		return err
	}
	s.check = keyCheck(&kek)
	if s.ring, err = wrapKey(e.rand, &kek, &e.c.ringKey, s.aad()); err != nil {
		return err
	}
	e.c.slots = append(e.c.slots, s)
	return nil
}

// errPlain refuses openers for a ring that everybody can open.
var errPlain = invalid("the ring is not encrypted: switch encryption on first")

// SetOpener makes src open the ring, in the place of whatever of its kind opens it now. The store keys stay.
func (e *Edit) SetOpener(ctx context.Context, src Source) error {
	if e.c.mode == modePlain {
		return errPlain
	}
	e.drop(src.kind())
	return e.addSlot(ctx, src)
}

// RemoveOpener takes everything of a kind away that opens the ring. Update refuses a ring that only a recovery key opens.
func (e *Edit) RemoveOpener(k Kind) error {
	if e.c.mode == modePlain {
		return errPlain
	}
	if !e.drop(k) {
		return invalid("no %v opens the ring", k)
	}
	return nil
}

func (e *Edit) drop(k Kind) bool {
	n := len(e.c.slots)
	e.c.slots = slices.DeleteFunc(e.c.slots, func(s slot) bool { return s.kind == k })
	return len(e.c.slots) < n
}

// AddKey adds a store key, which all that is new uses as soon as Update is through, and returns its number.
func (e *Edit) AddKey() (uint32, error) {
	if len(e.c.keys) >= maxKeys {
		return 0, invalid("the ring holds %d store keys already", len(e.c.keys))
	}
	number, flags := uint32(1), keyFlags(0)
	if len(e.c.keys) > 0 {
		if number = e.c.newest().number + 1; number == 0 {
			return 0, invalid("the numbers of store keys are used up")
		}
	}
	if e.c.mode == modePlain {
		flags = flagPlain
	}
	var key secret
	if err := e.rand.fill(key[:]); err != nil {
		return 0, err
	}
	e.c.keys = append(e.c.keys, newStoreKey(number, flags, key))
	return number, nil
}

// Encrypt makes a plain ring an encrypted one, which the sources open, with a new store key, whose number it returns. The
// keys that it has go on opening what they sealed, which is not encrypted.
func (e *Edit) Encrypt(ctx context.Context, sources ...Source) (uint32, error) {
	if e.c.mode == modeEncrypted {
		return 0, invalid("the ring is encrypted already")
	}
	if err := e.encrypt(ctx, sources); err != nil {
		return 0, err
	}
	return e.AddKey()
}

// Retire says that nothing of the store is under a key any more: no object, no container, or neither. The key refuses to
// open such from then on. It cannot be taken back.
func (e *Edit) Retire(number uint32, objects, containers bool) error {
	i, err := e.old(number)
	if err != nil {
		return err
	}
	if objects {
		e.c.keys[i].flags |= flagNoObjects
	}
	if containers {
		e.c.keys[i].flags |= flagNoContainers
	}
	return nil
}

// Destroy takes a store key out of the ring. What it sealed is lost.
func (e *Edit) Destroy(number uint32) error {
	i, err := e.old(number)
	if err != nil {
		return err
	}
	e.c.keys = slices.Delete(e.c.keys, i, i+1)
	return nil
}

// old finds a key that is not the current one.
func (e *Edit) old(number uint32) (int, error) {
	i, ok := e.c.find(number)
	if !ok {
		return 0, fmt.Errorf("%w: number %d", ErrUnknownKey, number)
	}
	if i == len(e.c.keys)-1 {
		return 0, invalid("store key %d is the current one", number)
	}
	return i, nil
}

// check holds the result against what a ring must be.
func (e *Edit) check() error {
	if e.c.mode == modePlain {
		return nil
	}
	for i := range e.c.slots {
		if k := e.c.slots[i].kind; k == KindKeyFile || k == KindPassword {
			return nil
		}
	}
	return invalid("a key file or a password must open the ring")
}
