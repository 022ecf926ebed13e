package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"coffer/dedup/vfs"
)

// Names that Dir keeps for itself in its root; no blob's name begins with a dot.
const (
	tempDir  = ".tmp"
	lockName = ".lock"
)

// copyBuffer is how much of a blob Put writes at once.
const copyBuffer = 1 << 20

// Dir is a Store in a directory: the blob a/b/c is the file root/a/b/c. A blob is written in a directory for temporary
// files, synced, renamed to its place, and its directory is synced. It also is an Adopter, a FreeSpacer, a Locker
// and a Settler.
type Dir struct {
	fs    vfs.FS
	root  string
	temps atomic.Uint64
	files *fileCache
	// removals are synced at once; what could not be is remembered.
	removals *removals

	mu      sync.Mutex      // guards durable
	durable map[string]bool // directories that this process synced into their parents
}

var (
	_ Store      = (*Dir)(nil)
	_ Adopter    = (*Dir)(nil)
	_ Prefetcher = (*Dir)(nil)
	_ FreeSpacer = (*Dir)(nil)
	_ Locker     = (*Dir)(nil)
	_ Settler    = (*Dir)(nil)
)

// OpenDir opens the directory root of fsys as a Store and makes it if it is missing. It takes no lock and touches no
// blob; Lock must be held by whoever writes.
func OpenDir(fsys vfs.FS, root string) (*Dir, error) {
	d := &Dir{fs: fsys, root: filepath.Clean(root), durable: map[string]bool{}, removals: newRemovals()}
	d.files = newFileCache(fsys, maxOpenFiles)
	if err := vfs.MkdirAllSync(fsys, filepath.Join(d.root, tempDir)); err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	return d, nil
}

// Close closes the files that Dir keeps open for reading. The Dir can still be used.
func (d *Dir) Close() error {
	d.files.purge()
	return nil
}

// Lock implements Locker.
func (d *Dir) Lock(ctx context.Context, owner string) (io.Closer, error) {
	name := filepath.Join(d.root, lockName)
	l, err := d.fs.Lock(name)
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("lock %s: %w: %s", d.root, ErrLocked, d.lockOwner(name))
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", d.root, err)
	}
	err = d.writeOwner(name, owner)
	if err == nil {
		err = d.clearTemps(ctx)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("lock %s: %w", d.root, err)
	}
	return l, nil
}

// maxOwner bounds the line in the lock file.
const maxOwner = 256

// writeOwner notes the holder in the lock file. The line helps a human, nothing depends on it; it is not synced.
func (d *Dir) writeOwner(name, owner string) error {
	f, err := d.fs.OpenReadWrite(name)
	if err != nil {
		return err
	}
	owner = owner[:min(len(owner), maxOwner)]
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(owner), 0)
	}
	if vfs.IsNoSpace(err) {
		err = nil // a full disk must not keep a store from being read
	}
	return errors.Join(err, f.Close())
}

func (d *Dir) lockOwner(name string) string {
	f, err := d.fs.Open(name)
	if err != nil {
		return "unknown holder"
	}
	defer f.Close()
	p := make([]byte, maxOwner)
	n, _ := io.ReadFull(f, p)
	if n == 0 {
		return "unknown holder"
	}
	return strings.ToValidUTF8(string(p[:n]), "?")
}

// clearTemps removes what Puts that died left behind. The caller holds the writer's lock.
func (d *Dir) clearTemps(ctx context.Context) error {
	dir := filepath.Join(d.root, tempDir)
	names, err := d.fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.fs.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *Dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// Put implements Store.
func (d *Dir) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := d.checkNew(name); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	tmp := filepath.Join(d.root, tempDir, strconv.FormatUint(d.temps.Add(1), 16))
	err := d.writeTemp(ctx, tmp, r, size)
	if err == nil {
		err = d.publish(tmp, name)
	}
	if err != nil {
		_ = d.fs.Remove(tmp)
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// checkNew saves the writing of a blob whose name is taken; publish has the last word.
func (d *Dir) checkNew(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if _, err := d.fs.Stat(d.path(name)); err == nil {
		return ErrExists
	}
	return nil
}

func (d *Dir) writeTemp(ctx context.Context, tmp string, r io.Reader, size int64) error {
	f, err := d.createTemp(tmp)
	if err != nil {
		return err
	}
	err = copyExactly(ctx, f, r, size)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// createTemp makes a temporary file in place of one that a dead writer may have left under the same name.
func (d *Dir) createTemp(tmp string) (vfs.File, error) {
	f, err := d.fs.Create(tmp)
	if !errors.Is(err, fs.ErrExist) {
		return f, err
	}
	if err := d.fs.Remove(tmp); err != nil {
		return nil, err
	}
	return d.fs.Create(tmp)
}

// copyExactly copies size bytes and sees that r ends there.
func copyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64) error {
	buf := make([]byte, max(1, min(size, copyBuffer)))
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, p); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("source ends %d bytes early: %w", left, err)
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	if n, err := io.ReadFull(r, buf[:1]); n > 0 {
		return fmt.Errorf("source is longer than the %d bytes announced", size)
	} else if err != io.EOF {
		return err
	}
	return nil
}

// publish gives a synced file its final name. After a failed sync of the directory nobody knows whether the name would
// outlive a crash, so the blob is taken back.
func (d *Dir) publish(tmp, name string) error {
	final := d.path(name)
	if err := d.makeDurable(filepath.Dir(final)); err != nil {
		return err
	}
	if err := d.fs.RenameNew(tmp, final); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return ErrExists
		}
		return err
	}
	if err := d.syncDir(filepath.Dir(final)); err != nil {
		_ = d.fs.Remove(final)
		d.removals.note(filepath.Dir(final))
		return err
	}
	return nil
}

// makeDurable makes a directory and sees to it, once in this process, that each part of the path is synced into its
// parent.
func (d *Dir) makeDurable(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.makeDurableLocked(dir)
}

func (d *Dir) makeDurableLocked(dir string) error {
	if dir == d.root || d.durable[dir] {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := d.makeDurableLocked(parent); err != nil {
		return err
	}
	if err := d.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.fs.SyncDir(parent); err != nil {
		return err
	}
	d.durable[dir] = true
	return nil
}

// Adopt implements Adopter. A spool in another file system is copied.
func (d *Dir) Adopt(ctx context.Context, name, spoolPath string) error {
	if err := d.checkNew(name); err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	err := d.publish(spoolPath, name)
	if vfs.IsCrossDevice(err) {
		return d.adoptCopy(ctx, name, spoolPath)
	}
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	return nil
}

func (d *Dir) adoptCopy(ctx context.Context, name, spoolPath string) error {
	f, err := d.fs.Open(spoolPath)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	if err := d.Put(ctx, name, f, size); err != nil {
		return err
	}
	// The blob is whole and durable: a spool file that stays is the spool's to clear.
	_ = d.fs.Remove(spoolPath)
	return nil
}

// ReadRange implements Store.
func (d *Dir) ReadRange(ctx context.Context, name string, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	f, err := d.open(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer f.release()
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p) && (len(p) > 0 || err == nil):
		return nil
	case err == io.EOF || err == nil:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at %d: %w", name, off, err)
}

// Prefetch implements Prefetcher.
func (d *Dir) Prefetch(name string, off, n int64) {
	f, err := d.open(name)
	if err != nil {
		return // the reader meets the error himself
	}
	defer f.release()
	if p, ok := f.File.(vfs.Prefetcher); ok {
		p.Prefetch(off, n)
	}
}

func (d *Dir) open(name string) (*cachedFile, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	f, err := d.files.open(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotExist
	}
	return f, err
}

// Size implements Store.
func (d *Dir) Size(ctx context.Context, name string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("size of %s: %w", name, err)
	}
	if err := CheckName(name); err != nil {
		return 0, err
	}
	st, err := d.fs.Stat(d.path(name))
	if errors.Is(err, fs.ErrNotExist) || (err == nil && st.IsDir()) {
		err = ErrNotExist
	}
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", name, err)
	}
	return st.Size(), nil
}

// Delete implements Store. Directories that become empty stay.
func (d *Dir) Delete(ctx context.Context, name string) error {
	if _, err := d.Size(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", d.goneForGood(name, err))
	}
	path := d.path(name)
	d.files.drop(path)
	err := d.fs.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = d.goneForGood(name, ErrNotExist)
	}
	if err == nil {
		d.removals.note(filepath.Dir(path))
		err = d.syncDir(filepath.Dir(path))
	}
	d.files.drop(path) // a reader may have opened it again meanwhile
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// goneForGood returns ErrNotExist, where err is that, only when the blob cannot come back: its removal may have failed after
// the file was gone.
func (d *Dir) goneForGood(name string, err error) error {
	if !errors.Is(err, ErrNotExist) {
		return err
	}
	if lost := d.settle(filepath.Dir(d.path(name))); lost != nil {
		return lost
	}
	return err
}

// FreeSpace implements FreeSpacer.
func (d *Dir) FreeSpace(context.Context) (int64, error) { return d.fs.Free(d.root) }
