package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coffer/appliance/internal/durable"
)

// DataVersion is the version of the data directory's layout that this program writes; part of the format.
//
// Layout of version 1, all directories 0700:
//
//	version         "coffer data directory, version 1\n"
//	lock            held (flock) by the running daemon; holds its pid
//	clock           trusted time as it was last seen, 0600
//	first-password  the superuser's first password, 0600, until it is changed
//	catalog/        the SQLite database and the copies made before each migration
//	pki/            authority and server certificate
//	keys/           the store's key file, unless the configuration names another place
//	store/          containers, manifests, states
//	spool/          containers being built
//	index/          the index, a hint that can be lost
//	mnt/            where savesets are mounted
//	overlays/       a folder for each export, with what was written to it
//	machines/       a file for each machine that runs from a saveset, or is restored from one
//	run/            unix sockets
const DataVersion = 1

const versionPrefix = "coffer data directory, version "

// ErrNewerData says that a newer program wrote the data directory.
var ErrNewerData = errors.New("written by a newer version of Coffer")

// ErrDataInUse says that another process holds the data directory.
var ErrDataInUse = errors.New("in use by another process")

// DataDir is a data directory, held by this process until Close.
type DataDir struct {
	path string
	lock *os.File
}

// OpenData makes the data directory if need be, takes its lock and checks its version. A directory written by a newer
// version is refused by name (ErrNewerData) and left untouched; a directory that is not empty and has no version file
// is refused, too, for it is not ours.
func OpenData(path string) (*DataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	fresh, err := checkVersion(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
	}
	lock, err := takeLock(filepath.Join(path, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
	}
	d := &DataDir{path: path, lock: lock}
	if err := d.prepare(fresh); err != nil {
		return nil, errors.Join(fmt.Errorf("open data directory %s: %w", path, err), d.Close())
	}
	return d, nil
}

// prepare makes the directories and, last, the version file.
func (d *DataDir) prepare(fresh bool) error {
	for _, dir := range []string{d.CatalogDir(), d.PKIDir(), d.path + "/keys", d.SpoolDir(), d.IndexDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if !fresh {
		return nil
	}
	text := versionPrefix + strconv.Itoa(DataVersion) + "\n"
	return durable.WriteFile(filepath.Join(d.path, "version"), []byte(text), 0o644)
}

// checkVersion says whether the directory is a fresh one.
func checkVersion(path string) (fresh bool, err error) {
	raw, err := os.ReadFile(filepath.Join(path, "version"))
	if errors.Is(err, fs.ErrNotExist) {
		return true, checkOurs(path)
	}
	if err != nil {
		return false, err
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(raw)), versionPrefix)
	n, err := strconv.Atoi(text)
	switch {
	case !ok || err != nil || n < 1:
		return false, fmt.Errorf("its version file reads %.80q: not a data directory of Coffer", raw)
	case n > DataVersion:
		return false, fmt.Errorf("it has version %d, this program knows up to version %d: %w", n, DataVersion, ErrNewerData)
	}
	return false, nil
}

// checkOurs accepts an empty directory, or what a first start that was cut short left behind.
func checkOurs(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	known := map[string]bool{"lock": true, "catalog": true, "pki": true, "keys": true, "spool": true, "index": true,
		"store": true, "mnt": true, "overlays": true, "run": true, "lost+found": true}
	for _, e := range entries {
		if !known[e.Name()] && !strings.HasPrefix(e.Name(), ".version.tmp-") {
			return fmt.Errorf("it has %q but no version file: not a data directory of Coffer", e.Name())
		}
	}
	return nil
}

// takeLock locks the file without waiting, and writes this process's pid into it for people.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (pid %s)", ErrDataInUse, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The pid is for people; a full disk must not keep the daemon from starting.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// Close gives the directory free.
func (d *DataDir) Close() error { return d.lock.Close() }

// Path is the directory itself.
func (d *DataDir) Path() string { return d.path }

// CatalogDir is where the database lies.
func (d *DataDir) CatalogDir() string { return filepath.Join(d.path, "catalog") }

// PKIDir is where the authority lies.
func (d *DataDir) PKIDir() string { return filepath.Join(d.path, "pki") }

// SpoolDir is where containers are built.
func (d *DataDir) SpoolDir() string { return filepath.Join(d.path, "spool") }

// IndexDir is where the index lies.
func (d *DataDir) IndexDir() string { return filepath.Join(d.path, "index") }

// OverlaysDir is where exports lie.
func (d *DataDir) OverlaysDir() string { return filepath.Join(d.path, "overlays") }

// MachinesDir holds a file for each machine that runs from a saveset.
func (d *DataDir) MachinesDir() string { return filepath.Join(d.path, "machines") }

// ClockFile is where trusted time is kept.
func (d *DataDir) ClockFile() string { return filepath.Join(d.path, "clock") }

// FirstPassword is the file of the superuser's first password.
func (d *DataDir) FirstPassword() string { return filepath.Join(d.path, "first-password") }
