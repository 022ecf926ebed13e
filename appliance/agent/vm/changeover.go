package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"coffer/appliance/internal/durable"
)

// changeover is the one thing of a machine that the agent keeps, in a file of its state: from before the first disk of a move
// is changed over to its copy until the machine is defined on its copies. In between the newest data are in images that
// nothing but the running machine names: if the host stops, they must not be taken for what a cut-off move left.
type changeover struct {
	Version int      `json:"version"`
	Pool    string   `json:"pool"`
	Images  []string `json:"images"`
	// XML is the definition on the copies, once all disks are changed over.
	XML string `json:"xml,omitempty"`
}

const changeoverVersion = 1

func (ms *Machines) changeoverPath(id string) string {
	return filepath.Join(ms.StateDir, "machine-"+id+".json")
}

func (ms *Machines) keepChangeover(id string, n changeover) error {
	n.Version = changeoverVersion
	b, err := json.Marshal(n)
	if err == nil {
		err = os.MkdirAll(ms.StateDir, 0o700)
	}
	if err == nil {
		err = durable.WriteFile(ms.changeoverPath(id), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep what is needed to change over the disks: %w", err)
	}
	return nil
}

// changeover returns what is kept of a machine; nil: nothing.
func (ms *Machines) changeover(id string) (*changeover, error) {
	b, err := os.ReadFile(ms.changeoverPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var n changeover
	if err == nil {
		err = durable.DecodeRecord(b, changeoverVersion, &n)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ms.changeoverPath(id), err)
	}
	return &n, nil
}

func (ms *Machines) dropChangeover(id string) error {
	if err := os.Remove(ms.changeoverPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
