package vm

import (
	"encoding/json"
	"fmt"
	"time"

	"coffer/images/libvirt"
)

// Names in a saveset's root. Part of the format.
const (
	DocumentName  = "backup.json"
	DomainXMLName = "domain.xml"
	NVRAMName     = "nvram"
	TPMName       = "tpm"
	// DiskSuffix follows a disk's target.
	DiskSuffix = ".raw"
)

// DocumentVersion is the version of Document that is written; a higher one is refused.
const DocumentVersion = 1

// Document is backup.json: how a saveset of a machine was made. Part of the format; fields are only added within a version.
type Document struct {
	Version int       `json:"version"`
	Began   time.Time `json:"began"` // when the disks were as they are here
	URI     string    `json:"uri"`   // of the libvirtd

	UUID       string `json:"uuid"`
	Name       string `json:"name"`
	State      string `json:"state"` // as virsh domstate has it
	Persistent bool   `json:"persistent"`

	// Level is what was done: FULL, DIFF, INCR, COPY. Reason is cbt_invalid where a FULL was not what was asked for.
	Level  string `json:"level"`
	Reason string `json:"reason,omitempty"`
	// Checkpoint was made for later runs, Reference is the one that changes were read since; empty where there is none.
	Checkpoint string `json:"checkpoint,omitempty"`
	Reference  string `json:"reference,omitempty"`

	Quiesce  Quiesce        `json:"quiesce"`
	Disks    []SavedDisk    `json:"disks"`
	Excluded []ExcludedDisk `json:"excluded,omitempty"`
	NVRAM    string         `json:"nvram,omitempty"` // where it lay on the host; empty: none was saved
	TPM      string         `json:"tpm,omitempty"`   // likewise
}

// Quiesce is in what state the guest was.
type Quiesce struct {
	State       libvirt.QuiesceState `json:"state"`
	FileSystems int                  `json:"file_systems,omitempty"` // that were frozen
	Error       string               `json:"error,omitempty"`
}

// SavedDisk is a disk of the saveset.
type SavedDisk struct {
	Target   string `json:"target"`
	File     string `json:"file"` // in the saveset's root
	Capacity int64  `json:"capacity"`
	// Format, Source and Path are those of the original: qcow2, file, /var/lib/libvirt/images/….
	Format string `json:"format"`
	Source string `json:"source"`
	Path   string `json:"path,omitempty"`
	// Incremental says that only what had changed was read; Read is how many bytes.
	Incremental bool   `json:"incremental"`
	Read        uint64 `json:"read"`
	// Dirty is how many bytes were told to have changed, zeros included; of a disk that is not Incremental: allocated.
	Dirty uint64 `json:"dirty"`
}

// ExcludedDisk is a disk of the machine that is not in the saveset.
type ExcludedDisk struct {
	Target string `json:"target"`
	Why    string `json:"why"`
}

func (d *Document) encode() ([]byte, error) {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", DocumentName, err)
	}
	return append(b, '\n'), nil
}

// ParseDocument reads backup.json. It checks what a reader builds paths of.
func ParseDocument(b []byte) (*Document, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("read %s: %w", DocumentName, err)
	}
	if d.Version < 1 || d.Version > DocumentVersion {
		return nil, fmt.Errorf("read %s: version %d is not known, up to %d is: update this program", DocumentName, d.Version, DocumentVersion)
	}
	for _, disk := range d.Disks {
		if disk.File != disk.Target+DiskSuffix || disk.Capacity < 0 {
			return nil, fmt.Errorf("read %s: disk %q in the file %q", DocumentName, disk.Target, disk.File)
		}
	}
	return &d, nil
}
