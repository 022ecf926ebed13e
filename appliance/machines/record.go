package machines

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coffer/appliance/internal/durable"
	"coffer/appliance/sms"
	"coffer/dedup"
)

const (
	recordVersion = 1
	recordSuffix  = ".json"
	maxRecord     = 1 << 20
	idDigits      = 12
	maxDisks      = 256
)

// State of a machine. Part of the API and of the format.
type State string

// States. The last four are ends: while the machine is still listed, what was made for it is being taken back.
const (
	Booting   State = "booting"
	Running   State = "running"
	Stopped   State = "stopped" // it ended on its host; its overlays keep what it wrote
	Moving    State = "moving"
	Restoring State = "restoring"
	Moved     State = "moved"
	Restored  State = "restored"
	Dropped   State = "dropped"
	Failed    State = "failed" // it could not be booted or restored
)

var states = []State{Booting, Running, Stopped, Moving, Restoring, Moved, Restored, Dropped, Failed}

// ending tells whether only taking back is left to do.
func (s State) ending() bool { return s == Moved || s == Restored || s == Dropped || s == Failed }

// Disk is a disk of a machine, and the export that it is.
type Disk struct {
	Target string `json:"target"`
	Export string `json:"export"`
	File   string `json:"file"` // in the saveset
	Bytes  int64  `json:"bytes"`
}

// Definition says how the saved machine becomes the new one.
type Definition struct {
	NewIdentity bool   `json:"new_identity,omitempty"`
	Network     string `json:"network,omitempty"` // instead of those that were saved
	NoNetwork   bool   `json:"no_network,omitempty"`
	Paused      bool   `json:"paused,omitempty"`    // boot it, and have it wait
	Start       bool   `json:"start,omitempty"`     // of a restore
	Overwrite   bool   `json:"overwrite,omitempty"` // of a restore
}

// record is the file of a machine. Part of the format.
type record struct {
	Version    int             `json:"version"`
	ID         string          `json:"id"`
	State      State           `json:"state"`
	Ordered    bool            `json:"ordered,omitempty"`
	Saveset    dedup.SavesetID `json:"saveset"`
	Client     string          `json:"client"`
	Task       string          `json:"task"`
	Host       string          `json:"host"`
	URI        string          `json:"uri,omitempty"`
	Name       string          `json:"name,omitempty"`
	UUID       string          `json:"uuid,omitempty"`
	Disks      []Disk          `json:"disks,omitempty"`
	Definition Definition      `json:"definition"`
	Pool       string          `json:"pool,omitempty"`
	Format     string          `json:"format,omitempty"`
	Problem    string          `json:"problem,omitempty"`
	Warnings   []string        `json:"warnings,omitempty"`
	Created    time.Time       `json:"created"`
	By         string          `json:"by,omitempty"`
}

func validID(id string) bool {
	return len(id) == idDigits && strings.Trim(id, "0123456789abcdef") == ""
}

func newID() string {
	var b [idDigits / 2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (r *record) check() error {
	switch {
	case !validID(r.ID):
		return fmt.Errorf("id %q", r.ID)
	case !knownState(r.State):
		return fmt.Errorf("state %q", r.State)
	case r.Saveset.IsZero():
		return errors.New("no saveset")
	case r.Host == "":
		return errors.New("no host")
	case len(r.Disks) > maxDisks:
		return fmt.Errorf("%d disks", len(r.Disks))
	}
	return nil
}

func knownState(s State) bool {
	for _, k := range states {
		if k == s {
			return true
		}
	}
	return false
}

func decodeRecord(b []byte) (r record, err error) {
	if err := durable.DecodeRecord(b, recordVersion, &r); err != nil {
		return r, err
	}
	return r, r.check()
}

func readRecord(path string) (r record, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = errors.New("too long")
	}
	if err != nil {
		return r, err
	}
	return decodeRecord(b)
}

func (r *record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, r.ID+recordSuffix), append(b, '\n'), 0o600)
}

// remove removes the file, durably: one that came back would have the host end a machine again.
func (r *record) remove(dir string) error {
	if err := os.Remove(filepath.Join(dir, r.ID+recordSuffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ordered are the disks of an order to the agent.
func ordered(disks []Disk) []sms.MachineDisk {
	out := make([]sms.MachineDisk, len(disks))
	for i, d := range disks {
		out[i] = sms.MachineDisk{Target: d.Target, Export: d.Export}
	}
	return out
}
