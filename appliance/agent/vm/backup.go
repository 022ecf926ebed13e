package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"coffer/appliance/agent/backup"
	"coffer/appliance/agent/report"
	"coffer/appliance/agent/uplink"
	"coffer/appliance/sms"
	"coffer/dedup/recipe"
	"coffer/dedup/seal"
	"coffer/images/libvirt"
)

// BackupOptions are what Backup needs: all but Key, Logger and Now.
type BackupOptions struct {
	Order   sms.BackupOrder
	Run     uplink.Run
	Connect func(ctx context.Context, uri string) (Host, error)
	Locks   *Locks
	Key     *seal.Key        // of an encrypted task; nil: nothing is sealed
	Logger  *slog.Logger     // nil: silent
	Now     func() time.Time // the client's clock; nil: time.Now
}

// Backup does what the order says and commits. With an error there is no saveset (unless the commit's answer was lost) and
// the run is not over: the caller tells the appliance, with the outcome.
func Backup(ctx context.Context, o BackupOptions) (sms.Outcome, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Order.Libvirt == nil {
		return sms.Outcome{}, report.Errorf(CodeBadOrder, "the order names no machine")
	}
	rep := report.New(o.Run, o.Logger)
	j := &backing{BackupOptions: o, src: o.Order.Libvirt, rep: rep, tree: newTree(o.Run, rep, o.Key), started: o.Now()}
	j.tag = libvirt.Tag{Owner: j.src.Owner, Run: o.Run.ID()}
	stop := rep.Start(ctx)
	defer stop()
	err := j.run(ctx)
	return sms.Outcome{Counters: rep.Counters()}, fail(err)
}

// backing is one backup in work.
type backing struct {
	BackupOptions
	src     *sms.LibvirtSource
	tag     libvirt.Tag
	rep     *report.Reporter
	tree    *tree
	started time.Time

	host    Host
	d       *libvirt.Domain
	doc     Document
	disks   []libvirt.Disk // to save
	entries []named        // of the root
}

func (j *backing) run(ctx context.Context) error {
	if err := j.tag.Validate(); err != nil {
		return err
	}
	err := backup.Before(ctx, &j.Order, j.rep)
	if err == nil {
		err = j.machine(ctx)
		backup.After(ctx, &j.Order, j.rep)
	}
	return err
}

// machine connects, backs the machine up, and commits.
func (j *backing) machine(ctx context.Context) error {
	j.rep.Phase(sms.PhasePreparing)
	unlock, err := j.Locks.Lock(ctx, j.src.URI+" "+cmp.Or(j.src.UUID, j.src.Domain))
	if err != nil {
		return err
	}
	defer unlock()
	if j.host, err = j.Connect(ctx, j.src.URI); err != nil {
		return err
	}
	defer func() { _ = j.host.Close() }() // nothing is lost by it
	if j.d, err = j.host.Domain(ctx, j.src.UUID, j.src.Domain); err != nil {
		return err
	}
	if err := j.clean(ctx); err != nil {
		return err
	}
	j.begin()
	if err := j.choose(); err != nil {
		return err
	}
	j.rep.Phase(sms.PhaseWorking)
	if !j.d.Active() {
		err = j.offline(ctx)
	} else {
		err = j.online(ctx)
	}
	if err != nil {
		return err
	}
	return j.finish(ctx)
}

// clean removes what earlier runs left.
func (j *backing) clean(ctx context.Context) error {
	found, err := j.host.Clean(ctx, j.d, j.tag, string(j.src.ScratchDir), j.checkpointOf(j.src.FullRun), j.checkpointOf(j.src.LastRun),
		j.checkpointOf(j.src.Reference))
	if kind := libvirt.KindOf(err); err != nil && (kind == libvirt.KindBusy || kind == libvirt.KindUnreachable || ctx.Err() != nil) {
		return err
	}
	if err != nil {
		j.rep.Warn("left_behind", "", fmt.Errorf("what an earlier run left is not removed yet: %w", err))
	}
	if found.Job || len(found.Checkpoints) > 0 || len(found.Files) > 0 {
		j.rep.Note("cleaned", "", fmt.Errorf("an earlier run was interrupted: removed its backup job (%v), %d checkpoints and %d files",
			found.Job, len(found.Checkpoints), len(found.Files)))
	}
	return nil
}

// checkpointOf names the checkpoint of a run of this task; empty for none.
func (j *backing) checkpointOf(run string) string {
	if run == "" {
		return ""
	}
	return libvirt.Tag{Owner: j.tag.Owner, Run: run}.Checkpoint()
}

// begin starts the document.
func (j *backing) begin() {
	j.doc = Document{Version: DocumentVersion, Began: j.Now().UTC(), URI: cmp.Or(j.src.URI, libvirt.DefaultURI), UUID: j.d.UUID, Name: j.d.Name,
		State: string(j.d.State), Persistent: j.d.Persistent, Level: j.Order.Level}
}

// choose finds the disks to save. One that cannot be saved, and that nobody excluded, is a warning.
func (j *backing) choose() error {
	known := map[string]bool{}
	for _, disk := range j.d.Disks {
		known[disk.Target] = true
		if slices.Contains(j.src.ExcludeDisks, disk.Target) {
			j.doc.Excluded = append(j.doc.Excluded, ExcludedDisk{disk.Target, "the task excludes it"})
			continue
		}
		if ok, why := disk.Saved(); !ok {
			j.doc.Excluded = append(j.doc.Excluded, ExcludedDisk{disk.Target, why})
			if disk.Device != "cdrom" && disk.Device != "floppy" {
				j.rep.Warn("disk_not_saved", disk.Target, errors.New(why))
			}
			continue
		}
		j.disks = append(j.disks, disk)
	}
	for _, target := range j.src.ExcludeDisks {
		if !known[target] {
			j.rep.Note("no_such_disk", target, errors.New("the task excludes a disk that the machine does not have"))
		}
	}
	if len(j.disks) == 0 {
		return report.Errorf(CodeDisk, "machine %s has no disk to save", j.d.Name)
	}
	return nil
}

// parentDisk is the disk's entry in the parent saveset; nil where it has none.
func (j *backing) parentDisk(ctx context.Context, target string) (*recipe.Entry, error) {
	p := j.Run.Parent()
	if p == nil {
		return nil, nil
	}
	run := j.Run
	if j.Key != nil {
		run = uplink.Unseal(run, seal.NewOpener(*j.Key))
	}
	e, _, err := recipe.Lookup(ctx, run, p.Root.Digest, target+DiskSuffix)
	if errors.Is(err, recipe.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up disk %s in the parent saveset: %w", target, err)
	}
	if e.Content.Kind != recipe.ImageTree {
		return nil, nil
	}
	return &e, nil
}

// saved adds a disk to the saveset.
func (j *backing) saved(disk libvirt.Disk, e recipe.Entry, mtime time.Time, s SavedDisk) {
	e.Name, e.Mode, e.MTime = disk.Target+DiskSuffix, recipe.ModeRegular|0o600, toTime(mtime)
	j.entries = append(j.entries, named{e: e})
	s.Target, s.File, s.Capacity, s.Format, s.Source, s.Path = disk.Target, e.Name, int64(e.Size), disk.Format, disk.Source, disk.Path
	j.doc.Disks = append(j.doc.Disks, s)
	j.rep.Entries.Add(1)
	j.rep.Files.Add(1)
}

// full makes the run a FULL, for the reason cbt_invalid, where less was ordered.
func (j *backing) full(why error) {
	if j.Run.Parent() == nil || j.doc.Reason != "" {
		return
	}
	j.doc.Level, j.doc.Reason = "FULL", sms.FullCBTInvalid
	j.rep.Note(sms.FullCBTInvalid, "", fmt.Errorf("all is read: %w", why))
}

// finish stores what is beside the disks, commits, and deletes the checkpoints that nobody needs any more.
func (j *backing) finish(ctx context.Context) error {
	j.rep.Phase(sms.PhaseFinishing)
	root, err := j.beside(ctx)
	if err != nil {
		return j.undo(ctx, err)
	}
	// From here on the appliance may have made the saveset, whatever we are told: the checkpoint stays.
	if err := j.commit(ctx, root); err != nil {
		return err
	}
	keep := []string{j.doc.Checkpoint}
	switch j.doc.Level {
	case "COPY":
		return nil
	case "DIFF", "INCR":
		keep = append(keep, j.checkpointOf(j.src.FullRun))
	}
	// The saveset is made: what goes wrong now is the next run's to clean.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	if _, err := j.host.DropCheckpoints(after, j.d, j.tag, keep...); err != nil {
		j.Logger.Warn("checkpoints not deleted yet", "domain", j.d.Name, "error", err)
	}
	return nil
}

// dropTimeout bounds the deletion of checkpoints after the commit.
const dropTimeout = time.Minute

func (j *backing) commit(ctx context.Context, root recipe.Ref) error {
	_, err := j.Run.Commit(ctx, sms.Commit{Root: root, SourceID: j.d.UUID, Started: j.started, Finished: j.Now(),
		Counters: j.rep.Counters(), FullReason: j.doc.Reason})
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
