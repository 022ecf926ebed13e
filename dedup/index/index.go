// Package index is the store's hint of where each chunk lies: a badger database, and the only package that knows badger.
//
// It maps the first 16 bytes of a digest to container and slot, and keeps a mark for each container whose rows were all
// entered. It is a hint: a location counts only if its container is alive and the row has the full digest, and the whole
// index can be dropped at any time and filled again from the containers' directories. It does not decide which container
// is alive, and it never reads one.
//
// The directory holds META (this package's: whose index it is, and how it was left) and badger's files in db/. badger
// opens its own files and stands outside package vfs. FORMAT.md has keys and values.
//
// badger writes through mmap, where a full disk is a SIGBUS that kills the process: every batch is refused while less
// than the reserve is free. It ends the process or panics, also in goroutines of its own, when its files are damaged:
// Open therefore tests the tables itself before badger may see them: block by block while they are small, and after
// anything but a clean Close; else briefly. What still kills the process makes the next Open look closely.
package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// DefaultMemory is what Options.Memory means when it is 0.
const DefaultMemory = 128 << 20

// Options of Open. The zero value of each means its default.
type Options struct {
	// Memory is the anonymous memory to aim at, in bytes.
	Memory int64
	// Reserve is what must stay free in the file system of the index, in bytes, for badger to finish what it has begun.
	// 0: DefaultReserve(Memory); negative: none.
	Reserve int64
	// Free returns the free bytes of the file system that holds a directory; nil: the system's own answer.
	Free func(dir string) (int64, error)
	// Store is the id of the store (its first domain) that the index belongs to: KindForeign when it is another one's.
	Store  [16]byte
	Logger *slog.Logger
	// Count has Stats tell how the filters of the tables did. It is for measurements: badger counts for the whole process,
	// and each count costs.
	Count bool
}

// Loc is where a chunk lies. A hint: see the package.
type Loc struct {
	Container container.ID
	Slot      uint32
	Kind      container.Kind
}

// Index maps digests to locations. Safe for concurrent use.
type Index struct {
	dir     string
	opts    Options
	db      *badger.DB
	lock    io.Closer
	meta    meta
	reading bool // opened for reading only: the disk was full

	write sync.Mutex // one batch at a time: what it read is still so when it writes

	mu      sync.Mutex // guards all below
	users   sync.WaitGroup
	closed  bool
	suspect bool // damage was met: Close leaves the index to be tested at the next Open
}

// Lookup finds ds: found[i] tells whether locs[i] is set. Both slices have at least len(ds) elements. A digest that the
// index does not have costs no disk access as a rule.
func (x *Index) Lookup(ctx context.Context, ds []digest.Digest, locs []Loc, found []bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.use("look up", func() error {
		return x.db.View(func(txn *badger.Txn) error { return lookup(txn, ds, locs, found) })
	})
}

func lookup(txn *badger.Txn, ds []digest.Digest, locs []Loc, found []bool) error {
	for i := range ds {
		l, ok, err := get(txn, ds[i][:keySize])
		if err != nil {
			return err
		}
		if found[i] = ok; ok {
			locs[i] = l
		}
	}
	return nil
}

func get(txn *badger.Txn, key []byte) (l Loc, found bool, err error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return Loc{}, false, nil
	}
	if err != nil {
		return Loc{}, false, err
	}
	err = item.Value(func(v []byte) (err error) {
		l, err = parseLoc(v)
		return err
	})
	return l, err == nil, err
}

// PutContainer enters every row of a container and then its mark. The rows are synced on return; a mark that a crash
// takes costs the entering anew. A digest that has a location already keeps it if keep says so, which nil always does.
// Within a container the first row of a digest counts. KindNoSpace: nothing, or a part of the rows, was entered, and
// the mark was not.
func (x *Index) PutContainer(ctx context.Context, d *container.Directory, keep func(digest.Digest, Loc) bool) error {
	return x.PutLive(ctx, d, keep, nil)
}

// PutLive is PutContainer without the rows that dead names, if it is not nil: such a container is not Canonical.
func (x *Index) PutLive(ctx context.Context, d *container.Directory, keep func(digest.Digest, Loc) bool, dead func(slot uint32) bool) error {
	return x.put(ctx, d, keep, dead, true)
}

// PutRows is PutContainer without the mark: whoever opens the index next finds that the container was not entered.
func (x *Index) PutRows(ctx context.Context, d *container.Directory, keep func(digest.Digest, Loc) bool) error {
	return x.put(ctx, d, keep, nil, false)
}

func (x *Index) put(ctx context.Context, d *container.Directory, keep func(digest.Digest, Loc) bool, dead func(slot uint32) bool, mark bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.change("enter container", func() error {
		rows, elsewhere, err := x.newRows(d, keep, dead)
		if err != nil {
			return err
		}
		if err := x.putRows(d, rows); err != nil || !mark {
			return err
		}
		return x.db.Update(func(txn *badger.Txn) error { return txn.Set(markKey(d.ID()), markValue(d, elsewhere)) })
	})
}

// row is one chunk of a container on its way into the index.
type row struct {
	key  [keySize]byte
	slot uint32
}

// newRows returns the rows that are to be entered, by key: lookups and inserts in that order are the cheaper ones. Those
// that keep a location elsewhere, and dead ones, are counted.
func (x *Index) newRows(d *container.Directory, keep func(digest.Digest, Loc) bool, dead func(slot uint32) bool) (fresh []row, elsewhere uint32, err error) {
	rows := make([]row, 0, d.Rows())
	buried := uint32(0)
	for slot := range uint32(d.Rows()) {
		if dead != nil && dead(slot) {
			buried++
			continue
		}
		digest := d.Digest(slot)
		if r := (row{key: [keySize]byte(digest[:]), slot: slot}); !isMetaKey(r.key[:]) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		if c := bytes.Compare(a.key[:], b.key[:]); c != 0 {
			return c
		}
		return int(a.slot) - int(b.slot)
	})
	rows = slices.CompactFunc(rows, func(a, b row) bool { return a.key == b.key })
	err = x.db.View(func(txn *badger.Txn) (err error) {
		fresh, elsewhere, err = dropKept(txn, d, rows, keep)
		return err
	})
	return fresh, elsewhere + buried, err
}

// dropKept leaves out the rows whose digests keep the location that they have, and counts those that keep one in
// another container.
func dropKept(txn *badger.Txn, d *container.Directory, rows []row, keep func(digest.Digest, Loc) bool) (fresh []row, elsewhere uint32, err error) {
	fresh = rows[:0]
	for _, r := range rows {
		old, found, err := get(txn, r.key[:])
		if err != nil {
			return nil, 0, err
		}
		if !found || (keep != nil && !keep(d.Digest(r.slot), old)) {
			fresh = append(fresh, r)
		} else if old.Container != d.ID() {
			elsewhere++
		}
	}
	return fresh, elsewhere, nil
}

// putRows writes the rows, and syncs.
func (x *Index) putRows(d *container.Directory, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	wb := x.db.NewWriteBatch()
	defer wb.Cancel()
	values := make([]byte, 0, len(rows)*valueSize)
	for i := range rows {
		start := len(values)
		values = appendLoc(values, Loc{Container: d.ID(), Slot: rows[i].slot, Kind: d.Kind()})
		if err := wb.Set(rows[i].key[:], values[start:]); err != nil {
			return err
		}
	}
	if err := wb.Flush(); err != nil {
		return err
	}
	return x.db.Sync()
}

// DeleteIf removes the entries that still name the given places, and syncs. KindNoSpace.
func (x *Index) DeleteIf(ctx context.Context, ds []digest.Digest, locs []Loc) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.remove("delete", func() error {
		now, found := make([]Loc, len(ds)), make([]bool, len(ds))
		if err := x.db.View(func(txn *badger.Txn) error { return lookup(txn, ds, now, found) }); err != nil {
			return err
		}
		wb := x.db.NewWriteBatch()
		defer wb.Cancel()
		for i := range ds {
			if !found[i] || now[i] != locs[i] {
				continue
			}
			if err := wb.Delete(bytes.Clone(ds[i][:keySize])); err != nil {
				return err
			}
		}
		if err := wb.Flush(); err != nil {
			return err
		}
		return x.db.Sync()
	})
}

// HasContainer tells whether a container was entered whole, and not forgotten since.
func (x *Index) HasContainer(id container.ID) (has bool, err error) {
	err = x.use("look up container", func() error {
		return x.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(markKey(id))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return nil
			}
			has = err == nil && item.ValueSize() > 0
			return err
		})
	})
	return has, err
}

// Canonical tells whether a container was entered whole and every row of it got its location: then a chunk that is found
// in its directory is found in the index, too, at that place, as long as nobody overwrites it.
func (x *Index) Canonical(id container.ID) (yes bool, err error) {
	err = x.use("look up container", func() error {
		return x.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(markKey(id))
			if errors.Is(err, badger.ErrKeyNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return item.Value(func(v []byte) (err error) {
				yes, err = markCanonical(v)
				return err
			})
		})
	})
	return yes, err
}

// Mark is what the index says of a container.
type Mark struct {
	Container container.ID
	// Entered: every row was entered whole, or had a location already. It is false of a container that was forgotten: its rows
	// may have been given up, or left to others.
	Entered bool
}

// Marks yields the marks of all containers that were entered at some time and not removed, in order of their ids. The index
// may be used and changed meanwhile, but not closed.
func (x *Index) Marks(ctx context.Context) iter.Seq2[Mark, error] {
	return func(yield func(Mark, error) bool) {
		var stop bool
		err := x.use("list containers", func() error {
			return x.db.View(func(txn *badger.Txn) error {
				it := txn.NewIterator(badger.IteratorOptions{Prefix: markPrefix()})
				defer it.Close()
				for it.Rewind(); it.Valid() && !stop; it.Next() {
					if err := ctx.Err(); err != nil {
						return err
					}
					id, ok := parseMark(it.Item().Key())
					if !ok {
						return fmt.Errorf("%w: mark of %d bytes", errDamage, len(it.Item().Key()))
					}
					stop = !yield(Mark{Container: id, Entered: it.Item().ValueSize() > 0}, nil)
				}
				return nil
			})
		})
		if err != nil && !stop {
			yield(Mark{}, err)
		}
	}
}

// ForgetContainer has the marks of containers say that they are to be entered again, and syncs once. Their rows stay; they are
// hints. That the containers were entered stays known: others may have lost their locations to them.
func (x *Index) ForgetContainer(ctx context.Context, ids ...container.ID) error {
	return x.changeMarks(ctx, "forget container", ids, func(wb *badger.WriteBatch, key []byte) error { return wb.Set(key, nil) })
}

// RemoveContainer removes the marks of containers that are about to go, and syncs once. INVARIANT: by then nothing that is needed
// has its location in them, for from now on nobody misses them.
func (x *Index) RemoveContainer(ctx context.Context, ids ...container.ID) error {
	return x.changeMarks(ctx, "remove container", ids, (*badger.WriteBatch).Delete)
}

// changeMarks changes the marks that are there.
func (x *Index) changeMarks(ctx context.Context, op string, ids []container.ID, change func(wb *badger.WriteBatch, key []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return x.remove(op, func() error {
		wb := x.db.NewWriteBatch()
		defer wb.Cancel()
		err := x.db.View(func(txn *badger.Txn) error {
			for _, id := range ids {
				_, err := txn.Get(markKey(id))
				if errors.Is(err, badger.ErrKeyNotFound) {
					continue
				}
				if err == nil {
					err = change(wb, markKey(id))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := wb.Flush(); err != nil {
			return err
		}
		return x.db.Sync()
	})
}

// NoteDead notes, synced, which list of dead rows the caller is about to obey, by taking entries out or leaving rows out: lists
// have ascending numbers. A number that is not higher than the last one changes nothing.
func (x *Index) NoteDead(ctx context.Context, list uint32) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if known, err := x.Dead(); err != nil || list <= known {
		return err
	}
	return x.remove("note dead rows", func() error {
		if err := x.db.Update(func(txn *badger.Txn) error { return txn.Set(deadKey(), le.AppendUint32(nil, list)) }); err != nil {
			return err
		}
		return x.db.Sync()
	})
}

// Dead returns the highest number that NoteDead was told of; 0: none.
func (x *Index) Dead() (list uint32, err error) {
	err = x.use("look up dead rows", func() error {
		return x.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get(deadKey())
			if errors.Is(err, badger.ErrKeyNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return item.Value(func(v []byte) error {
				if len(v) != 4 {
					return fmt.Errorf("%w: number of %d bytes", errDamage, len(v))
				}
				list = le.Uint32(v)
				return nil
			})
		})
	})
	return list, err
}

// Suspect makes the next Open test every block of the tables, however large they are. It is for who finds by another way
// that the index lacks what it must have: a damaged block of a table is no error to a lookup.
func (x *Index) Suspect() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.suspect = true
}

// Stats is what the index takes on disk.
type Stats struct {
	DiskBytes int64 // of tables; what badger has not yet written into one is not counted
	Tables    int
	// Asked and Passed count the questions to filters of tables since the process began, and those that a filter did not
	// answer with "not there", so that a block was read. Only with Options.Count.
	Asked, Passed int64
}

// Stats returns sizes of this moment; all zero when the index is closed.
func (x *Index) Stats() (s Stats) {
	_ = x.use("stat", func() error {
		for _, l := range x.db.Levels() {
			s.DiskBytes += l.Size
			s.Tables += l.NumTables
		}
		if x.opts.Count {
			s.Asked, s.Passed = filterCounts()
		}
		return nil
	})
	return s
}

// use runs f unless the index is closed, and turns errors and panics of badger into this package's.
func (x *Index) use(op string, f func() error) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return &Error{Op: op, Kind: KindClosed, Err: errClosed}
	}
	x.users.Add(1)
	x.mu.Unlock()
	defer x.users.Done()
	err := classify(op, guard(f))
	if IsDamage(err) {
		x.Suspect()
	}
	return err
}

// change is use for what writes: one at a time, and only while there is room.
func (x *Index) change(op string, f func() error) error {
	x.write.Lock()
	defer x.write.Unlock()
	if err := x.CheckSpace(); err != nil {
		return err
	}
	return x.use(op, f)
}

// remove is change for what only removes: it may use half of the reserve, for it is what makes room on a full disk.
func (x *Index) remove(op string, f func() error) error {
	x.write.Lock()
	defer x.write.Unlock()
	if err := x.checkSpace(x.opts.Reserve / 2); err != nil {
		return err
	}
	return x.use(op, f)
}
