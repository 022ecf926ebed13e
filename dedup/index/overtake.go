package index

import (
	"context"
	"errors"

	"github.com/dgraph-io/badger/v4"

	"coffer/dedup/container"
)

// Overtake takes note, synced, that rows of containers lose their locations to other containers: they are not canonical
// from now on. Containers without a mark are left out.
func (x *Index) Overtake(ctx context.Context, ids []container.ID) error {
	if err := ctx.Err(); err != nil || len(ids) == 0 {
		return err
	}
	return x.change("overtake containers", func() error {
		changed := false
		err := x.db.Update(func(txn *badger.Txn) error {
			for _, id := range ids {
				now, err := overtake(txn, id)
				if err != nil {
					return err
				}
				changed = changed || now
			}
			return nil
		})
		if err != nil || !changed {
			return err
		}
		return x.db.Sync()
	})
}

// overtake changes one mark, if that is to be.
func overtake(txn *badger.Txn, id container.ID) (changed bool, err error) {
	item, err := txn.Get(markKey(id))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return false, err
	}
	if yes, err := markCanonical(v); err != nil || !yes {
		return false, err
	}
	le.PutUint32(v[5:], 1)
	return true, txn.Set(markKey(id), v)
}
