package dedup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/keys"
)

// KeyInfo is one store key and who needs it.
type KeyInfo struct {
	Number uint32
	// Encrypted is false for the key of a time when the store was plain: everybody can read what names it.
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
	// Openers are the kinds of what opens the store, each once; keys.KindNone alone where it is not encrypted.
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

// Encrypted reports whether what is new is encrypted.
func (s *Store) Encrypted() bool { return s.ring.Encrypted() }

// Openers returns the kinds of what opens the store, each once; keys.KindNone alone where it is not encrypted.
func (s *Store) Openers() []keys.Kind { return s.ring.Openers() }

// Keys counts who names which key. It reads the heads of all small objects and of containers that it has not met yet.
func (s *Store) Keys(ctx context.Context) (KeysInfo, error) {
	if err := s.alive(); err != nil {
		return KeysInfo{}, err
	}
	containers, err := s.countContainers(ctx)
	if err != nil {
		return KeysInfo{}, err
	}
	objects, err := s.countObjects(ctx)
	if err != nil {
		return KeysInfo{}, err
	}
	info := KeysInfo{Encrypted: s.ring.Encrypted(), Openers: s.ring.Openers()}
	for _, k := range s.ring.Keys() {
		info.Keys = append(info.Keys, KeyInfo{Number: k.Number, Encrypted: k.Encrypted, Containers: containers[k.Number], Objects: objects[k.Number]})
	}
	info.Keys[len(info.Keys)-1].Current = true
	return info, nil
}

// ChangeOpeners changes what opens the store: durable when it returns. The store keys stay, nothing is written anew. A
// key file or a password must remain (Kind Invalid). An old password opens nothing any more.
func (s *Store) ChangeOpeners(ctx context.Context, c OpenerChange) error {
	return s.updateRing(ctx, "change openers", func(e *keys.Edit) error {
		for _, src := range c.Set {
			if err := e.SetOpener(ctx, src); err != nil {
				return err
			}
		}
		for _, k := range c.Remove {
			if err := e.RemoveOpener(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// RotateKey adds a store key, durably, and returns its number; all that is new uses it. Reseal moves the small objects to
// it, Collect the containers. Kind InUse: another change of keys runs.
func (s *Store) RotateKey(ctx context.Context) (number uint32, err error) {
	return s.newKey(ctx, "rotate key", func(e *keys.Edit) (uint32, error) { return e.AddKey() })
}

// Encrypt switches encryption on for a plain store, with what shall open it from now on; durable when it returns. What is
// new is encrypted; Reseal and Collect take care of the rest. Kinds Invalid (it is encrypted already, or neither a key file
// nor a password is among the openers), InUse.
func (s *Store) Encrypt(ctx context.Context, openers ...keys.Source) (number uint32, err error) {
	return s.newKey(ctx, "encrypt store", func(e *keys.Edit) (uint32, error) { return e.Encrypt(ctx, openers...) })
}

// newKey puts a store key into force and seals the domain under it: from then on a keyring without the key does not open
// the store.
func (s *Store) newKey(ctx context.Context, op string, add func(*keys.Edit) (uint32, error)) (number uint32, err error) {
	ctx, end, err := s.maintain(ctx, rekeying)
	if err != nil {
		return 0, err
	}
	defer end()
	err = s.updateRing(ctx, op, func(e *keys.Edit) (err error) {
		number, err = add(e)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.oldObjects.Store(true)
	s.barrier()
	if err := s.resealFamily(ctx, familyOf(domainPrefix), newMeter(nil), new(ResealReport)); err != nil {
		s.log.Warn("the key is in force; the domain is not sealed under it yet", "key", number, "err", err)
	}
	return number, nil
}

// updateRing makes a change of the keyring durable, and in force.
func (s *Store) updateRing(ctx context.Context, op string, change func(*keys.Edit) error) error {
	if err := s.alive(); err != nil {
		return err
	}
	err := keys.Update(ctx, s.blob, s.ring, change)
	if errors.Is(err, keys.ErrOldKeyrings) {
		s.log.Error("the change is in force, but keyrings of before it stay; the next change or start tries again", "op", op, "err", err)
		err = nil
	}
	return wrap(op, "", err)
}

// DestroyKey takes a store key out of the keyring, for good; what a copy of the store elsewhere has under it is lost. Small
// objects are sealed under the current key first. Kind InUse, with the counts: containers, objects, or work that began
// before the key was replaced name it. Kinds Invalid (it is the current one), NotFound.
func (s *Store) DestroyKey(ctx context.Context, number uint32) error {
	refuse := func(k Kind, format string, args ...any) error {
		return &Error{Kind: k, Op: "destroy key", Object: fmt.Sprint(number), Err: fmt.Errorf(format, args...)}
	}
	ctx, end, err := s.maintain(ctx, rekeying)
	if err != nil {
		return err
	}
	defer end()
	switch {
	case number == s.ring.Current():
		return refuse(Invalid, "it is the current key: rotate first")
	case !slices.ContainsFunc(s.oldKeys(), func(k keys.KeyState) bool { return k.Number == number }):
		return refuse(NotFound, "there is no such key")
	case s.mayStillUse(number):
		return refuse(InUse, "a run or maintenance that began before it was replaced goes on")
	}
	if err := s.resealAll(ctx, newMeter(nil), new(ResealReport)); err != nil {
		return wrap("destroy key", "", err)
	}
	containers, err := s.countContainers(ctx)
	if err != nil {
		return err
	}
	objects, err := s.countObjects(ctx)
	if err != nil {
		return err
	}
	if c, o := containers[number], objects[number]; c > 0 || o > 0 {
		return refuse(InUse, "%d containers and %d objects name it: garbage collection writes them anew under the current key", c, o)
	}
	if n := containers[unknownKey]; n > 0 {
		return refuse(InUse, "%d containers are damaged so that nobody knows which key they name: repair them first", n)
	}
	return s.updateRing(ctx, "destroy key", func(e *keys.Edit) error { return e.Destroy(number) })
}

// outdated reports whether a container should be copied forward for the sake of its key: it is not under the current
// one, or is not encrypted in an encrypted store.
func (s *Store) outdated(dir *container.Directory) bool { return dir.StoreKey() != s.ring.Current() }

// oldKeys returns the store keys but the current one.
func (s *Store) oldKeys() []keys.KeyState {
	all := s.ring.Keys()
	return all[:len(all)-1]
}

// mayStillUse reports whether a container under an old key may still be on its way: from a run that began when the key
// was the current one, or from maintenance that writes containers. Whoever counts containers asks this first.
func (s *Store) mayStillUse(number uint32) bool {
	if s.maintenance.runs(collecting) || s.maintenance.runs(healing) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		if r.firstKey <= number {
			return true
		}
	}
	return false
}

// retire closes the plain keys of a store that was encrypted later: for objects, all of which have been sealed again, and
// for containers when none names them. Until then who can write to the disk can pass something off as the store's own.
func (s *Store) retire(ctx context.Context, rep *ResealReport) error {
	var plain []keys.KeyState
	count := false
	for _, k := range s.oldKeys() {
		if !s.ring.Encrypted() || k.Encrypted || (!k.Objects && !k.Containers) {
			continue
		}
		k.Containers = k.Containers && !s.mayStillUse(k.Number)
		count = count || k.Containers
		plain = append(plain, k)
	}
	var containers map[uint32]int
	if count { // after the last question whether one may still come
		var err error
		if containers, err = s.countContainers(ctx); err != nil {
			return err
		}
	}
	plain = slices.DeleteFunc(plain, func(k keys.KeyState) bool { return !k.Objects && !(k.Containers && containers[k.Number] == 0) })
	if len(plain) == 0 {
		return nil
	}
	err := s.updateRing(ctx, "retire keys", func(e *keys.Edit) error {
		for _, k := range plain {
			if err := e.Retire(k.Number, k.Objects, k.Containers && containers[k.Number] == 0); err != nil {
				return err
			}
		}
		return nil
	})
	for _, k := range s.oldKeys() {
		closed := !k.Objects && !k.Containers
		if err == nil && closed && slices.ContainsFunc(plain, func(p keys.KeyState) bool { return p.Number == k.Number }) {
			rep.Retired = append(rep.Retired, k.Number)
		}
	}
	return err
}

// keyCensus remembers which store key each container names: it never changes.
type keyCensus struct {
	mu sync.Mutex
	of map[container.ID]uint32 // guarded by mu
}

// unknownKey is where containers count that are damaged so that they do not say which key they name: salvage may.
const unknownKey = 0

// countContainers counts the containers that name each key.
func (s *Store) countContainers(ctx context.Context) (map[uint32]int, error) {
	c := &s.storeKeys
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[container.ID]uint32, len(c.of))
	count := make(map[uint32]int)
	for _, id := range s.containers.without(nil) {
		key, ok := c.of[id]
		if !ok {
			var err error
			key, err = container.StoreKey(ctx, s.blob, id)
			switch {
			case errors.Is(err, blob.ErrNotExist):
				continue
			case errors.Is(err, container.ErrDamaged):
				count[unknownKey]++
				continue
			case err != nil:
				return nil, wrap("count containers of keys", id.String(), err)
			}
		}
		known[id] = key
		count[key]++
	}
	c.of = known
	return count, nil
}

// countObjects counts the objects that name each key; one that has two forms counts for each.
func (s *Store) countObjects(ctx context.Context) (map[uint32]int, error) {
	count := make(map[uint32]int)
	for _, f := range objectFamilies {
		for o, err := range s.objects(ctx, f.prefix) {
			if err != nil {
				return nil, wrap("count objects of keys", f.prefix, err)
			}
			for _, form := range o.blobs {
				key, err := s.namedKey(ctx, form)
				if k := kindFromBelow(err); k == NotFound || k == Damaged {
					continue
				}
				if err != nil {
					return nil, wrap("count objects of keys", form, err)
				}
				count[key]++
			}
		}
	}
	return count, nil
}
