package vm

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

// nvramDir is where libvirt keeps the variables of firmwares: QEMU may read and write there.
const nvramDir = "/var/lib/libvirt/qemu/nvram"

func nvramPath(id string) string { return nvramDir + "/coffer-" + id + "_VARS.fd" }

// maxNVRAM bounds variables that come packed.
const maxNVRAM = 64 << 20

// variables are the saved variables of the firmware; nil: there are none.
func variables(d *sms.MachineDefinition) ([]byte, error) {
	if len(d.NVRAMGzip) == 0 {
		return d.NVRAM, nil
	}
	b, err := unpack(d.NVRAMGzip, maxNVRAM)
	if err != nil {
		return nil, fmt.Errorf("unpack the firmware's variables: %w", err)
	}
	return b, nil
}

// unpack reads gzip. It fails where more than most bytes come out.
func unpack(packed []byte, most int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("there are more than %d bytes", most)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// place puts on the host what a machine needs beside its disks, in files of its own, and returns its definition and UUID. What
// it cannot have is told in lost. unplace takes all of it back.
func (m *machine) place(ctx context.Context, c *libvirt.Conn, d *sms.MachineDefinition, def libvirt.Machine) (xml, uuid string, lost []string, err error) {
	nvram, err := variables(d)
	if err != nil {
		return "", "", nil, err
	}
	if len(nvram) > 0 {
		m.nvram = nvramPath(m.id)
		def.NVRAM = m.nvram
		owner, err := qemuUser(ctx, c)
		if err != nil {
			return "", "", nil, err
		}
		if err := c.MakeDirs(ctx, nvramDir, 0o755); err != nil {
			return "", "", nil, err
		}
		if err := c.Placer().WriteFile(ctx, m.nvram, nvram, 0o600, owner); err != nil {
			return "", "", nil, err
		}
	}
	if xml, lost, err = def.Definition(); err != nil {
		return "", "", nil, err
	}
	if _, uuid, err = libvirt.Identity(xml); err != nil {
		return "", "", nil, err
	}
	tpm, err := libvirt.HasTPM(xml)
	switch {
	case err != nil:
		return "", "", nil, err
	case tpm && len(d.TPM) == 0:
		lost = append(lost, "the state of its TPM: it gets an empty one, so have the recovery keys ready of disks that the TPM unlocks (BitLocker, systemd-cryptenroll)")
	case tpm:
		if err := m.placeTPM(ctx, c, uuid, d); err != nil {
			return "", "", nil, err
		}
	}
	return xml, uuid, lost, nil
}

func (m *machine) placeTPM(ctx context.Context, c *libvirt.Conn, uuid string, d *sms.MachineDefinition) error {
	if _, err := c.Domain(ctx, uuid, ""); err == nil {
		if !d.Overwrite {
			return fmt.Errorf("a machine of identity %s is there already: give the new one a new identity", uuid)
		}
		if err := c.TPMs().SetAside(ctx, uuid, m.id); err != nil {
			return err
		}
	} else if libvirt.KindOf(err) != libvirt.KindNoDomain {
		return err
	}
	files := make([]libvirt.TPMFile, len(d.TPM))
	for i, f := range d.TPM {
		files[i] = libvirt.TPMFile{Path: f.Path, Data: f.Data}
	}
	return c.TPMs().Place(ctx, uuid, m.id, files)
}

// unplace takes back what place has put there, and what an agent has put there that was killed.
func (m *machine) unplace(ctx context.Context, c *libvirt.Conn) error {
	err := c.TPMs().Sweep(ctx, m.id)
	if m.nvram != "" {
		if rerr := c.Files().Remove(ctx, m.nvram); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		m.nvram = ""
	}
	return err
}
