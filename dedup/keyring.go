package dedup

import (
	"context"

	"coffer/dedup/container"
	"coffer/dedup/keys"
)

// KeyInfo is one store key and who needs it.
type KeyInfo struct {
	Number uint32
	// Encrypted is false for the key of a time when the store was plain: what names it is readable by everybody.
	Encrypted bool
	// Current: new containers and objects use it.
	Current bool
	// Containers and Objects name the key. Both 0: it may be destroyed.
	Containers, Objects int
}

// KeysInfo says how a store is kept secret.
type KeysInfo struct {
	// Encrypted: what is new is encrypted. A store where encryption was switched on may still hold plain containers.
	Encrypted bool
	// Openers are the kinds of what opens the store, without repeats.
	Openers []keys.Kind
	// Keys are the store keys, oldest first.
	Keys []KeyInfo
}

// OpenerChange says what shall open a store from now on.
type OpenerChange struct {
	// Set replaces the openers of the same kind, or adds them.
	Set []keys.Source
	// Remove takes all openers of these kinds away.
	Remove []keys.Kind
}

// ResealReport is what one Reseal did.
type ResealReport struct {
	// Resealed counts objects that name the current key now, and did not before.
	Resealed int
	// Stuck are objects that do not open, by name; they keep naming the key that they name.
	Stuck []string
}

// Keys counts who names which key. It reads the headers of all small objects.
func (s *Store) Keys(ctx context.Context) (KeysInfo, error) {
	return KeysInfo{}, &Error{Kind: Invalid, Op: "list keys"}
}

// ChangeOpeners changes what opens the store: durable when it returns. The store keys stay, nothing is written anew. A
// key file or a password must remain. An old password opens nothing any more.
func (s *Store) ChangeOpeners(ctx context.Context, c OpenerChange) error {
	return &Error{Kind: Invalid, Op: "change openers"}
}

// RotateKey adds a store key, durably; all that is new uses it. Reseal moves the small objects to it, Collect the
// containers.
func (s *Store) RotateKey(ctx context.Context) (number uint32, err error) {
	return 0, &Error{Kind: Invalid, Op: "rotate key"}
}

// Encrypt switches encryption on for a plain store, with what shall open it from now on; durable when it returns. What is
// new is encrypted; Reseal and Collect take care of the rest. Kind Exists: it is encrypted already.
func (s *Store) Encrypt(ctx context.Context, openers ...keys.Source) (number uint32, err error) {
	return 0, &Error{Kind: Invalid, Op: "encrypt store"}
}

// Reseal seals all small objects that name an old key under the current one. It may be interrupted at any point and goes
// on the next time. Old keys that no object (no container) names any more open no objects (no containers) from then on.
func (s *Store) Reseal(ctx context.Context, progress func(Progress)) (ResealReport, error) {
	return ResealReport{}, &Error{Kind: Invalid, Op: "reseal"}
}

// DestroyKey takes a store key out of the keyring, for good. Kind InUse, with the counts: a container, an object or a run
// that is still open names it. Kind Invalid: it is the current one; NotFound.
func (s *Store) DestroyKey(ctx context.Context, number uint32) error {
	return &Error{Kind: Invalid, Op: "destroy key"}
}

// outdated reports whether a container should be copied forward for the sake of its key: it is not under the current
// one, or is not encrypted in an encrypted store.
func (s *Store) outdated(dir *container.Directory) bool {
	return dir.StoreKey() != s.ring.Current()
}
