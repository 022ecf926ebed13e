package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/fsmeta"
	"coffer/appliance/agent/scan"
	"coffer/dedup/recipe"
	"coffer/images"
)

// Files that the task names as disk images are kept as what a machine sees of them: an image of another format than raw as
// NAME.raw. Which format that is a file's name says, never its bytes, for whoever runs in the machine writes those.

// named is an entry of a directory under the name that it has in the saveset.
type named struct {
	*scan.Entry
	as    string
	image bool
}

// rawSuffix is what the name of a disk has more than that of an image that is not raw.
const rawSuffix = ".raw"

// imagesIn returns the entries of a directory in the order of their names in the saveset; nil where no name changes and
// nothing is an image.
func (p *planner) imagesIn(d *scan.Dir) []named {
	if p.images.Empty() {
		return nil
	}
	var out []named
	renamed := false
	for i := range d.Entries {
		e := &d.Entries[i]
		if !e.Stat.IsRegular() || !d.Match(p.images, e) {
			continue
		}
		p.imageMet = true
		if out == nil {
			out = plainNames(d)
		}
		out[i].image = p.imageName(d, &out[i])
		renamed = renamed || out[i].as != e.Name
	}
	if renamed {
		slices.SortFunc(out, func(a, b named) int { return strings.Compare(a.as, b.as) })
	}
	return out
}

// missedImages warns who asked for disk images and has none: most likely a pattern is wrong.
func (p *planner) missedImages() {
	if !p.images.Empty() && !p.imageMet {
		p.rep.Warn(codeNoImage, "", fmt.Errorf("no file matches the task's patterns for disk images (%s): correct them, or take them out of the task",
			strings.Join(p.opts.Order.Images, ", ")))
	}
}

func plainNames(d *scan.Dir) []named {
	out := make([]named, len(d.Entries))
	for i := range d.Entries {
		out[i] = named{&d.Entries[i], d.Entries[i].Name, false}
	}
	return out
}

// imageName gives an image its name in the saveset. One that cannot be read as a disk, or whose name is taken, stays the file
// that it is.
func (p *planner) imageName(d *scan.Dir, e *named) bool {
	format := images.FormatOf(e.Name)
	switch format {
	case images.Raw:
		return true
	case images.Qcow2:
	default:
		p.rep.Warn(codeNoImage, d.PathOf(e.Name), fmt.Errorf("the format %s is not read here: it is stored as a file, not as a disk", format))
		return false
	}
	if err := p.readable(d, e.Entry); errors.Is(err, images.ErrUnsupported) || errors.Is(err, images.ErrMalformed) {
		p.rep.Warn(codeNoImage, d.PathOf(e.Name), fmt.Errorf("%w: it is stored as a file, not as a disk", err))
		return false
	}
	as := e.Name + rawSuffix
	if slices.ContainsFunc(d.Entries, func(o scan.Entry) bool { return o.Name == as }) {
		p.rep.Warn(codeNoImage, d.PathOf(e.Name), fmt.Errorf("there is a file %q already: it is stored as a file, not as a disk", as))
		return false
	}
	if recipe.CheckName(as) == nil { // else it keeps its own
		e.as = as
	}
	return true
}

// readable opens an image and closes it again.
func (p *planner) readable(d *scan.Dir, e *scan.Entry) error {
	f, err := d.File().OpenFile(e.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	disk, err := p.openImage(d.PathOf(e.Name), f, int64(e.Stat.Size))
	if err != nil {
		return err
	}
	return disk.Close()
}

// codeNoImage is the code of the notice about an image that is stored as a file.
const codeNoImage = "no_disk_image"

// sameForm is the part of the skip rule about sizes. That of a file says nothing about the disk in it, unless it is raw.
func sameForm(st *fsmeta.Stat, was *recipe.Entry, image bool) bool {
	if !image {
		return st.Size == was.Size && was.Content.Kind != recipe.ImageTree
	}
	raw := images.FormatOf(strings.TrimSuffix(was.Name, rawSuffix)) == images.Raw
	return (was.Content.Kind == recipe.ImageTree || was.Size == 0) && (!raw || st.Size == was.Size)
}

// oldImage remembers the parent's image of the disk.
func (it *item) oldImage(was *recipe.Entry) {
	if was.Content.Kind == recipe.ImageTree {
		e := *was
		it.old = &e
	}
}

// image captures a file as a disk image. It is read as a whole: chunks that the store has are not sent again.
func (r *reader) image(ctx context.Context, it *item, f fsmeta.File) error {
	var before, after fsmeta.Stat
	if err := f.Stat(&before); err != nil {
		r.lost(it, "look at file", err)
		return nil
	}
	d, err := r.openImage(it.path(), f, int64(before.Size))
	if err != nil {
		r.lost(it, "open disk image", err)
		return nil
	}
	defer d.Close()
	src := &diskSource{Source: disk.FromReaderAt(d, d.Size())}
	e, _, err := disk.Store(ctx, r.opts.Run, src, allocated(ctx, d), disk.Options{Parent: it.old, Key: r.opts.Key, Report: r.rep, Workers: r.opts.Senders + 1})
	var bad errSource
	if errors.As(err, &bad) {
		r.lost(it, "read", bad.error)
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Stat(&after); err != nil {
		r.lost(it, "look at file", err)
		return nil
	}
	if !after.Unchanged(&before) {
		r.changed(it)
	}
	it.e.Content = e.Content
	return r.finish(ctx, it, f, &after, e.Size)
}

func (j *job) openImage(at string, f fsmeta.File, size int64) (images.Disk, error) {
	o := images.Options{Format: images.FormatOf(path.Base(at))}
	if o.Format != images.Raw {
		o.Backing = j.backing(at)
	}
	return images.Open(imageFile{f, size}, o)
}

// backing opens backing files. Whoever wrote the image may name any file of this machine, and would find it in the saveset:
// only files are opened that the task reads anyway.
func (j *job) backing(image string) func(name string, format images.Format) (images.Source, images.Format, error) {
	dir := filepath.Dir(image)
	return func(name string, format images.Format) (images.Source, images.Format, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil, "", err
		}
		if !j.isSource(real) {
			return nil, "", fmt.Errorf("the backing file %s lies outside of the task's sources: %w", real, images.ErrUnsupported)
		}
		f, err := images.OpenFile(real)
		if err != nil {
			return nil, "", err
		}
		if format == "" {
			format = images.FormatOf(real)
		}
		dir = filepath.Dir(name)
		return f, format, nil
	}
}

// isSource reports whether a path lies in what the task reads.
func (j *job) isSource(p string) bool {
	p = filepath.ToSlash(p)
	for _, s := range j.sources {
		if real, err := filepath.EvalSymlinks(s); err == nil {
			s = filepath.ToSlash(real)
		}
		if s = path.Clean(s); p == s || strings.HasPrefix(p, strings.TrimSuffix(s, "/")+"/") {
			return true
		}
	}
	return false
}

// imageFile is an images.Source over a file of the scanner's.
type imageFile struct {
	fsmeta.File
	size int64
}

var _ images.Mapper = imageFile{}

// Size implements images.Source.
func (f imageFile) Size() int64 { return f.size }

// Extents implements images.Mapper.
func (f imageFile) Extents(off, n int64, yield func(n int64, hole bool) bool) error {
	for end := off + n; off < end; {
		from, to, err := f.NextData(off, end)
		if err == io.EOF {
			from, to = end, end
		} else if err != nil {
			return err
		}
		if from > off && !yield(from-off, true) || to > from && !yield(to-from, false) {
			return nil
		}
		off = to
	}
	return nil
}

// errSource marks errors of what is read, which are not the run's.
type errSource struct{ error }

func (e errSource) Unwrap() error { return e.error }

// diskSource tells the source's errors from the run's.
type diskSource struct{ disk.Source }

// ReadAt implements disk.Source.
func (d *diskSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := d.Source.ReadAt(ctx, p, off)
	if err != nil && ctx.Err() == nil {
		return errSource{err}
	}
	return err
}

// mapBytes is how much of a disk is asked for at a time where its holes lie.
const mapBytes = 1 << 30

// allocated are all parts of a disk, holes as zeros.
func allocated(ctx context.Context, d images.Disk) disk.Changes {
	return func(yield func(disk.Range) bool) error {
		for at, size := int64(0), d.Size(); at < size; {
			end := min(at+mapBytes, size)
			more := true
			err := d.Extents(at, end-at, func(n int64, hole bool) bool {
				more = yield(disk.Range{Off: at, N: n, Zero: hole})
				at += n
				return more
			})
			switch {
			case err != nil:
				return errSource{err}
			case !more || ctx.Err() != nil:
				return ctx.Err()
			case at < end:
				return errSource{io.ErrUnexpectedEOF}
			}
		}
		return nil
	}
}
