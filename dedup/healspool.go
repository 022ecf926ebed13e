package dedup

import (
	"context"
	"errors"
	"path"
	"strconv"
	"strings"

	"coffer/dedup/container"
	"coffer/dedup/digest"
)

// maxSpoolSalvage bounds the bytes of spool files that are read at Open: what a daemon leaves that was killed is its open
// containers, a few dozen MiB.
const maxSpoolSalvage = 2 << 30

// salvageSpool stores the chunks that arrived and were not yet in a container when the process died, so that the next run
// need not send them again; then it clears the spool. It is for speed only: what fails is logged.
//
// Nodes are not salvaged: what is below them may not have come as far, and a node in the store has everything below it.
func (s *Store) salvageSpool(ctx context.Context) error {
	names, err := s.fs.List(s.opts.SpoolDir)
	if err != nil {
		return wrap("list spool", s.opts.SpoolDir, err)
	}
	menders := make(map[digest.DomainID]*mender)
	left := int64(maxSpoolSalvage)
	for _, name := range names {
		id, ok := spoolID(name)
		if !ok {
			continue
		}
		if err := s.salvageSpoolFile(ctx, id, name, menders, &left); err != nil {
			s.log.Info("a spool file is not salvaged", "file", name, "err", err)
		}
	}
	for _, m := range menders {
		if err := m.finish(ctx); err != nil {
			s.log.Warn("what was salvaged from the spool could not be stored", "err", err)
			m.abandon()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.clearSpool()
}

// spoolID returns whose spool file a name is.
func spoolID(name string) (container.ID, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name, spoolSuffix), 16, 64)
	id := container.ID(n)
	return id, err == nil && path.Ext(name) == spoolSuffix && id.String()+spoolSuffix == name
}

var errNodes = errors.New("it holds nodes")

func (s *Store) salvageSpoolFile(ctx context.Context, id container.ID, name string, menders map[digest.DomainID]*mender, left *int64) error {
	if s.containers.has(id) {
		return nil // it was stored, and the file only not removed
	}
	f, err := s.fs.Open(s.spoolPath(name))
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil || size > *left {
		return err
	}
	*left -= size
	_, err = container.SalvageFile(ctx, f, size, id, s.ring, func(r container.Record) error {
		if r.Kind != container.Data {
			return errNodes
		}
		m := menders[r.Domain]
		if m == nil {
			d, ok := s.domains.get(r.Domain)
			if !ok {
				return errForeign
			}
			m = newMender(s, d)
			menders[r.Domain] = m
		}
		return m.arrived(ctx, r)
	})
	return err
}

// arrived stores those chunks of a record that the store has not got.
func (m *mender) arrived(ctx context.Context, r container.Record) error {
	ds, chunks, err := m.take(r)
	if err != nil {
		return nil // never right
	}
	places, err := m.s.indexed(ctx, ds)
	if err != nil {
		return err
	}
	for i, at := range places {
		if at.dir != nil && m.s.containers.usable(at.dir.ID()) {
			continue
		}
		if err := m.add(ctx, r.Kind, ds[i], chunks[i]); err != nil {
			return err
		}
	}
	return nil
}
