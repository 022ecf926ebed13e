package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/report"
	"coffer/dedup/recipe"
	"coffer/images"
	"coffer/images/libvirt"
)

// offline saves the disks of a machine that is off from their files. No bitmap tells what changed, so that a DIFF or INCR
// becomes a FULL, unless no file of it was written since the reference.
func (j *backing) offline(ctx context.Context) error {
	j.doc.Quiesce = Quiesce{State: libvirt.WasOff}
	for _, d := range j.disks {
		if err := j.offlineDisk(ctx, d); err != nil {
			return &report.Error{Code: codeOr(err, CodeDisk), Err: fmt.Errorf("disk %s of machine %s, which is off: %w", d.Target, j.d.Name, err)}
		}
	}
	// What QEMU wrote meanwhile may be here by half.
	now, err := j.host.Domain(ctx, j.d.UUID, "")
	if err != nil {
		return err
	}
	if now.Active() {
		return report.Errorf(CodeStarted, "machine %s was started while its disks were read", j.d.Name)
	}
	return nil
}

// codeOr is the code that an error has, else another.
func codeOr(err error, other string) string {
	if e, ok := errors.AsType[*report.Error](err); ok {
		return e.Code
	}
	return other
}

// image is a disk that is read from its files.
type image struct {
	images.Disk
	mtime time.Time // of the file that was written last; zero of a device
	chain []string
}

func (j *backing) offlineDisk(ctx context.Context, d libvirt.Disk) error {
	j.rep.Current(d.Target + DiskSuffix)
	img, err := j.openImage(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }() // it was read only
	parent, err := j.parentDisk(ctx, d.Target)
	if err != nil {
		return err
	}
	if parent != nil && j.unwritten(img, parent) {
		e := recipe.Entry{Size: parent.Size, Content: parent.Content}
		if err := j.takeOver(ctx, img, parent, &e); err != nil {
			return err
		}
		j.saved(d, e, img.mtime, SavedDisk{Incremental: true})
		j.rep.Unchanged.Add(1)
		return nil
	}
	j.full(fmt.Errorf("the machine is off, and disk %s was written since the reference: only QEMU tells what changed", d.Target))
	var allocated uint64
	changes := func(yield func(disk.Range) bool) error {
		off := int64(0)
		return img.Extents(0, img.Size(), func(n int64, hole bool) bool {
			at := off
			off += n
			if hole {
				return true
			}
			allocated += uint64(n)
			return yield(disk.Range{Off: at, N: n})
		})
	}
	e, stats, err := disk.Store(ctx, j.Run, imageSource{img}, changes, disk.Options{Key: j.Key, Report: j.rep})
	if err != nil {
		return err
	}
	if err := j.still(ctx, img); err != nil {
		return err
	}
	mtime := img.mtime
	if mtime.IsZero() {
		mtime = j.doc.Began
	}
	j.saved(d, e, mtime, SavedDisk{Read: stats.Read, Dirty: allocated})
	return nil
}

// takeOver takes a disk over from the parent saveset as a whole; its tree gets into the run by that.
func (j *backing) takeOver(ctx context.Context, img *image, parent, e *recipe.Entry) (err error) {
	none := func(func(disk.Range) bool) error { return nil }
	*e, _, err = disk.Store(ctx, j.Run, imageSource{img}, none, disk.Options{Parent: parent, Key: j.Key, Report: j.rep})
	return err
}

// margin is how much older than the parent's run a file must be to be taken over unread; package backup has it, too.
const margin = 2 * time.Second

// unwritten tells whether the image is what the parent saved of a machine that was off then, too: the entry has the time of the
// file in that case, and of a running machine the time of its backup, which no file has.
func (j *backing) unwritten(img *image, parent *recipe.Entry) bool {
	return !img.mtime.IsZero() && parent.MTime == toTime(img.mtime) && parent.Size == uint64(img.Size()) && img.mtime.Before(j.Run.Parent().Started.Add(-margin))
}

// still checks that no file of an image was written while it was read.
func (j *backing) still(ctx context.Context, img *image) error {
	mtime, err := newest(ctx, j.host.Files(), img.chain)
	if err == nil && !mtime.Equal(img.mtime) {
		err = report.Errorf(CodeStarted, "its file was written while it was read")
	}
	return err
}

func newest(ctx context.Context, files libvirt.Files, paths []string) (time.Time, error) {
	var out time.Time
	for _, p := range paths {
		info, err := files.Stat(ctx, p)
		if err != nil {
			return out, err
		}
		if !info.Mode().IsRegular() {
			return time.Time{}, nil // a device has no time that says something
		}
		if info.ModTime().After(out) {
			out = info.ModTime()
		}
	}
	return out, nil
}

// openImage opens a disk of the host, with the files that it lies on.
func (j *backing) openImage(ctx context.Context, d libvirt.Disk) (*image, error) {
	if d.Source != "file" && d.Source != "block" {
		return nil, fmt.Errorf("it lies on storage of type %s, which only QEMU reads: start the machine, or exclude the disk", d.Source)
	}
	img := &image{chain: []string{d.Path}}
	src, err := j.openFile(ctx, d.Path)
	if err != nil {
		return nil, err
	}
	dir := path.Dir(d.Path)
	img.Disk, err = images.Open(src, images.Options{Format: images.Format(d.Format), Backing: func(name string, named images.Format) (images.Source, images.Format, error) {
		if !path.IsAbs(name) {
			name = path.Join(dir, name)
		}
		below, err := j.openFile(ctx, name)
		if err != nil {
			return nil, "", err
		}
		dir = path.Dir(name)
		img.chain = append(img.chain, name)
		if named == "" {
			named = images.FormatOf(name)
		}
		return below, named, nil
	}})
	if err == nil {
		img.Disk = closing{img.Disk, src}
		img.mtime, err = newest(ctx, j.host.Files(), img.chain)
	} else {
		err = errors.Join(err, closeSource(src))
	}
	if err != nil {
		return nil, err
	}
	return img, nil
}

// openFile opens a file of the host; one of this machine with its holes.
func (j *backing) openFile(ctx context.Context, name string) (images.Source, error) {
	if _, here := j.host.Files().(libvirt.Local); here {
		f, err := images.OpenFile(name)
		if err != nil {
			return nil, err // not a nil pointer in an interface
		}
		return f, nil
	}
	f, err := j.host.Files().Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// closing is a disk that closes the source it was opened on.
type closing struct {
	images.Disk
	src images.Source
}

// Close implements images.Disk.
func (c closing) Close() error { return errors.Join(c.Disk.Close(), closeSource(c.src)) }

func closeSource(s images.Source) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// imageSource reads an image as a disk.Source.
type imageSource struct{ *image }

var _ disk.Source = imageSource{}

// ReadAt implements disk.Source.
func (s imageSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	n, err := s.Disk.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
