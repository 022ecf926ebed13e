package vm

import (
	"context"
	"errors"
	"fmt"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/report"
	"coffer/images/libvirt"
)

// online saves the disks of a running machine, with what changed since the reference where that can be had.
func (j *backing) online(ctx context.Context) error {
	ref, err := j.reference(ctx)
	if err != nil {
		return err
	}
	err = j.point(ctx, ref)
	if libvirt.KindOf(err) == libvirt.KindLost && ref != nil && ctx.Err() == nil {
		j.full(err)
		j.entries, j.doc.Disks = nil, nil
		err = j.point(ctx, nil)
	}
	return err
}

// reference finds the checkpoint of the parent's run; nil where everything is to be read.
func (j *backing) reference(ctx context.Context) (*libvirt.Checkpoint, error) {
	if j.Run.Parent() == nil || j.src.Reference == "" {
		return nil, nil
	}
	ref, err := j.host.Checkpoint(ctx, j.d, j.checkpointOf(j.src.Reference))
	if libvirt.KindOf(err) == libvirt.KindLost {
		j.full(err)
		return nil, nil
	}
	return ref, err
}

// point saves the disks as they are at one moment. When it fails, or the run does before its commit, nothing of it is left on
// the host, its checkpoint included.
func (j *backing) point(ctx context.Context, ref *libvirt.Checkpoint) (err error) {
	spec := libvirt.JobSpec{Tag: j.tag, Reference: ref, Checkpoint: j.Order.Level != "COPY", Dir: string(j.src.ScratchDir),
		Quiesce: libvirt.QuiesceMode(j.src.Quiesce)}
	for _, disk := range j.disks {
		spec.Disks = append(spec.Disks, disk.Target)
	}
	made, err := j.host.Begin(ctx, j.d, spec)
	if err != nil {
		return j.undo(ctx, quiesceError(err, spec.Quiesce))
	}
	j.doc.Began, j.doc.Checkpoint, j.doc.Reference = j.Now().UTC(), made.MadeCheckpoint(), ""
	if ref != nil {
		j.doc.Reference = ref.Name
	}
	j.quiesced(made.State())
	for _, d := range j.disks {
		if err = j.onlineDisk(ctx, made, d); err != nil {
			break
		}
	}
	err = errors.Join(err, made.End(ctx))
	if err != nil {
		return j.undo(ctx, err)
	}
	return nil
}

// quiesceError gives a failure to freeze its code.
func quiesceError(err error, mode libvirt.QuiesceMode) error {
	if mode == libvirt.QuiesceRequire && libvirt.KindOf(err) == libvirt.KindOther {
		return &report.Error{Code: CodeQuiesce, Err: err}
	}
	return err
}

// undo deletes the checkpoint of this run: all of the task's are kept that a saveset may know.
func (j *backing) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	_, err := j.host.DropCheckpoints(ctx, j.d, j.tag, j.checkpointOf(j.src.FullRun), j.checkpointOf(j.src.LastRun), j.checkpointOf(j.src.Reference))
	if err != nil {
		j.Logger.Warn("checkpoint not deleted yet", "domain", j.d.Name, "error", err)
	}
	return cause
}

// quiesced records in what state the guest was, and warns where it should have been frozen.
func (j *backing) quiesced(q libvirt.Quiesced) {
	j.doc.Quiesce = Quiesce{State: q.State, FileSystems: q.FileSystems}
	if q.Err != nil {
		j.doc.Quiesce.Error = q.Err.Error()
		j.rep.Warn("not_quiesced", "", q.Err)
		return
	}
	j.rep.Note("quiesce", "", fmt.Errorf("the guest was %s when the backup began", q.State))
}

// onlineDisk saves a disk of the job.
func (j *backing) onlineDisk(ctx context.Context, from Job, d libvirt.Disk) error {
	j.rep.Current(d.Target + DiskSuffix)
	dev, err := from.Open(ctx, d.Target)
	if err != nil {
		return err
	}
	defer func() { _ = dev.Close() }() // all was read, or an error tells
	parent, err := j.parentDisk(ctx, d.Target)
	if err != nil {
		return err
	}
	incremental := from.Changes(d.Target) && parent != nil && j.doc.Reason == ""
	if !incremental {
		parent = nil
	}
	if !d.Tracked() && j.Order.Level != "COPY" {
		j.rep.Note("untracked", d.Target, fmt.Errorf("a disk of format %s is read in full each time: QEMU tracks changes of qcow2 images", d.Format))
	}
	var dirty uint64
	changes := func(yield func(disk.Range) bool) error {
		return libvirt.Changed(ctx, dev, incremental, func(off, n int64, zero bool) bool {
			dirty += uint64(n)
			return yield(disk.Range{Off: off, N: n, Zero: zero})
		})
	}
	e, stats, err := disk.Store(ctx, j.Run, dev, changes, disk.Options{Parent: parent, Key: j.Key, Report: j.rep})
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Target, err)
	}
	j.saved(d, e, j.doc.Began, SavedDisk{Incremental: incremental, Read: stats.Read, Dirty: dirty})
	return nil
}
