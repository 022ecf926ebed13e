package exports

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"coffer/appliance/internal/durable"
	"coffer/dedup"
	"coffer/dedup/vfs"
	"coffer/nbd/savesetdev"
)

const (
	recordName    = "export.json"
	recordVersion = 1
	maxRecord     = 1 << 20
	idDigits      = 12

	// Anybody is the name that stands for every peer in the list of those who may see an export.
	Anybody = "*"
	// maxAllowed bounds that list.
	maxAllowed = 1000
)

// record is what export.json says. Part of the format.
type record struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	Saveset dedup.SavesetID `json:"saveset"`
	Disk    string          `json:"disk"`
	Size    int64           `json:"size"`
	Client  string          `json:"client"`
	Task    string          `json:"task"`
	Overlay bool            `json:"overlay,omitempty"`
	Limit   int64           `json:"limit,omitempty"`
	Allow   []string        `json:"allow,omitempty"`
	Purpose string          `json:"purpose,omitempty"`
	Machine string          `json:"machine,omitempty"`
	Created time.Time       `json:"created"`
	By      string          `json:"by,omitempty"`
}

// wireName is the name by which clients ask for the export.
func (r *record) wireName() string {
	if r.Overlay {
		return r.ID
	}
	return r.Saveset.String() + "/" + r.Disk
}

func (r *record) check() error {
	disk, err := savesetdev.Clean(r.Disk)
	switch {
	case !validID(r.ID):
		return fmt.Errorf("id %q", r.ID)
	case r.Saveset.IsZero():
		return errors.New("no saveset")
	case err != nil || disk != r.Disk:
		return fmt.Errorf("disk %q", r.Disk)
	case r.Size <= 0 || r.Limit < 0:
		return fmt.Errorf("size %d, limit %d", r.Size, r.Limit)
	case len(r.Allow) > maxAllowed:
		return fmt.Errorf("%d names", len(r.Allow))
	}
	return nil
}

func validID(id string) bool {
	return len(id) == idDigits && strings.Trim(id, "0123456789abcdef") == ""
}

func (r *record) encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	return append(b, '\n'), err
}

func decodeRecord(b []byte) (r record, err error) {
	if err := durable.DecodeRecord(b, recordVersion, &r); err != nil {
		return r, err
	}
	return r, r.check()
}

func readRecord(fsys vfs.FS, name string) (r record, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return r, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = errors.New("too long")
	}
	if err != nil {
		return r, err
	}
	return decodeRecord(b)
}
