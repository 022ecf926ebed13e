package vm

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"coffer/dedup/recipe"
	"coffer/images/libvirt"
)

// beside stores what lies beside the disks, and makes the root of all.
func (j *backing) beside(ctx context.Context) (recipe.Ref, error) {
	text, err := j.host.XML(ctx, j.d)
	if err != nil {
		return recipe.Ref{}, err
	}
	if err := j.add(ctx, DomainXMLName, []byte(text)); err != nil {
		return recipe.Ref{}, err
	}
	if err := j.nvram(ctx); err != nil {
		return recipe.Ref{}, err
	}
	if err := j.tpm(ctx); err != nil {
		return recipe.Ref{}, err
	}
	doc, err := j.doc.encode()
	if err == nil {
		err = j.add(ctx, DocumentName, doc)
	}
	if err != nil {
		return recipe.Ref{}, err
	}
	return j.tree.dir(ctx, j.entries)
}

func (j *backing) add(ctx context.Context, name string, data []byte) error {
	n, err := j.tree.file(ctx, name, data, j.doc.Began)
	if err == nil {
		j.entries = append(j.entries, n)
	}
	return err
}

// nvram saves the variables of the firmware; where they cannot be read that is a warning.
func (j *backing) nvram(ctx context.Context) error {
	if j.d.NVRAM == "" {
		return nil
	}
	data, err := libvirt.ReadFile(ctx, j.host.Files(), j.d.NVRAM)
	if errors.Is(err, fs.ErrNotExist) && !j.d.Active() {
		return nil // the first start makes it
	}
	if err != nil {
		return j.unreached(ctx, "nvram_not_saved", j.d.NVRAM, err)
	}
	j.doc.NVRAM = j.d.NVRAM
	return j.add(ctx, NVRAMName, data)
}

// unreached warns of something beside the disks that cannot be read.
func (j *backing) unreached(ctx context.Context, code, name string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	j.rep.Warn(code, name, err)
	return nil
}

// tpm saves the state of an emulated TPM.
func (j *backing) tpm(ctx context.Context) error {
	if j.d.TPM == "" {
		return nil
	}
	entries, err := j.folder(ctx, j.d.TPM, maxTPMDepth)
	if errors.Is(err, fs.ErrNotExist) && !j.d.Active() {
		return nil // the first start makes it
	}
	var lost errStore
	if errors.As(err, &lost) {
		return lost.error
	}
	if err != nil {
		return j.unreached(ctx, "tpm_not_saved", j.d.TPM, err)
	}
	n, err := j.tree.folder(ctx, TPMName, entries, j.doc.Began)
	if err != nil {
		return err
	}
	j.doc.TPM = j.d.TPM
	j.entries = append(j.entries, n)
	return nil
}

// maxTPMDepth bounds the directories of a TPM's state: swtpm makes one, for the version.
const maxTPMDepth = 3

// errStore is a failure to store, as opposed to one to read.
type errStore struct{ error }

// folder stores a directory of the host with all regular files in it.
func (j *backing) folder(ctx context.Context, dir string, depth int) ([]named, error) {
	list, err := j.host.Files().ReadDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	var out []named
	for _, info := range list {
		name := path.Join(dir, info.Name())
		var n named
		switch {
		case recipe.CheckName(info.Name()) != nil:
			continue
		case info.IsDir() && depth > 1:
			below, err := j.folder(ctx, name, depth-1)
			if err != nil {
				return nil, err
			}
			if n, err = j.tree.folder(ctx, info.Name(), below, info.ModTime()); err != nil {
				return nil, errStore{err}
			}
		case info.Mode().IsRegular():
			data, err := libvirt.ReadFile(ctx, j.host.Files(), name)
			if err != nil {
				return nil, err
			}
			if n, err = j.tree.file(ctx, info.Name(), data, info.ModTime()); err != nil {
				return nil, errStore{err}
			}
		default:
			continue
		}
		out = append(out, n)
	}
	return out, nil
}
