// Package debian makes the disk of a guest that is installed from Debian's packages, for tests and benchmarks that want a real
// system to boot: Debian 12 with its kernel, GRUB and systemd. See mkdebian.sh for what it does when it runs.
package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

//go:embed mkdebian.sh
var script string

// Cache is where disks are kept between runs: making one fetches some 100 MB and takes minutes.
const Cache = "/var/tmp/coffer-lab"

// Programs are what Disk needs, beside root.
var Programs = []string{"debootstrap", "mke2fs", "sfdisk", "cp"}

// Disk puts the disk, a raw image with holes, at a path. It is made once for each revision of the script and kept in Cache; other
// processes that want it meanwhile wait.
func Disk(ctx context.Context, path string) (err error) {
	if err := os.MkdirAll(Cache, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(Cache, "debian.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and unlocked by that
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	revision := sha256.Sum256([]byte(script))
	kept := filepath.Join(Cache, fmt.Sprintf("debian-%x.raw", revision[:6]))
	if _, err := os.Stat(kept); errors.Is(err, os.ErrNotExist) {
		if err := install(ctx, kept); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return command(ctx, "cp", "--sparse=always", "--reflink=auto", kept, path)
}

// install makes the disk, in place of those of other revisions.
func install(ctx context.Context, path string) error {
	old, err := filepath.Glob(filepath.Join(Cache, "debian-*"))
	if err != nil {
		return err
	}
	for _, p := range old {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return command(ctx, "/bin/bash", "-c", script, "mkdebian.sh", path)
}

// command runs a program. When the context ends it gets SIGTERM, so that it can clear up.
func command(ctx context.Context, name string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[len(args)-1], err, said.Bytes())
	}
	return nil
}
