package libvirt

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// TPMFile is a file of the state of an emulated TPM: Path is below the machine's directory, as in tpm2/tpm2-00.permall.
type TPMFile struct {
	Path string
	Data []byte
}

// maxTPMDepth bounds the directories of a TPM's state: swtpm makes one, for the version.
const maxTPMDepth = 3

// check refuses what would be written elsewhere than below the machine's directory.
func (f TPMFile) check() error {
	if f.Path == "" || path.Clean("/"+f.Path) != "/"+f.Path || strings.Count(f.Path, "/") >= maxTPMDepth || strings.ContainsAny(f.Path, "\x00\n") {
		return failf(KindInvalid, "place the state of a TPM", "%q cannot be the name of a file of it", f.Path)
	}
	return nil
}

// HasTPM tells whether a definition has an emulated TPM, whose state is with the host.
func HasTPM(xml string) (bool, error) {
	var x libvirtxml.Domain
	if err := x.Unmarshal(xml); err != nil {
		return false, failf(KindInvalid, "read the definition of the saved machine", "%w", err)
	}
	if x.Devices == nil {
		return false, nil
	}
	for _, t := range x.Devices.TPMs {
		if t.Backend != nil && t.Backend.Emulator != nil {
			return true, nil
		}
	}
	return false, nil
}

// TPMs places the states of emulated TPMs where libvirt looks for them when it starts a machine. While one is placed and its
// machine is not there yet, a file in it bears an owner's name: by that Sweep finds what was cut off. libvirt gives the files
// to swtpm's user at each start (qemu_tpm.c), and it removes the state with the machine.
type TPMs struct {
	files Files
	place Placer
	dir   string
}

// TPMs of the host.
func (c *Conn) TPMs() TPMs { return TPMs{c.files, c.placer, tpmDir} }

const (
	tpmMark  = ".coffer-"
	tpmAside = "-replaced-by-"
)

func (t TPMs) folder(uuid string) string      { return path.Join(t.dir, uuid) }
func (t TPMs) mark(uuid, owner string) string { return path.Join(t.folder(uuid), tpmMark+owner) }

// Place writes the state of a machine's TPM. KindBusy where there is one of that machine already.
func (t TPMs) Place(ctx context.Context, uuid, owner string, files []TPMFile) (err error) {
	op := "place the state of the TPM of " + uuid
	for _, f := range files {
		if err := f.check(); err != nil {
			return err
		}
	}
	dir := t.folder(uuid)
	if _, err := t.files.Stat(ctx, dir); err == nil {
		return failf(KindBusy, op, "the host has one in %s, of a machine that was there with this identity: remove it, or give the new machine a new identity", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return failure(op, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(failure(op, err), t.Remove(context.WithoutCancel(ctx), uuid))
		}
	}()
	for _, d := range []string{t.dir, dir} {
		if _, err := t.files.Stat(ctx, d); err == nil {
			continue
		}
		if err := t.place.MakeDir(ctx, d, 0o711, nil); err != nil {
			return err
		}
	}
	if err := t.place.WriteFile(ctx, t.mark(uuid, owner), nil, 0o600, nil); err != nil {
		return err
	}
	for _, f := range files {
		for i, c := range f.Path {
			if c != '/' {
				continue
			}
			if err := t.place.MakeDir(ctx, path.Join(dir, f.Path[:i]), 0o700, nil); err != nil {
				return err
			}
		}
		if err := t.place.WriteFile(ctx, path.Join(dir, f.Path), f.Data, 0o600, nil); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the state of a machine's TPM. None is no error.
func (t TPMs) Remove(ctx context.Context, uuid string) error {
	return failure("remove the state of the TPM of "+uuid, removeDir(ctx, t.files, t.folder(uuid), maxTPMDepth))
}

// Settle makes a placed state the machine's: Sweep leaves it alone from then on.
func (t TPMs) Settle(ctx context.Context, uuid, owner string) error {
	err := t.files.Remove(ctx, t.mark(uuid, owner))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return failure("settle the state of the TPM of "+uuid, err)
}

// SetAside makes room for the state of a machine's TPM. None is no error.
func (t TPMs) SetAside(ctx context.Context, uuid, owner string) error {
	if _, err := t.files.Stat(ctx, t.folder(uuid)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return failure("set the state of the TPM of "+uuid+" aside", t.place.Rename(ctx, t.folder(uuid), t.folder(uuid)+tpmAside+owner))
}

// Sweep removes states that were placed for an owner and not settled, and puts back what was set aside for them.
func (t TPMs) Sweep(ctx context.Context, owner string) error {
	list, err := t.files.ReadDir(ctx, t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failure("look for states of TPMs", err)
	}
	var faults []error
	for _, info := range list {
		if _, err := t.files.Stat(ctx, t.mark(info.Name(), owner)); err == nil {
			faults = append(faults, t.Remove(ctx, info.Name()))
		}
	}
	for _, info := range list {
		if uuid, ok := strings.CutSuffix(info.Name(), tpmAside+owner); ok {
			faults = append(faults, failure("put the state of the TPM of "+uuid+" back", t.place.Rename(ctx, path.Join(t.dir, info.Name()), t.folder(uuid))))
		}
	}
	return errors.Join(faults...)
}
