package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
)

// dir is a directory of the target. It is made when something is put into it, open while somebody uses it, and gets its
// metadata when nothing in it is left to do.
type dir struct {
	j      *job
	parent *dir
	name   string // in the target
	path   string // in the target, for messages
	e      recipe.Entry
	picked bool // its own metadata is wanted, if it existed before or not

	pending atomic.Int64 // what is left to do in it, the planner's visit included

	mu      sync.Mutex // guards all below
	fd      *fsmeta.Dir
	users   int
	made    bool // it is there, or err says why not
	existed bool
	// inherits: what is made in it does not simply belong to us with the mode that we say.
	inherits bool
	err      error
}

// child makes the directory's entry known; it is not made yet.
func (d *dir) child(e recipe.Entry, picked bool) *dir {
	c := &dir{j: d.j, parent: d, name: e.Name, path: d.pathOf(e.Name), e: e, picked: picked}
	c.pending.Store(1)
	d.pending.Add(1)
	return c
}

func (d *dir) pathOf(name string) string { return d.path + "/" + name }

// open returns the directory's descriptor, making the directory first if need be. Every open without an error needs a
// close.
func (d *dir) open() (*fsmeta.Dir, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd == nil {
		if err := d.reopen(); err != nil {
			return nil, err
		}
	}
	d.users++
	return d.fd, nil
}

func (d *dir) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users == 0 {
		d.j.closed(d)
		_ = d.fd.Close()
		d.fd = nil
	}
}

// holds is what a job has open, so that a job that breaks off leaves nothing open and no half files.
type holds struct {
	mu    sync.Mutex // guards all below
	dirs  map[*dir]struct{}
	files map[*file]struct{} // those that more than one chunk goes into
}

func (j *job) opened(d *dir) {
	j.holds.mu.Lock()
	defer j.holds.mu.Unlock()
	j.holds.dirs[d] = struct{}{}
}

func (j *job) closed(d *dir) {
	j.holds.mu.Lock()
	defer j.holds.mu.Unlock()
	delete(j.holds.dirs, d)
}

// abandon removes half files and closes everything. Nobody else may be at work.
func (j *job) abandon() {
	for f := range j.holds.files {
		_ = f.f.Close()
		f.slot.undo()
	}
	for d := range j.holds.dirs {
		_ = d.fd.Close()
		d.fd = nil
	}
}

// reopen opens the directory in its parent. The mutex is held.
func (d *dir) reopen() error {
	if d.err != nil {
		return d.err
	}
	at, err := d.parent.open()
	if err != nil {
		return err
	}
	defer d.parent.close()
	if d.made {
		if d.fd, err = at.OpenDir(d.name); err == nil {
			d.j.opened(d)
		}
		return err
	}
	d.made = true
	if d.fd, err = d.make(at); err != nil {
		d.err = errReported
		d.report(err)
		return d.err
	}
	d.j.opened(d)
	d.learn()
	return nil
}

// report reports that the directory cannot be had.
func (d *dir) report(err error) {
	switch {
	case !d.j.order.Verify:
		d.j.rep.Warn(codeNotMade, d.path, fmt.Errorf("make directory: %w", err))
	case fsmeta.Gone(err):
		d.j.different(d.path, errors.New("the directory is missing"))
	default:
		d.j.different(d.path, err)
	}
}

// errReported says that a directory cannot be had, which its first user has reported.
var errReported = errors.New("the directory could not be made")

// make makes the directory, or opens the one that is there.
func (d *dir) make(at *fsmeta.Dir) (*fsmeta.Dir, error) {
	if d.j.order.Verify {
		d.existed = true
		return at.OpenDir(d.name)
	}
	err := at.Mkdir(d.name)
	if !errors.Is(err, fs.ErrExist) {
		if err != nil {
			return nil, err
		}
		return at.OpenDir(d.name)
	}
	fd, err := at.OpenDir(d.name)
	if err == nil {
		d.existed = true
		return fd, nil
	}
	if !errors.Is(err, fsmeta.ErrNotDir) && !errors.Is(err, fsmeta.ErrLink) {
		return nil, err
	}
	switch d.j.order.Existing {
	case sms.ExistingOverwrite:
		if err := at.Remove(d.name); err != nil {
			return nil, explain(at, d.name, fmt.Errorf("remove what is in its place: %w", err))
		}
	case sms.ExistingNewVersion:
		d.name = d.j.freeName(at, d.name)
		d.j.rep.Note(codeRenamed, d.path, fmt.Errorf("something else has its name: restored as %q", d.name))
	default:
		return nil, errors.New("something else, or a symlink, has its name; it is kept")
	}
	if err := at.Mkdir(d.name); err != nil {
		return nil, err
	}
	return at.OpenDir(d.name)
}

// learn finds out what new files in the directory inherit.
func (d *dir) learn() {
	var st fsmeta.Stat
	if !d.existed && d.parent != nil {
		d.parent.mu.Lock()
		d.inherits = d.parent.inherits
		d.parent.mu.Unlock()
	}
	if d.existed || d.inherits {
		err := d.fd.Stat(&st)
		d.inherits = err != nil || st.Mode&0o2000 != 0 || st.GID != d.j.gid || d.fd.HasDefaultACL()
	}
}

// fresh tells what a file has that was made in the directory with these permissions.
func (d *dir) fresh(perm uint32) fsmeta.Made {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fsmeta.Made{Fresh: !d.inherits, UID: d.j.uid, GID: d.j.gid, Perm: perm &^ d.j.umask}
}

// isNew reports whether the directory was made by this restore, so that only this restore put something into it.
func (d *dir) isNew() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made && !d.existed
}

// done says that something in the directory is done. The last one gives the directory its metadata.
func (d *dir) done(a *applier) {
	for d != nil && d.pending.Add(-1) == 0 {
		d.dress(a)
		d = d.parent
	}
}

// dress gives a directory its metadata, which closes it to everybody but the owner, perhaps.
func (d *dir) dress(a *applier) {
	d.mu.Lock()
	wanted := d.made && d.err == nil && (!d.existed || d.picked && d.j.order.Existing == sms.ExistingOverwrite)
	existed := d.existed
	d.mu.Unlock()
	if !wanted || d.parent == nil || d.j.order.Verify {
		return
	}
	fd, err := d.open()
	if err != nil {
		d.j.rep.Warn(codeNotMade, d.path, fmt.Errorf("set the directory's metadata: %w", err))
		return
	}
	defer d.close()
	made := d.parent.fresh(0o700)
	made.Fresh = made.Fresh && !existed
	a.dress(d.path, fd.Handle(), &d.e, made)
	a.flags(d.path, fd.Handle(), &d.e, made)
}

// explain adds what an existing file's flags have to do with an error.
func explain(at *fsmeta.Dir, name string, err error) error {
	f, openErr := at.OpenFile(name)
	if openErr != nil {
		return err
	}
	defer f.Close()
	flags, _ := f.Flags()
	if flags&(fsmeta.FlagImmutable|fsmeta.FlagAppend) == 0 {
		return err
	}
	return fmt.Errorf("%w; the existing file has inode flags %s, take them away with chattr first", err, fsmeta.FlagNames(flags))
}

// applier sets metadata and reports what cannot be set under the path of the file at hand.
type applier struct {
	j    *job
	path string
	meta fsmeta.Applier
}

func newApplier(j *job) *applier {
	a := &applier{j: j}
	a.meta.Report = func(code string, err error) { j.rep.Warn(code, a.path, err) }
	return a
}

func (a *applier) dress(path string, h fsmeta.Handle, e *recipe.Entry, made fsmeta.Made) {
	a.path = path
	a.meta.Apply(h, e, made)
}

func (a *applier) flags(path string, h fsmeta.Handle, e *recipe.Entry, made fsmeta.Made) {
	a.path = path
	a.meta.Flags(h, e, made)
}
