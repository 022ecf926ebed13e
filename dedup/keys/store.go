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

// Save puts the ring into the store as its newest keyring, durably, and then deletes those of older generations, with
// which an old password would still open the store.
func Save(ctx context.Context, b blob.Store, r *Ring) error {
	data, err := r.Marshal()
	if err != nil {
		return err
	}
	gen := r.Generation()
	for i := range copies {
		if err := blob.PutBytes(ctx, b, ringName(gen, i), data); err != nil {
			return fmt.Errorf("save keyring: %w", err)
		}
	}
	names, err := list(ctx, b)
	if err != nil {
		return fmt.Errorf("save keyring: %w", err)
	}
	for _, name := range names {
		if g, ok := parseRingName(name); !ok || g >= gen {
			continue
		}
		if err := b.Delete(ctx, name); err != nil && !errors.Is(err, blob.ErrNotExist) {
			return fmt.Errorf("save keyring: %w", err)
		}
	}
	return nil
}

// Load opens the newest keyring of a store that is whole. blob.ErrNotExist: the store has none; ErrWrongKey: a whole one
// is not opened by src; ErrDamaged: none is whole; ErrNewerFormat.
func Load(ctx context.Context, b blob.Store, src Source) (*Ring, error) {
	names, err := list(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("load keyring: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("load keyring: %w", blob.ErrNotExist)
	}
	var damage error
	for _, name := range slices.Backward(names) {
		data, err := blob.ReadAll(ctx, b, name, maxRing)
		if err != nil {
			return nil, fmt.Errorf("load keyring: %w", err)
		}
		r, err := Unmarshal(ctx, nil, data, src)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, ErrDamaged) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		damage = fmt.Errorf("%s: %w", name, err)
	}
	return nil, damage
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
