package libvirt

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
)

// Cleaned is what Clean found and removed.
type Cleaned struct {
	Job         bool
	Checkpoints []string
	Files       []string
}

// Clean removes what earlier runs of the task left on the host: the backup job, checkpoints but for those to keep, socket
// and scratch files; and it thaws the guest, which a run that was killed may have left frozen. KindBusy where a backup
// job of somebody else runs. dir is JobSpec.Dir.
func (c *Conn) Clean(ctx context.Context, d *Domain, t Tag, dir string, keep ...string) (Cleaned, error) {
	var out Cleaned
	if err := t.Validate(); err != nil {
		return out, err
	}
	if d.Active() {
		if d.State == StateRunning && d.Agent == AgentConnected {
			_ = c.thaw(ctx, d) // nothing is frozen, mostly
		}
		var err error
		out.Job, err = c.endJob(ctx, d, func(socket string) bool { return strings.HasPrefix(path.Base(socket), t.ours()) })
		if err != nil {
			return out, err
		}
	}
	var faults []error
	var err error
	out.Checkpoints, err = c.DropCheckpoints(ctx, d, t, keep...)
	faults = append(faults, err)
	err = c.sweep(ctx, scratchDirs(d, c.jobDir(ctx, d, ""), dir, "/var/tmp"), func(name string) bool {
		if t.leftover(name) {
			out.Files = append(out.Files, name)
			return true
		}
		return false
	})
	return out, errors.Join(append(faults, err)...)
}

// sweep removes files from directories of the host. A directory that is not there, or may not be listed, has none of ours
// that we could remove.
func (c *Conn) sweep(ctx context.Context, dirs []string, which func(name string) bool) error {
	var faults []error
	for _, dir := range dirs {
		list, err := c.files.ReadDir(ctx, dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				faults = append(faults, failure("list "+dir, err))
			}
			continue
		}
		for _, info := range list {
			if info.IsDir() || !which(info.Name()) {
				continue
			}
			if err := c.files.Remove(ctx, path.Join(dir, info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				faults = append(faults, failure("remove "+path.Join(dir, info.Name()), err))
			}
		}
	}
	return errors.Join(faults...)
}
