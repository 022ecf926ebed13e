package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"coffer/dedup/blob"
)

// Prefix is what the blob names of all keyring objects begin with.
const Prefix = "keys/"

// copies is how many equal objects a keyring is kept in: the loss of one bad sector must not be the loss of the store.
const copies = 2

func ringName(generation uint64, copyNo int) string {
	return fmt.Sprintf("%s%016x-%d", Prefix, generation, copyNo)
}

// parseRingName returns the generation in a keyring's blob name.
func parseRingName(name string) (uint64, bool) {
	hex, _, ok := strings.Cut(strings.TrimPrefix(name, Prefix), "-")
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, ok && err == nil
}

// Save puts a ring into a store as its first keyring, durably.
func Save(ctx context.Context, b blob.Store, r *Ring) error {
	if err := put(ctx, b, r.rand, r.contents()); err != nil {
		return fmt.Errorf("save keyring: %w", err)
	}
	return nil
}

// Update changes a ring that Load or Save knows: change works on a copy, which is made durable as the newest keyring, and
// only then becomes what the ring does. Keyrings of older generations, with which an old password would still open the
// store, are deleted. On an error the ring is as it was, except that where the error says ErrOldKeyrings the change counts.
//
// INVARIANT: no key seals anything before it is durable in the keyring.
func Update(ctx context.Context, b blob.Store, r *Ring, change func(*Edit) error) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	e := r.edit()
	err := change(e)
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return fmt.Errorf("change keyring: %w", err)
	}
	return r.save(ctx, b, &e.c)
}

// save makes c durable under a generation of its own and then the ring's contents. It needs r.changing.
func (r *Ring) save(ctx context.Context, b blob.Store, c *contents) error {
	names, err := list(ctx, b)
	if err != nil {
		return fmt.Errorf("change keyring: %w", err)
	}
	for _, name := range names { // a change that failed may have left one
		if g, ok := parseRingName(name); ok {
			c.generation = max(c.generation, g)
		}
	}
	c.generation++
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("change keyring: %w", err)
	}
	ctx = context.WithoutCancel(ctx) // from here on it changes or not, and nobody's hurry makes that a question
	if err := put(ctx, b, r.rand, c); err != nil {
		return fmt.Errorf("change keyring: %w", err)
	}
	r.replace(c)
	if err := remove(ctx, b, names); err != nil {
		return fmt.Errorf("%w: %w", ErrOldKeyrings, err)
	}
	return nil
}

// put writes all copies of a keyring, or takes back those that it wrote.
func put(ctx context.Context, b blob.Store, rand *lockedReader, c *contents) error {
	data, err := c.marshal(rand)
	if err != nil {
		return err
	}
	for i := range copies {
		err := blob.PutBytes(ctx, b, ringName(c.generation, i), data)
		if err == nil {
			continue
		}
		if errors.Is(err, blob.ErrExists) {
			return err
		}
		var mine []string
		for j := range i + 1 {
			mine = append(mine, ringName(c.generation, j))
		}
		if back := remove(context.WithoutCancel(ctx), b, mine); back != nil {
			return fmt.Errorf("%w (and it may come into force at the next start: %w)", err, back)
		}
		return err
	}
	return nil
}

func remove(ctx context.Context, b blob.Store, names []string) error {
	var errs []error
	for _, name := range names {
		if err := b.Delete(ctx, name); err != nil && !errors.Is(err, blob.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Load opens the newest keyring of a store that is whole. blob.ErrNotExist: the store has none; ErrWrongKey: a whole one
// is not opened by src; ErrDamaged: none is whole; ErrNewerFormat.
func Load(ctx context.Context, b blob.Store, src Source) (r *Ring, err error) {
	err = newest(ctx, b, func(data []byte) (err error) {
		r, err = Unmarshal(ctx, nil, data, src)
		return err
	})
	return r, err
}

// Peek returns what opens the newest keyring of a store, as it says itself without a key: KindNone alone when it is plain.
// Errors as those of Load.
func Peek(ctx context.Context, b blob.Store) (kinds []Kind, err error) {
	err = newest(ctx, b, func(data []byte) error {
		p, err := parseRing(data)
		if err == nil {
			kinds = kindsOf(p.slots)
		}
		return err
	})
	return kinds, err
}

// newest calls open with keyrings, the newest first, until one is not damaged.
func newest(ctx context.Context, b blob.Store, open func([]byte) error) error {
	names, err := list(ctx, b)
	if err != nil {
		return fmt.Errorf("load keyring: %w", err)
	}
	if len(names) == 0 {
		return fmt.Errorf("load keyring: %w", blob.ErrNotExist)
	}
	var damage error
	for _, name := range slices.Backward(names) {
		data, err := blob.ReadAll(ctx, b, name, maxRing)
		if err != nil {
			return fmt.Errorf("load keyring: %w", err)
		}
		if err = open(data); err == nil {
			return nil
		}
		if !errors.Is(err, ErrDamaged) {
			return fmt.Errorf("%s: %w", name, err)
		}
		damage = fmt.Errorf("%s: %w", name, err)
	}
	return damage
}

// Mend brings the keyring objects of a store to what they should be: all copies of r's generation whole, and none of
// another one. It is for who has the store for itself and has just loaded r.
func Mend(ctx context.Context, b blob.Store, r *Ring) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	names, err := list(ctx, b)
	if err != nil {
		return fmt.Errorf("mend keyring: %w", err)
	}
	whole := 0
	for _, name := range names {
		if g, ok := parseRingName(name); !ok || g != r.Generation() {
			continue
		}
		if data, err := blob.ReadAll(ctx, b, name, maxRing); err == nil {
			if _, err := parseRing(data); err == nil {
				whole++
			}
		}
	}
	if whole == copies && len(names) == copies {
		return nil
	}
	c := *r.contents()
	return r.save(ctx, b, &c)
}

func list(ctx context.Context, b blob.Store) ([]string, error) {
	var names []string
	for info, err := range b.List(ctx, Prefix, "") {
		if err != nil {
			return nil, err
		}
		names = append(names, info.Name)
	}
	return names, nil
}

// Verify reads one copy of a keyring and tests all that can be tested without a key: form, lengths and checksum. ErrDamaged,
// ErrNewerFormat, blob.ErrNotExist.
func Verify(ctx context.Context, b blob.Store, name string) error {
	data, err := blob.ReadAll(ctx, b, name, maxRing)
	if err == nil {
		_, err = parseRing(data)
	}
	if err != nil {
		return fmt.Errorf("verify keyring %s: %w", name, err)
	}
	return nil
}
