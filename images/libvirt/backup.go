package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"coffer/nbd"
)

// JobSpec says what a backup job shall be.
type JobSpec struct {
	Tag Tag
	// Disks are the targets to save.
	Disks []string
	// Reference is the checkpoint since which changes are told; nil for a full backup. A disk that it does not track is
	// saved in full.
	Reference *Checkpoint
	// Checkpoint makes one, named by Tag, at the moment that the job saves: the reference of a later backup.
	Checkpoint bool
	// Dir is a directory of the host for the job's socket and scratch files, in which QEMU can write; empty: the domain's
	// own one for the socket, and for the scratch files the directory of each disk.
	Dir     string
	Quiesce QuiesceMode
}

// Job is a pull-mode backup job of a running domain: from Begin to End its disks can be read as they were when it began.
type Job struct {
	// Quiesced is in what state the guest was.
	Quiesced Quiesced
	// Checkpoint is the name of the checkpoint that was made; empty where none was.
	Checkpoint string

	c       *Conn
	d       *Domain
	tag     Tag
	socket  string
	dirs    []string
	changes map[string]bool // targets whose changes are told
}

const (
	// beginTimeout bounds the begin of a job, which is not given up for less: one that begins later would be nobody's.
	beginTimeout = 3 * time.Minute
	// endTimeout bounds the end of a job, removal of its scratch files included.
	endTimeout = time.Minute
	// endPoll is how often we look whether it has ended.
	endPoll = 50 * time.Millisecond
)

// Begin freezes the guest where that is wanted and can be, begins a job, and thaws it. KindLost: the reference, or the
// bitmap of a disk, is lost or inconsistent; only a job without reference will do. KindBusy: another job is at work. Call
// Clean before, and End after.
func (c *Conn) Begin(ctx context.Context, d *Domain, s JobSpec) (*Job, error) {
	op := "begin backup of domain " + strconv.Quote(d.Name)
	if err := s.Tag.Validate(); err != nil {
		return nil, failure(op, err)
	}
	dir := c.jobDir(ctx, d, s.Dir)
	j := &Job{c: c, d: d, tag: s.Tag, socket: s.Tag.socket(dir), dirs: scratchDirs(d, dir, s.Dir), changes: map[string]bool{}}
	if len(j.socket) > maxSocket {
		return nil, failf(KindInvalid, op, "the path of its socket is too long: %s", j.socket)
	}
	backup, checkpoint, err := j.describe(s, dir)
	if err != nil {
		return nil, failure(op, err)
	}
	if j.Quiesced, err = c.freeze(ctx, d, s.Quiesce); err != nil {
		return nil, failure(op, err)
	}
	beginning, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginTimeout)
	err = c.call(beginning, op, func(lv rpc) error { return lv.DomainBackupBegin(d.ref, backup, checkpoint, 0) })
	cancel()
	if j.Quiesced.State == Frozen {
		if terr := c.thaw(ctx, d); terr != nil {
			err = errors.Join(err, terr)
		}
	}
	if err != nil {
		// Where libvirtd did not answer in time, or the guest stays frozen, there may be a job.
		return nil, errors.Join(err, j.End(ctx))
	}
	return j, nil
}

// maxSocket is the longest path of a unix socket (unix(7)).
const maxSocket = 107

// describe makes the XML of the job and of its checkpoint.
func (j *Job) describe(s JobSpec, dir string) (backup string, checkpoint golibvirt.OptString, err error) {
	x := libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{
		Server: &libvirtxml.DomainBackupPullServer{UNIX: &libvirtxml.DomainBackupPullServerUNIX{Socket: j.socket}},
		Disks:  &libvirtxml.DomainBackupPullDisks{},
	}}
	tracked := map[string]bool{}
	for _, disk := range j.d.Disks {
		one := libvirtxml.DomainBackupPullDisk{Name: disk.Target, Backup: "no"}
		if slices.Contains(s.Disks, disk.Target) {
			tracked[disk.Target] = s.Checkpoint && disk.Tracked()
			one = j.pull(disk, s, dir)
		}
		x.Pull.Disks.Disks = append(x.Pull.Disks.Disks, one)
	}
	text, err := xml.Marshal(&x)
	if err != nil {
		return "", nil, err
	}
	if !slices.Contains(valuesOf(tracked), true) {
		return string(text), nil, nil // libvirt makes no checkpoint without a disk
	}
	j.Checkpoint = s.Tag.Checkpoint()
	cp, err := checkpointXML(j.d, s.Tag, tracked)
	return string(text), golibvirt.OptString{cp}, err
}

func valuesOf(m map[string]bool) []bool {
	out := make([]bool, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// Tracked tells whether libvirt can track changes of the disk: it keeps bitmaps in qcow2 images only.
func (d Disk) Tracked() bool { return d.Format == "qcow2" && !d.ReadOnly }

func (j *Job) pull(disk Disk, s JobSpec, dir string) libvirtxml.DomainBackupPullDisk {
	at := dir
	if s.Dir == "" && disk.Source == "file" {
		at = path.Dir(disk.Path) // where there is room for images, and where QEMU may write
	}
	one := libvirtxml.DomainBackupPullDisk{Name: disk.Target, Backup: "yes", BackupMode: "full", ExportName: disk.Target,
		Driver:  &libvirtxml.DomainBackupDiskDriver{Type: "qcow2"},
		Scratch: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: s.Tag.scratch(at, disk.Target)}}}
	if s.Reference != nil && s.Reference.Has(disk.Target) && disk.Tracked() {
		one.BackupMode, one.Incremental, one.ExportBitmap = "incremental", s.Reference.Name, bitmapName
		j.changes[disk.Target] = true
	}
	return one
}

// jobDir is where the job's socket goes: the domain's own directory, which QEMU can write and confinement (AppArmor,
// SELinux) allows it, where it is the usual one and can be seen.
func (c *Conn) jobDir(ctx context.Context, d *Domain, asked string) string {
	if asked != "" {
		return asked
	}
	own := fmt.Sprintf("/var/lib/libvirt/qemu/domain-%d-%s", d.ID, shortName(d.Name))
	if info, err := c.files.Stat(ctx, own); err == nil && info.IsDir() {
		return own
	}
	return "/var/tmp"
}

// shortName is the part of a domain's name in its directory's (virDomainDefGetShortName in libvirt's domain_conf.c).
func shortName(name string) string {
	const most = 20
	if r := []rune(name); len(r) > most {
		return string(r[:most])
	}
	return name
}

// scratchDirs are all directories of the host in which a job of the domain may leave files.
func scratchDirs(d *Domain, dirs ...string) []string {
	var out []string
	for _, disk := range d.Disks {
		if disk.Source == "file" && path.IsAbs(disk.Path) {
			dirs = append(dirs, path.Dir(disk.Path))
		}
	}
	for _, dir := range dirs {
		if dir != "" && !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out
}

// Changes tells whether the job says what changed on a disk since its reference.
func (j *Job) Changes(target string) bool { return j.changes[target] }

// Open connects to a disk of the job. KindLost where its changes should be told and are not.
func (j *Job) Open(ctx context.Context, target string) (*nbd.Client, error) {
	op := "open disk " + target + " of domain " + strconv.Quote(j.d.Name)
	conn, err := j.c.DialUnix(ctx, j.socket)
	if err != nil {
		return nil, failure(op, err)
	}
	o := nbd.ClientOptions{Export: target}
	if j.changes[target] {
		o.MetaContexts = []string{DirtyContext}
	}
	client, err := nbd.NewClient(ctx, conn, o)
	if err != nil {
		return nil, failure(op, err)
	}
	if j.changes[target] && !slices.Contains(client.MetaContexts(), DirtyContext) {
		return nil, errors.Join(failf(KindLost, op, "QEMU does not tell what changed"), client.Close())
	}
	return client, nil
}

// End ends the job, whatever became of ctx, and returns when it is gone with its files. The checkpoint stays.
func (j *Job) End(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	_, err := j.c.endJob(ctx, j.d, func(socket string) bool { return socket == j.socket })
	if KindOf(err) == KindBusy { // somebody else's: ours is gone
		err = nil
	}
	return errors.Join(err, j.c.sweep(ctx, j.dirs, func(name string) bool {
		return strings.HasPrefix(name, j.tag.Checkpoint()) && j.tag.leftover(name)
	}))
}

// endJob ends the domain's backup job if it is ours, and waits until it is gone. KindBusy where it is not.
func (c *Conn) endJob(ctx context.Context, d *Domain, ours func(socket string) bool) (ended bool, err error) {
	op := "end backup job of domain " + strconv.Quote(d.Name)
	for {
		socket, found, err := c.jobSocket(ctx, d)
		if err != nil || !found {
			return ended, failure(op, err)
		}
		if !ours(socket) {
			return ended, failf(KindBusy, op, "another backup job runs: not by this task (its socket is %s)", orNone(socket))
		}
		if !ended {
			err := c.call(ctx, op, func(lv rpc) error { return lv.DomainAbortJob(d.ref) })
			if err != nil && codeOf(err) != golibvirt.ErrOperationInvalid { // invalid: it has just ended
				return false, err
			}
			ended = true
		}
		select {
		case <-time.After(endPoll):
		case <-ctx.Done():
			return ended, failf(KindOther, op, "it does not end: %w", context.Cause(ctx))
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "not a unix socket"
	}
	return s
}

// jobSocket returns the socket of the domain's backup job.
func (c *Conn) jobSocket(ctx context.Context, d *Domain) (socket string, found bool, err error) {
	var text string
	err = c.call(ctx, "look for a backup job", func(lv rpc) (err error) {
		text, err = lv.DomainBackupGetXMLDesc(d.ref, 0)
		return err
	})
	switch codeOf(err) {
	case golibvirt.ErrNoDomainBackup, golibvirt.ErrNoDomain, golibvirt.ErrOperationInvalid: // invalid: the domain is off
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	var x libvirtxml.DomainBackup
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return "", false, fmt.Errorf("read the XML of the backup job: %w", err)
	}
	if x.Pull != nil && x.Pull.Server != nil && x.Pull.Server.UNIX != nil {
		socket = x.Pull.Server.UNIX.Socket
	}
	return socket, true, nil
}
