package dedup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"coffer/dedup/blob"
	"coffer/dedup/container"
	"coffer/dedup/digest"
	"coffer/dedup/index"
)

// spoolSuffix marks the spool files of containers. Everything with this suffix is a leftover at Open.
const spoolSuffix = ".spool"

func (s *Store) spoolPath(name string) string { return path.Join(s.opts.SpoolDir, name) }

func (s *Store) prepareSpool() error {
	return wrap("make spool", s.opts.SpoolDir, s.fs.MkdirAll(s.opts.SpoolDir))
}

// clearSpool removes what runs that died left open, after what they hold was salvaged. The lock is held: nobody writes
// them.
func (s *Store) clearSpool() error {
	names, err := s.fs.List(s.opts.SpoolDir)
	if err != nil {
		return wrap("list spool", s.opts.SpoolDir, err)
	}
	for _, name := range names {
		if path.Ext(name) != spoolSuffix {
			continue
		}
		if err := s.fs.Remove(s.spoolPath(name)); err != nil {
			return wrap("clear spool", name, err)
		}
	}
	return nil
}

// listContainers learns which containers there are.
func (s *Store) listContainers(ctx context.Context) error {
	for info, err := range s.blob.List(ctx, container.Prefix, "") {
		if err != nil {
			return wrap("list containers", "", err)
		}
		id, ok := container.ParseName(info.Name)
		if !ok {
			s.log.Warn("not a container's name", "blob", info.Name)
			continue
		}
		s.containers.add(id, info.Size, 0)
	}
	return nil
}

// epochObject says who opened the store in an epoch.
type epochObject struct {
	Version int       `json:"version"`
	Epoch   uint32    `json:"epoch"`
	Owner   string    `json:"owner"`
	Time    time.Time `json:"time"`
}

// takeEpoch takes the next writer epoch: one more than any epoch object or container has, so that a container id never
// comes twice. Put is create-only: of two writers one loses.
func (s *Store) takeEpoch(ctx context.Context) error {
	last, names, err := s.lastEpoch(ctx)
	if err != nil {
		return err
	}
	last = max(last, s.containers.maxEpoch())
	s.epoch = last + 1
	if s.epoch == 0 {
		return &Error{Kind: Invalid, Op: "take epoch", Err: errors.New("the epochs are used up")}
	}
	name := epochName(s.epoch)
	err = s.putObject(ctx, epochKind, name, epochObject{objectVersion, s.epoch, s.opts.Owner, s.opts.Now().UTC()})
	if errors.Is(err, blob.ErrExists) {
		return &Error{Kind: Locked, Op: "take epoch", Object: name, Err: err}
	}
	if err != nil {
		return err
	}
	for _, old := range names {
		if err := s.deleteObject(ctx, old); err != nil {
			s.log.Warn("old epoch object stays", "blob", old, "err", err)
		}
	}
	return nil
}

func (s *Store) lastEpoch(ctx context.Context) (last uint32, names []string, err error) {
	for o, err := range s.objects(ctx, epochPrefix) {
		if err != nil {
			return 0, nil, wrap("list epochs", "", err)
		}
		if n, ok := parseNumber(o.name[len(epochPrefix):]); ok {
			last = max(last, n)
			names = append(names, o.name)
		}
	}
	return last, names, nil
}

// checkEpoch fences: a writer whose store was taken over writes no manifest any more.
func (s *Store) checkEpoch(ctx context.Context) error {
	last, _, err := s.lastEpoch(ctx)
	if err == nil && last > s.epoch {
		err = &Error{Kind: Locked, Op: "check epoch", Err: fmt.Errorf("epoch %d was taken after ours, %d", last, s.epoch)}
	}
	return err
}

// nextID returns an id that no container has or had.
func (s *Store) nextID() (container.ID, error) {
	n := s.seq.Add(1)
	if n == 0 {
		return 0, &Error{Kind: Invalid, Op: "number container", Err: errors.New("the sequence is used up: reopen the store")}
	}
	return container.MakeID(s.epoch, n), nil
}

func (s *containerSet) maxEpoch() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last uint32
	for id := range s.m {
		last = max(last, id.Epoch())
	}
	return last
}

// openIndex opens the index and brings it level with the containers. The index is a hint and never the truth: one that
// is damaged, not ours, of a newer format, or that knows containers which are gone is made anew.
func (s *Store) openIndex(ctx context.Context) error {
	if s.opts.Reindex {
		if err := index.Remove(s.opts.IndexDir); err != nil {
			return wrap("remove index", s.opts.IndexDir, err)
		}
	}
	if err := s.openIndexFiles(); err != nil {
		return err
	}
	missing, ahead, err := s.compareIndex(ctx)
	if KindOf(err) == Damaged || ahead {
		s.log.Warn("index does not fit the containers and is rebuilt", "ahead", ahead, "err", err)
		if err := s.resetIndex(); err != nil {
			return err
		}
		if err := s.noteLostDead(ctx); err != nil {
			return err
		}
		missing, _, err = s.compareIndex(ctx)
	}
	if err != nil {
		return err
	}
	return s.replay(ctx, missing)
}

func (s *Store) openIndexFiles() error {
	open := func() (err error) {
		s.index, err = index.Open(s.opts.IndexDir, index.Options{Memory: s.opts.IndexMemory, Reserve: s.opts.IndexReserve,
			Free: s.opts.IndexFree, Store: s.domain.ID, Logger: s.log})
		return err
	}
	err := open()
	if k := kindFromBelow(err); err != nil && (k == Damaged || k == NewerFormat) {
		s.log.Warn("index cannot be used and is rebuilt", "err", err)
		if err = index.Remove(s.opts.IndexDir); err == nil {
			err = open()
		}
	}
	if err != nil {
		s.index = nil
	}
	return wrap("open index", s.opts.IndexDir, err)
}

func (s *Store) resetIndex() error {
	err := s.index.Close()
	s.index = nil
	if err != nil {
		s.log.Warn("close of the old index", "err", err)
	}
	if err := index.Remove(s.opts.IndexDir); err != nil {
		return wrap("remove index", s.opts.IndexDir, err)
	}
	return s.openIndexFiles()
}

// compareIndex returns the containers that the index has not, ascending, and whether it is ahead: it has some that are gone, or
// has lost the entries of nodes that died after what the store knows. Who puts an earlier state of the store back has one.
func (s *Store) compareIndex(ctx context.Context) (missing []container.ID, ahead bool, err error) {
	marked := make(map[container.ID]struct{})
	for m, err := range s.index.Marks(ctx) {
		if err != nil {
			return nil, false, wrap("list index marks", "", err)
		}
		if !s.containers.has(m.Container) {
			return nil, true, nil
		}
		if m.Entered {
			marked[m.Container] = struct{}{}
		}
	}
	obeyed, err := s.index.Dead()
	if err != nil {
		return nil, false, wrap("read index", "", err)
	}
	return s.containers.without(marked), s.tombstones.lacks(obeyed), nil
}

// replay enters containers into the index that it lacks, data before nodes: the index names a node only if what is
// below it is there.
func (s *Store) replay(ctx context.Context, missing []container.ID) error {
	if len(missing) == 0 {
		return nil
	}
	s.log.Info("index lacks containers", "containers", len(missing))
	m := newMeter(s.opts.ReindexProgress)
	m.phase("reindex", "containers", int64(len(missing)))
	var nodes []container.ID
	for _, id := range missing {
		kind, err := s.replayOne(ctx, id, container.Data)
		if err != nil {
			return err
		}
		if kind == container.Node {
			nodes = append(nodes, id)
		} else {
			m.add(1)
		}
	}
	for _, id := range nodes {
		if _, err := s.replayOne(ctx, id, container.Node); err != nil {
			return err
		}
		m.add(1)
	}
	return nil
}

// replayOne enters a container if it is of the kind wanted, and returns its kind. A damaged one is left out.
func (s *Store) replayOne(ctx context.Context, id container.ID, want container.Kind) (container.Kind, error) {
	dir, err := container.OpenDirectory(ctx, s.blob, id, s.ring)
	switch k := kindFromBelow(err); {
	case err != nil && (k == Damaged || k == WrongKey): // of a key that was destroyed: nobody counted it, so nothing needs it
		s.spoil(ctx, id, err)
		return 0, nil
	case err != nil && k == NotFound:
		return 0, nil
	}
	if err != nil {
		return 0, wrap("open container", id.String(), err)
	}
	if dir.Kind() != want {
		return dir.Kind(), nil
	}
	return want, s.enterAgain(ctx, dir)
}

// enterAgain enters a container that was in the index once, or should have been.
//
// INVARIANT G3: the rows that tombstones name do not come back, and if they never left they do now. Where the tombstones
// are lost nothing of the container is had, so that it does not matter which of its nodes are dead; savesets are read from
// it. It keeps no mark then: who opens the store has to come here again.
func (s *Store) enterAgain(ctx context.Context, dir *container.Directory) error {
	dead, lost := s.tombstones.buried(dir.ID())
	if dir.Kind() == container.Node && lost {
		s.containers.bar(dir.ID(), true)
		err := s.index.PutRows(ctx, dir, func(_ digest.Digest, old index.Loc) bool { return s.containers.usable(old.Container) })
		return wrap("index container", dir.ID().String(), err)
	}
	if dir.Kind() == container.Data {
		dead = grave{} // below a chunk there is nothing
	}
	if !dead.empty() {
		if err := s.noteDead(ctx); err != nil {
			return err
		}
	}
	if err := s.dropRows(ctx, dir, dead.has); err != nil {
		return err
	}
	return s.enter(ctx, dir, s.containers.usable, dead.has)
}

// dropRows takes the entries of those rows of a container that the function names out of the index, where they name this
// container.
func (s *Store) dropRows(ctx context.Context, dir *container.Directory, drop func(slot uint32) bool) error {
	const batch = 16 << 10 // who waits for the index meanwhile waits for this much
	ds, locs := make([]digest.Digest, 0, min(batch, dir.Rows())), make([]index.Loc, 0, min(batch, dir.Rows()))
	flush := func() error {
		if len(ds) == 0 {
			return nil
		}
		err := s.index.DeleteIf(ctx, ds, locs)
		ds, locs = ds[:0], locs[:0]
		return wrap("remove entries", dir.ID().String(), err)
	}
	for slot := range uint32(dir.Rows()) {
		if !drop(slot) {
			continue
		}
		ds = append(ds, dir.Digest(slot))
		locs = append(locs, index.Loc{Container: dir.ID(), Slot: slot, Kind: dir.Kind()})
		if len(ds) == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// enter puts a container into the index, synced, and into the locality cache, without its dead rows (nil: it has none). A digest that the
// index has elsewhere stays there if holds says so of the container that it names; else it gives way.
func (s *Store) enter(ctx context.Context, dir *container.Directory, holds func(container.ID) bool, dead func(slot uint32) bool) error {
	if dead == nil {
		dead = grave{}.has
	}
	if err := s.cover(ctx, dir); err != nil {
		return err
	}
	elsewhere, err := s.putLive(ctx, dir, holds, dead)
	if err != nil {
		return err
	}
	s.dirs.put(dir, elsewhere)
	return s.healBy(ctx, dir)
}

// putLive is the index's, and returns the rows that keep an entry elsewhere.
//
// INVARIANT I1: while the index asks, it is held: a container that proves unreadable then goes onto the damage list afterwards, for
// the index has to lose its mark before; and one whose entries a run is about to take over has its mark still. Until that is done
// the entries stay.
func (s *Store) putLive(ctx context.Context, dir *container.Directory, holds func(container.ID) bool, dead func(slot uint32) bool) (elsewhere map[digest.Digest]struct{}, err error) {
	for {
		elsewhere = make(map[digest.Digest]struct{})
		unread, moving := make(map[container.ID]struct{}), false
		freed := s.containers.whenFreed()
		err := s.index.PutLive(ctx, dir, func(d digest.Digest, old index.Loc) bool {
			if old.Container == dir.ID() {
				return false
			}
			bad, doubt := s.badEntry(ctx, old)
			switch {
			case doubt:
				unread[old.Container] = struct{}{}
			case bad:
				return false
			case holds(old.Container):
			case s.containers.usable(old.Container): // it was moving, or condemned, a moment ago
				moving = true
			default:
				return false
			}
			elsewhere[d] = struct{}{}
			return true
		}, dead)
		if err != nil {
			return nil, wrap("index container", dir.ID().String(), err)
		}
		if len(unread) == 0 && !moving {
			return elsewhere, nil
		}
		if moving {
			select {
			case <-freed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		for id := range unread {
			if _, err := s.directory(ctx, id); err != nil {
				return nil, err
			}
		}
	}
}
