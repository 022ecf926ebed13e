package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"coffer/appliance/agent/report"
	"coffer/appliance/sms"
	"coffer/dedup/seal"
)

const (
	// taskKeyDir is the folder of the state directory where the keys of encrypted tasks are looked for.
	taskKeyDir = "task-keys"

	// codeTaskKey is the code of a run that lacks its task's key.
	codeTaskKey = "task_key"
)

// TaskKeyPath returns where an agent looks for the key of a task whose order names no other place.
func TaskKeyPath(stateDir, task string) string {
	return filepath.Join(stateDir, taskKeyDir, filepath.Base(task)+".key")
}

// NewTaskKey makes the key file of a task, readable for its owner alone, and returns the key's id. It never replaces a file.
func NewTaskKey(path string) (id string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make the key's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("%s exists, and may be the only key of some backup: name another file", path)
	}
	if err != nil {
		return "", fmt.Errorf("make key file: %w", err)
	}
	key := seal.NewKey()
	_, err = f.Write(key.File())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write key file: %w", err), os.Remove(path))
	}
	return key.ID().String(), nil
}

// TaskKeyID returns the id of the key in a file.
func TaskKeyID(path string) (string, error) {
	key, err := readTaskKey(path)
	if err != nil {
		return "", err
	}
	return key.ID().String(), nil
}

func readTaskKey(path string) (seal.Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return seal.Key{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, seal.MaxFile+1))
	if err != nil {
		return seal.Key{}, err
	}
	key, err := seal.ParseFile(data)
	if err != nil {
		return key, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// taskKey loads the key that an order needs; nil for one that is not encrypted. It is asked for before anything is read.
func (a *Agent) taskKey(task string, o *sms.Sealing) (*seal.Key, error) {
	if o == nil {
		return nil, nil
	}
	path := string(o.KeyFile)
	if path == "" {
		path = TaskKeyPath(a.cfg.StateDir, task)
	}
	key, err := readTaskKey(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, report.Errorf(codeTaskKey, "task %s is encrypted, and its key is not on this client: put the key file with the id %s at %s", task, o.KeyID, path)
	case err != nil:
		return nil, report.Errorf(codeTaskKey, "key of the encrypted task %s: %w", task, err)
	case key.ID().String() != o.KeyID:
		return nil, report.Errorf(codeTaskKey, "%s holds the key %v, and task %s is encrypted with the key %s: put that one there", path, key.ID(), task, o.KeyID)
	}
	return &key, nil
}
