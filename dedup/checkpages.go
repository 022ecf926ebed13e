package dedup

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/frame"
	"coffer/dedup/keys"
)

// checkSaveEvery is how often the place in a round is written down: what a crash repeats at most.
const checkSaveEvery = 10 * time.Second

// containers looks at the share of the containers that is due.
func (c *check) containers(ctx context.Context) error {
	s := c.s
	ids, err := c.due(ctx)
	if err != nil {
		return err
	}
	c.meter.phase("pages", "containers", int64(len(ids)))
	saved := time.Now()
	for i, id := range ids {
		if err := stopped(ctx); err != nil {
			return err
		}
		err := c.container(ctx, id)
		if err != nil && stopped(ctx) != nil {
			return stopped(ctx)
		}
		if last := i == len(ids)-1; last || err != nil || time.Since(saved) > checkSaveEvery {
			saved = time.Now()
			if err := s.saveDamage(ctx); err != nil {
				return err
			}
			if err := c.savePlace(ctx, id, i+1); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		c.meter.add(1)
	}
	return c.endRound(ctx)
}

// due returns the containers to look at, ascending. A call for all of them begins a new round.
func (c *check) due(ctx context.Context) ([]container.ID, error) {
	s := c.s
	all := s.containers.without(nil)
	share := int(math.Ceil(c.o.Share * float64(len(all))))
	whole := c.o.Share == 0 || c.o.Share == 1
	err := s.saveChecks(ctx, func(o *checkObject) {
		o.Total = len(all)
		if whole {
			o.Cursor, o.Done, o.Shallow = "", 0, false
		}
		o.Shallow = o.Shallow || !c.o.Deep
	})
	if err != nil {
		return nil, err
	}
	state := s.checks.get()
	cursor := state.cursor()
	for len(all) > 0 && all[0] <= cursor {
		all = all[1:]
	}
	if !whole {
		all = all[:min(share, len(all))]
	}
	return all, nil
}

// savePlace writes down that the round came to a container.
func (c *check) savePlace(ctx context.Context, id container.ID, done int) error {
	done -= c.counted
	c.counted += done
	return c.s.saveChecks(ctx, func(o *checkObject) {
		o.Cursor = id.String()
		o.Done += done
	})
}

// endRound ends the round when no container is left in it.
func (c *check) endRound(ctx context.Context) error {
	state := c.s.checks.get()
	cursor := state.cursor()
	for _, id := range c.s.containers.without(nil) {
		if id > cursor && c.o.Share > 0 && c.o.Share < 1 {
			c.rep.Complete = false
			return nil
		}
	}
	now := c.s.opts.Now().UTC().Round(0)
	return c.s.saveChecks(ctx, func(o *checkObject) {
		o.Pages = now
		if !o.Shallow {
			o.Deep = now
		}
		o.Round++
		o.Cursor, o.Done, o.Shallow = "", 0, false
	})
}

// maxMute is how many containers and small objects in one check the disk may not give: beyond it, it is the disk that is damaged.
const maxMute = 8

// container looks at one container, and brings the damage list level with what it sees.
func (c *check) container(ctx context.Context, id container.ID) error {
	bad := make(map[uint32]error)
	res, err := c.scan(ctx, id, bad)
	if err := stopped(ctx); err != nil {
		return err // what did not read for that reason is not damaged
	}
	if !c.s.containers.has(id) {
		c.rep.Skipped++
		return nil // matrix, row 8
	}
	c.rep.Containers++
	c.rep.Frames += res.Frames
	c.rep.Bytes += res.Bytes
	for i, why := range bad {
		c.s.noteFrame(ctx, res.Directory, i, why)
	}
	switch k := kindFromBelow(err); {
	case err == nil || k == WrongKey:
		return c.clear(ctx, id, bad, true)
	case k != Damaged && k != NotFound && (k != Other || stopped(ctx) != nil || c.mute == maxMute):
		return wrap("read container", id.String(), err)
	case k == Other:
		c.mute++
		c.s.spoil(ctx, id, err)
		return nil
	case res.Directory == nil:
		c.s.spoil(ctx, id, err)
		return nil
	default:
		c.s.noteShell(id, res.Directory.Kind(), err)
		return c.clear(ctx, id, bad, false)
	}
}

// scan reads a container as far as the options and the store's keys allow.
func (c *check) scan(ctx context.Context, id container.ID, bad map[uint32]error) (container.ScanResult, error) {
	o := container.ScanOptions{
		Wait: func(ctx context.Context, n int) error { return c.pace.take(ctx, int64(n)) },
		Bad:  func(i uint32, err error) { bad[i] = err },
	}
	if c.o.Deep {
		o.Ring = c.s.ring
		o.Frame = func(d *container.Directory, _ uint32, f frame.Frame) error { return c.s.verify(ctx, d, f) }
	}
	res, err := container.Scan(ctx, secondTry{c.s.blob}, id, o)
	if errors.Is(err, keys.ErrUnknownKey) {
		c.rep.Skipped++
		o.Ring, o.Frame = nil, nil
		res, err = container.Scan(ctx, secondTry{c.s.blob}, id, o)
	}
	return res, err
}

// secondTry reads once more what a disk did not give: what it gives then is no damage, and to take a container out of use
// for a passing fault of a cable would be one.
type secondTry struct{ blob.Store }

// ReadRange implements blob.Store.
func (b secondTry) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	err := b.Store.ReadRange(ctx, name, p, off)
	if withheld(ctx, err) {
		err = b.Store.ReadRange(ctx, name, p, off)
	}
	return err
}

// Size implements blob.Store.
func (b secondTry) Size(ctx context.Context, name string) (int64, error) {
	n, err := b.Store.Size(ctx, name)
	if withheld(ctx, err) {
		n, err = b.Store.Size(ctx, name)
	}
	return n, err
}

// withheld reports whether an error is one of the disk.
func withheld(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !errors.Is(err, blob.ErrNotExist) && !errors.Is(err, io.ErrUnexpectedEOF)
}

// verify decompresses a frame and recomputes its digests, where the domain's key is known.
func (s *Store) verify(ctx context.Context, dir *container.Directory, f frame.Frame) error {
	r, err := s.readers.take(ctx)
	if err != nil {
		return err
	}
	defer s.readers.give(r)
	r.plain, err = r.dec.Decode(f, r.plain[:0])
	if err != nil {
		return err
	}
	if h, err := s.readers.hasher(r, dir); err == nil {
		return f.Verify(h, r.plain)
	}
	return nil
}

// clear takes off the list what proved to be as it should be. A container that could not be read stays on it while a
// collection runs: the next check comes here again.
func (c *check) clear(ctx context.Context, id container.ID, bad map[uint32]error, shell bool) error {
	s := c.s
	if s.damage.spoils(id) && s.renewing.TryRLock() {
		defer s.renewing.RUnlock()
		switch renewed, err := s.renew(ctx, id); {
		case err != nil:
			return err
		case renewed:
			c.rep.Healthy += s.damage.drop(func(r *damageRow) bool { return r.Container == id && r.spoils() })
		}
	}
	c.rep.Healthy += s.damage.drop(func(r *damageRow) bool {
		switch {
		case r.Container != id:
			return false
		case r.sort == damagedFrame:
			return c.o.Deep && bad[uint32(r.Frame)] == nil
		}
		return r.sort == damagedShell && shell
	})
	return nil
}

// renew takes a container into use again, if its directory can be read after all. It needs s.renewing held.
//
// INVARIANT: no collection runs. It has set no marks in the container, whose rows may take over entries of others now, and it
// may have named all that is in there as dead. Nobody has anything of the container before its dead rows are out.
func (s *Store) renew(ctx context.Context, id container.ID) (bool, error) {
	dir, err := container.OpenDirectory(ctx, s.blob, id, s.ring)
	switch k := kindFromBelow(err); {
	case err != nil && (k == Damaged || k == WrongKey || k == NotFound):
		return false, nil
	case err != nil:
		return false, wrap("open container", id.String(), err)
	}
	if err := s.enterAgain(ctx, dir); err != nil {
		return false, err
	}
	s.containers.unspoil(id)
	return true, nil
}

// spoils reports whether a container is on the list as a whole.
func (l *damageList) spoils(id container.ID) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.rows, func(r *damageRow) bool { return r.Container == id && r.spoils() })
}

// unspoil says that a container can be read after all.
func (s *containerSet) unspoil(id container.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.m[id]; ok {
		c.damaged = false
	}
	s.wakeLocked()
}

// smallObjects opens every small object in all its forms, its second copy, and both copies of the keyring.
func (c *check) smallObjects(ctx context.Context) error {
	c.meter.phase("small objects", "objects", 0)
	for _, f := range objectFamilies {
		for o, err := range c.s.objects(ctx, f.prefix) {
			if err != nil {
				return wrap("list objects", f.prefix, err)
			}
			if err := c.smallForms(ctx, f.kind, o); err != nil {
				return err
			}
		}
	}
	c.rep.Healthy += c.s.forgetObjects(ctx)
	return c.keyring(ctx)
}

// forgetObjects takes damaged objects off the list that are not there any more; it returns how many.
func (s *Store) forgetObjects(ctx context.Context) int {
	return s.damage.drop(func(r *damageRow) bool {
		if r.sort != damagedObject {
			return false
		}
		_, err := s.blob.Size(ctx, r.Object)
		return errors.Is(err, blob.ErrNotExist)
	})
}

// smallForms opens an object in all its forms, and its second copy.
func (c *check) smallForms(ctx context.Context, kind string, o object) error {
	whole := ""
	for _, form := range o.blobs {
		ok, err := c.smallObject(ctx, kind, o.name, form)
		if err != nil {
			return err
		}
		if ok && whole == "" {
			whole = form
		}
	}
	if whole == "" {
		return nil
	}
	return c.checkCopy(ctx, kind, o.name, whole)
}

// smallObject opens a blob of a small object, and reports whether it is whole.
func (c *check) smallObject(ctx context.Context, kind, name, form string) (bool, error) {
	if err := stopped(ctx); err != nil {
		return false, err
	}
	_, err := c.s.openForm(ctx, kind, name, form)
	if KindOf(err) == Other && withheld(ctx, err) {
		_, err = c.s.openForm(ctx, kind, name, form)
	}
	if KindOf(err) == Other && withheld(ctx, err) && c.mute < maxMute {
		c.mute++
		err = &Error{Kind: Damaged, Op: "read " + kind, Object: form, Err: err}
	}
	return err == nil, c.judge(ctx, form, err)
}

// judge brings the damage list level with whether a blob of a small object is whole.
func (c *check) judge(ctx context.Context, name string, err error) error {
	switch KindOf(err) {
	case Damaged, NewerFormat, WrongKey:
		if _, gone := c.s.blob.Size(ctx, name); errors.Is(gone, blob.ErrNotExist) {
			return nil
		}
		c.s.noteObject(name, savesetOf(name), err)
	case NotFound: // it went meanwhile
	default:
		if err != nil {
			return err
		}
		c.rep.Healthy += c.s.damage.drop(func(r *damageRow) bool { return r.sort == damagedObject && r.Object == name && c.s.known(name) })
	}
	c.rep.SmallObjects++
	c.meter.add(1)
	return nil
}

// keyring looks at all copies of the keyring: the store opens while one is whole.
func (c *check) keyring(ctx context.Context) error {
	for info, err := range c.s.blob.List(ctx, keys.Prefix, "") {
		if err != nil {
			return wrap("list keyring", "", err)
		}
		err = keys.Verify(ctx, c.s.blob, info.Name)
		if err := c.judge(ctx, info.Name, wrap("read keyring", info.Name, err)); err != nil {
			return err
		}
	}
	return nil
}
