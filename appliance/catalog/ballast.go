package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The ballast is a file of reserved space beside the database. When the disk is full, it goes, so that what matters most
// then can still be recorded: restores, how runs ended, logins, and the audit log. Backups and what they bring cannot
// draw on it. It comes back as soon as there is twice its size.
const (
	ballastName = "ballast"
	ballastSize = 8 << 20
)

// class says whether a write may draw on the ballast.
type class bool

const (
	ordinary  class = false
	essential class = true
)

func (c *Catalog) ballastPath() string { return filepath.Join(c.dir, ballastName) }

// dropBallast gives the reserved space free; false where there is none.
func (c *Catalog) dropBallast() bool {
	err := os.Remove(c.ballastPath())
	if err == nil {
		c.opts.Logger.Warn("the disk of the catalog is full: its reserved space is in use now", "bytes", ballastSize)
	}
	return err == nil
}

// KeepBallast reserves the space again where it is missing and there is enough. Call it from time to time.
func (c *Catalog) KeepBallast() error {
	info, err := os.Stat(c.ballastPath())
	if err == nil && info.Size() == ballastSize {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c.fail("keep reserved space", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.dir, &st); err != nil {
		return c.fail("keep reserved space", err)
	}
	if st.Bavail*uint64(st.Bsize) < 2*ballastSize {
		return nil
	}
	return c.fail("keep reserved space", c.makeBallast())
}

func (c *Catalog) makeBallast() error {
	f, err := os.OpenFile(c.ballastPath(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, ballastSize))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(fmt.Errorf("reserve %d bytes: %w", ballastSize, err), os.Remove(c.ballastPath()))
	}
	return nil
}
