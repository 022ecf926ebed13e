package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"coffer/appliance/exports"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/recipe"
)

// Names in the root of a saveset of a machine (appliance/agent/vm). Part of that format.
const (
	documentName    = "backup.json"
	definitionName  = "domain.xml"
	nvramName       = "nvram"
	diskSuffix      = ".raw"
	documentVersion = 1
	maxDefinition   = 4 << 20
	maxNVRAM        = 64 << 20
	tpmName         = "tpm"
	maxTPM          = 128 << 10 // bytes of a TPM's state: swtpm has some 10 KiB
	maxTPMFiles     = 64
	maxTPMDepth     = 3
)

// saved is what a saveset says of its machine.
type saved struct {
	client, task, name, uuid string
	xml                      string
	nvram                    []byte
	tpm                      []sms.MachineFile
	disks                    []savedDisk
}

type savedDisk struct{ target, file string }

// savedDocument is what is read of backup.json.
type savedDocument struct {
	Version int    `json:"version"`
	UUID    string `json:"uuid"`
	Name    string `json:"name"`
	Disks   []struct {
		Target string `json:"target"`
		File   string `json:"file"`
	} `json:"disks"`
	NVRAM string `json:"nvram"`
	TPM   string `json:"tpm"`
}

// read reads the machine of a saveset. Kind Invalid where it has none.
func (m *Manager) read(ctx context.Context, id dedup.SavesetID) (_ *saved, err error) {
	view, err := m.o.View(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	if _, err := view.Key(); err != nil {
		return nil, err
	}
	mf := view.Manifest()
	doc, err := readFile(ctx, view, documentName, maxDefinition)
	if err != nil {
		return nil, noMachine(id, err)
	}
	var d savedDocument
	if err := json.Unmarshal(doc, &d); err != nil {
		return nil, noMachine(id, fmt.Errorf("read %s: %w", documentName, err))
	}
	if d.Version < 1 || d.Version > documentVersion {
		return nil, failf(Invalid, nil, "%s of saveset %s has version %d: this program knows up to %d", documentName, id, d.Version, documentVersion)
	}
	xml, err := readFile(ctx, view, definitionName, maxDefinition)
	if err != nil {
		return nil, noMachine(id, err)
	}
	s := &saved{client: mf.Client, task: mf.Task, name: d.Name, uuid: d.UUID, xml: string(xml)}
	for _, disk := range d.Disks {
		if disk.Target == "" || strings.ContainsAny(disk.Target, "/\x00") || disk.File != disk.Target+diskSuffix {
			return nil, noMachine(id, fmt.Errorf("disk %q in the file %q", disk.Target, disk.File))
		}
		s.disks = append(s.disks, savedDisk{disk.Target, disk.File})
	}
	if len(s.disks) == 0 || len(s.disks) > maxDisks {
		return nil, failf(Invalid, nil, "the machine of saveset %s has %d disks there", id, len(s.disks))
	}
	if d.NVRAM != "" {
		if s.nvram, err = readFile(ctx, view, nvramName, maxNVRAM); err != nil {
			return nil, noMachine(id, err)
		}
	}
	if d.TPM != "" {
		root, _, err := recipe.Lookup(ctx, view, mf.Root.Digest, tpmName)
		if err == nil {
			err = s.readTPM(ctx, view, root, "", maxTPMDepth)
		}
		if err != nil {
			return nil, noMachine(id, fmt.Errorf("read the state of its TPM: %w", err))
		}
	}
	return s, nil
}

// readTPM reads the files of a TPM's state below a directory.
func (s *saved) readTPM(ctx context.Context, view exports.Reading, dir recipe.Entry, above string, depth int) error {
	if !dir.IsDir() || depth == 0 {
		return fmt.Errorf("%s is no directory, or too deep", tpmName+"/"+above)
	}
	if dir.Content.Digest.IsZero() { // empty
		return nil
	}
	for it := recipe.NewDirIter(view, dir.Content.Digest); ; {
		e, _, err := it.Next(ctx)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case e.IsDir():
			if err := s.readTPM(ctx, view, e, above+e.Name+"/", depth-1); err != nil {
				return err
			}
			continue
		}
		b, err := readEntry(ctx, view, e, maxTPM)
		if err != nil {
			return err
		}
		s.tpm = append(s.tpm, sms.MachineFile{Path: above + e.Name, Data: b})
		if size := tpmSize(s.tpm); len(s.tpm) > maxTPMFiles || size > maxTPM {
			return fmt.Errorf("it has %d files of %d bytes: %d of %d are the most", len(s.tpm), size, maxTPMFiles, maxTPM)
		}
	}
}

func tpmSize(files []sms.MachineFile) (n int) {
	for _, f := range files {
		n += len(f.Data)
	}
	return n
}

// noMachine tells a saveset that is of no machine from one that cannot be read.
func noMachine(id dedup.SavesetID, err error) error {
	if errors.Is(err, recipe.ErrNotFound) {
		return failf(Invalid, nil, "saveset %s is of no virtual machine: it has no %s and %s", id, definitionName, documentName)
	}
	return failf(Other, err, "read the machine of saveset %s", id)
}

// readFile reads a file in the root of a saveset.
func readFile(ctx context.Context, view exports.Reading, name string, limit uint64) ([]byte, error) {
	root := view.Manifest().Root.Digest
	if root.IsZero() {
		return nil, recipe.ErrNotFound
	}
	e, _, err := recipe.Lookup(ctx, view, root, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return readEntry(ctx, view, e, limit)
}

func readEntry(ctx context.Context, view exports.Reading, e recipe.Entry, limit uint64) ([]byte, error) {
	name := e.Name
	if e.Size > limit {
		return nil, fmt.Errorf("read %s: it has %d bytes, at most %d are taken", name, e.Size, limit)
	}
	f, err := dedup.OpenFile(view, e)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	b := make([]byte, e.Size)
	if err := f.ReadAt(ctx, b, 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}
