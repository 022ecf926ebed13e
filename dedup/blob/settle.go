package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
)

// removals says of each directory whether all that was removed from it is gone for good. A process knows that only of what
// it synced itself: what one before it removed may come back in a crash.
type removals struct {
	mu     sync.Mutex
	dirs   map[string]dirRemovals // guarded by mu, by path
	walked map[string]bool        // guarded by mu: prefixes below which all directories were settled once
}

type dirRemovals struct {
	count   uint64 // by this process
	settled bool   // a sync that began after the last one succeeded
}

func newRemovals() *removals {
	return &removals{dirs: make(map[string]dirRemovals), walked: make(map[string]bool)}
}

// note takes note of a removal that is not synced yet.
func (r *removals) note(dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirs[dir] = dirRemovals{count: r.dirs[dir].count + 1}
}

func (r *removals) of(dir string) dirRemovals {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dirs[dir]
}

// synced takes note of a sync that began when before was so.
func (r *removals) synced(dir string, before dirRemovals) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dirs[dir].count == before.count {
		r.dirs[dir] = dirRemovals{before.count, true}
	}
}

// unsettled returns the directories in which a removal was noted and not synced; ok is false when a prefix was never walked.
func (r *removals) unsettled(prefix string) (dirs []string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dir, s := range r.dirs {
		if !s.settled {
			dirs = append(dirs, dir)
		}
	}
	return dirs, r.walked[prefix]
}

// syncDir syncs a directory.
func (d *Dir) syncDir(dir string) error {
	before := d.removals.of(dir)
	err := d.fs.SyncDir(dir)
	if err == nil {
		d.removals.synced(dir, before)
	}
	return err
}

// settle syncs a directory unless nothing that was removed from it can come back. One that does not exist has nothing.
func (d *Dir) settle(dir string) error {
	if d.removals.of(dir).settled {
		return nil
	}
	if err := d.syncDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Settle implements Settler. The first call for a prefix goes through all directories that may hold its names, later ones
// to those alone that this process left unsettled.
func (d *Dir) Settle(ctx context.Context, prefix string) error {
	dirs, walked := d.removals.unsettled(prefix)
	if !walked {
		var err error
		if dirs, err = d.directories(ctx, prefix, ""); err != nil {
			return fmt.Errorf("settle %q: %w", prefix, err)
		}
	}
	for _, dir := range dirs {
		if err := errors.Join(ctx.Err(), d.settle(dir)); err != nil {
			return fmt.Errorf("settle %q: %w", prefix, err)
		}
	}
	d.removals.mu.Lock()
	defer d.removals.mu.Unlock()
	d.removals.walked[prefix] = true
	return nil
}

// directories returns the paths of those that may hold names with a prefix; base ends in a slash or is empty.
func (d *Dir) directories(ctx context.Context, prefix, base string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir := d.path(base)
	names, err := d.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := []string{dir}
	for _, n := range names {
		below := base + n + "/"
		if !validPart(n) || !strings.HasPrefix(below, prefix) && !strings.HasPrefix(prefix, below) {
			continue
		}
		st, err := d.fs.Stat(filepath.Join(dir, n))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, err := d.directories(ctx, prefix, below)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}
