package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"coffer/appliance/agent/fsmeta"
	"coffer/dedup/recipe"
)

// different reports what a verifying restore found.
func (j *job) different(path string, err error) {
	j.rep.Different.Add(1)
	j.rep.Warn(codeDifferent, path, err)
}

// verify compares an entry that is no directory with what is there. The directory is open for it.
func (p *planner) verify(ctx context.Context, at *fsmeta.Dir, e recipe.Entry, name string, d *dir) error {
	var st fsmeta.Stat
	err := at.Lstat(name, &st)
	switch {
	case fsmeta.Gone(err):
		p.different(d.pathOf(name), errors.New("it is missing"))
	case err != nil:
		p.different(d.pathOf(name), err)
	case st.Type() != e.Mode&recipe.ModeType:
		p.different(d.pathOf(name), fmt.Errorf("it is %s, the saveset has %s", typeName(st.Mode), typeName(e.Mode)))
	case e.IsRegular():
		f := &file{dir: d, e: e, name: name}
		d.pending.Add(1)
		if err := p.contents(ctx, f); err != nil {
			return err
		}
		p.b.files++
		return p.flushFull(ctx)
	default:
		if e.Mode&recipe.ModeType == recipe.ModeSymlink {
			if target, err := at.Readlink(name); err != nil || target != e.Target {
				p.different(d.pathOf(name), fmt.Errorf("it leads to %q, in the saveset to %q", target, e.Target))
			}
		}
		p.meta.compare(d.pathOf(name), at.Named(name), &e)
	}
	d.close()
	return nil
}

// compare compares metadata and reports every difference as one.
func (a *applier) compare(path string, h fsmeta.Handle, e *recipe.Entry) {
	var st fsmeta.Stat
	if err := h.Stat(&st); err != nil {
		a.j.different(path, err)
		return
	}
	var errs []error
	differ := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	differ(st.Mode != e.Mode, "mode 0%o, in the saveset 0%o", st.Mode, e.Mode)
	differ(st.UID != e.UID || st.GID != e.GID, "owner %d:%d, in the saveset %d:%d", st.UID, st.GID, e.UID, e.GID)
	differ(st.MTime != e.MTime, "modified %s, in the saveset %s", timeText(st.MTime), timeText(e.MTime))
	differ(e.IsRegular() && st.Size != e.Size, "%d bytes, in the saveset %d", st.Size, e.Size)
	differ(st.Rdev != e.Rdev, "device number 0x%x, in the saveset 0x%x", st.Rdev, e.Rdev)
	xattrs, err := h.Xattrs(&a.meta.Scratch)
	differ(err != nil, "%w", err)
	differ(err == nil && !sameXattrs(xattrs, e.Xattrs), "other extended attributes or ACLs than in the saveset")
	flags, err := h.Flags()
	differ(err == nil && flags != e.Flags, "inode flags %q, in the saveset %q", fsmeta.FlagNames(flags), fsmeta.FlagNames(e.Flags))
	if len(errs) > 0 {
		a.j.different(path, errors.Join(errs...))
	}
}

func sameXattrs(a, b []recipe.Xattr) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || !bytes.Equal(a[i].Value, b[i].Value) {
			return false
		}
	}
	return true
}

func timeText(t recipe.Time) string { return fmt.Sprintf("%d.%09d s", t.Sec, t.Nsec) }

func typeName(mode uint32) string {
	switch mode & recipe.ModeType {
	case recipe.ModeRegular:
		return "a file"
	case recipe.ModeDir:
		return "a directory"
	case recipe.ModeSymlink:
		return "a symlink"
	case recipe.ModeBlock, recipe.ModeChar:
		return "a device"
	case recipe.ModeFifo:
		return "a fifo"
	case recipe.ModeSocket:
		return "a socket"
	}
	return fmt.Sprintf("of mode 0%o", mode)
}

// compare compares a chunk with what the file has in its place. Once a file differs, the rest of it is not looked at.
func (w *worker) compare(f *file, p []byte, off int64) {
	if len(w.cmp) < len(p) {
		w.cmp = make([]byte, len(p))
	}
	n, err := f.f.ReadAt(w.cmp[:len(p)], off)
	w.rep.BytesRead.Add(uint64(n))
	if n == len(p) && bytes.Equal(w.cmp[:n], p) {
		return
	}
	if n == len(p) {
		err = fmt.Errorf("its content differs between byte %d and byte %d", off, off+int64(len(p)))
	}
	w.differs(f, err)
}

// differs reports a file once.
func (w *worker) differs(f *file, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.failed {
		f.failed = true
		w.different(f.path(), err)
	}
}

// compareHole looks for data other than zeros where the saveset has none.
func (w *worker) compareHole(f *file, off, end int64) {
	if !w.open(f) {
		return
	}
	for off < end && !f.isFailed() {
		from, to, err := f.f.NextData(off, end)
		if err == io.EOF {
			return
		}
		if err != nil {
			w.differs(f, err)
			return
		}
		for off = from; off < to; {
			n := min(to-off, verifyBytes)
			if !w.zeros(f, off, int(n)) {
				return
			}
			off += n
		}
	}
}

// verifyBytes is how much of a hole is read at a time.
const verifyBytes = 256 << 10

// zeros reports whether a part of a file is all zeros; where not, that was reported.
func (w *worker) zeros(f *file, off int64, n int) bool {
	if len(w.cmp) < n {
		w.cmp = make([]byte, n)
	}
	got, err := f.f.ReadAt(w.cmp[:n], off)
	w.rep.BytesRead.Add(uint64(got))
	if got == n {
		if allZero(w.cmp[:n]) {
			return true
		}
		err = fmt.Errorf("its content differs between byte %d and byte %d: the saveset has a hole there", off, off+int64(n))
	}
	w.differs(f, err)
	return false
}

func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

func (f *file) isFailed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}
