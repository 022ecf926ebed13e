package appliance

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// diskProbe writes to the disks of the store from time to time: one that fails shows before the next backup does.
type diskProbe struct {
	fault atomic.Pointer[error] // of the last round; nil: none
}

// look probes the directories.
func (p *diskProbe) look(dirs ...string) {
	for _, dir := range dirs {
		if err := probeWrite(dir); err != nil {
			err = fmt.Errorf("%s: %w", dir, err)
			p.fault.Store(&err)
			return
		}
	}
	p.fault.Store(nil)
}

// err is what the last look found.
func (p *diskProbe) err() error {
	if e := p.fault.Load(); e != nil {
		return *e
	}
	return nil
}

// probeBytes is how much a probe writes: a block of every file system.
const probeBytes = 64 << 10

// probeWrite writes and syncs a file that has no name, so that nothing is left of it whatever happens. A full disk is no
// fault: the reserve tells of it. Where there are no such files, nothing is known.
func probeWrite(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // the latter by kernels before 3.11
		return nil
	}
	if err != nil {
		return notFull(err)
	}
	f := os.NewFile(uintptr(fd), dir)
	_, err = f.Write(make([]byte, probeBytes))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return notFull(err)
}

func notFull(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}
