package index

import (
	"context"
	"errors"

	"github.com/dgraph-io/badger/v4"

	"coffer/dedup/container"
)

// Overtake has rows of a container, which was entered, take over the locations that their digests have in containers of
// which from says so, and returns the slots that did. First, durably, the marks of those containers say that they are not
// canonical any more; synced on return. KindNoSpace.
func (x *Index) Overtake(ctx context.Context, d *container.Directory, slots []uint32, from func(container.ID) bool) (taken []uint32, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = x.change("overtake", func() error {
		var old map[container.ID]struct{}
		if taken, old, err = x.overtaken(d, slots, from); err != nil || len(taken) == 0 {
			return err
		}
		if err := x.addElsewhere(old, 1); err != nil {
			return err
		}
		if err := x.db.Sync(); err != nil {
			return err
		}
		rows := make([]row, len(taken))
		for i, slot := range taken {
			digest := d.Digest(slot)
			rows[i] = row{key: [keySize]byte(digest[:]), slot: slot}
		}
		if err := x.putRows(d, rows); err != nil {
			return err
		}
		return x.addElsewhere(map[container.ID]struct{}{d.ID(): {}}, -len(taken))
	})
	return taken, err
}

// overtaken returns the slots whose digests have their locations in such containers, and which those are.
func (x *Index) overtaken(d *container.Directory, slots []uint32, from func(container.ID) bool) (taken []uint32, old map[container.ID]struct{}, err error) {
	old = make(map[container.ID]struct{})
	err = x.db.View(func(txn *badger.Txn) error {
		for _, slot := range slots {
			digest := d.Digest(slot)
			l, found, err := get(txn, digest[:keySize])
			if err != nil {
				return err
			}
			if found && l.Container != d.ID() && from(l.Container) {
				taken = append(taken, slot)
				old[l.Container] = struct{}{}
			}
		}
		return nil
	})
	return taken, old, err
}

// addElsewhere changes how many rows the marks of containers say to have their locations elsewhere. Containers that
// are not entered are left out.
func (x *Index) addElsewhere(ids map[container.ID]struct{}, n int) error {
	wb := x.db.NewWriteBatch()
	defer wb.Cancel()
	err := x.db.View(func(txn *badger.Txn) error {
		for id := range ids {
			item, err := txn.Get(markKey(id))
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			v, err := item.ValueCopy(nil)
			if err != nil {
				return err
			}
			if _, err := markCanonical(v); err != nil {
				return err
			}
			if len(v) == 0 {
				continue
			}
			le.PutUint32(v[5:], uint32(max(int64(le.Uint32(v[5:]))+int64(n), 0)))
			if err := wb.Set(markKey(id), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return wb.Flush()
}
