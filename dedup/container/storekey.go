package container

import (
	"context"
	"errors"
	"fmt"

	"coffer/dedup/blob"
)

// StoreKey returns the number of the store key that a container names: from its header or, where that is damaged, from the
// directory's copy. No key is needed. blob.ErrNotExist, ErrDamaged, ErrNewerFormat.
func StoreKey(ctx context.Context, b blob.Store, id ID) (uint32, error) {
	var raw [headerSize]byte
	err := readRange(ctx, b, id, raw[:], 0)
	if err == nil {
		var h header
		if h, err = parseHeader(raw[:]); err == nil && h.id == id {
			return h.key.Number, nil
		}
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return 0, fmt.Errorf("read header of container %v: %w", id, err)
	}
	d, err := OpenDirectory(ctx, b, id, nil)
	if err != nil {
		return 0, err
	}
	return d.StoreKey(), nil
}
