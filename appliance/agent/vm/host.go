package vm

import (
	"context"
	"sync"

	"coffer/appliance/agent/disk"
	"coffer/appliance/agent/report"
	"coffer/images/libvirt"
)

// Codes of failed runs, for sms.Outcome, beside those of package report.
const (
	CodeUnreachable = "hypervisor_unreachable"
	CodeNoMachine   = "machine_missing"
	CodeBusy        = "machine_busy"
	CodeQuiesce     = "quiesce_failed"
	CodeDisk        = "disk_unreadable"
	CodeStarted     = "machine_started"
	CodeBadOrder    = "bad_order"
)

// Host is what a backup needs of a hypervisor; Connect makes one of a libvirtd.
type Host interface {
	Domain(ctx context.Context, uuid, name string) (*libvirt.Domain, error)
	XML(ctx context.Context, d *libvirt.Domain) (string, error)
	Clean(ctx context.Context, d *libvirt.Domain, t libvirt.Tag, dir string, keep ...string) (libvirt.Cleaned, error)
	Checkpoint(ctx context.Context, d *libvirt.Domain, name string) (*libvirt.Checkpoint, error)
	DropCheckpoints(ctx context.Context, d *libvirt.Domain, t libvirt.Tag, keep ...string) ([]string, error)
	Begin(ctx context.Context, d *libvirt.Domain, s libvirt.JobSpec) (Job, error)
	Files() libvirt.Files
	Close() error
}

// Job is a backup job, as *libvirt.Job.
type Job interface {
	State() libvirt.Quiesced
	// MadeCheckpoint is the name of the checkpoint that was made, or empty.
	MadeCheckpoint() string
	Changes(target string) bool
	Open(ctx context.Context, target string) (Disk, error)
	End(ctx context.Context) error
}

// Disk is a disk of a job.
type Disk interface {
	disk.Source
	libvirt.Mapped
	Close() error
}

// Connect reaches the libvirtd at a URI.
func Connect(ctx context.Context, uri string) (Host, error) {
	u, err := libvirt.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	c, err := libvirt.Connect(ctx, u)
	if err != nil {
		return nil, err
	}
	return host{c}, nil
}

type host struct{ *libvirt.Conn }

func (h host) Begin(ctx context.Context, d *libvirt.Domain, s libvirt.JobSpec) (Job, error) {
	j, err := h.Conn.Begin(ctx, d, s)
	if err != nil {
		return nil, err
	}
	return job{j}, nil
}

type job struct{ *libvirt.Job }

func (j job) State() libvirt.Quiesced { return j.Quiesced }
func (j job) MadeCheckpoint() string  { return j.Checkpoint }

func (j job) Open(ctx context.Context, target string) (Disk, error) {
	c, err := j.Job.Open(ctx, target)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// fail gives an error of the hypervisor the code of a failed run.
func fail(err error) error {
	code := map[libvirt.Kind]string{libvirt.KindInvalid: CodeBadOrder, libvirt.KindUnreachable: CodeUnreachable,
		libvirt.KindNoDomain: CodeNoMachine, libvirt.KindBusy: CodeBusy}[libvirt.KindOf(err)]
	if err == nil || code == "" {
		return err
	}
	return &report.Error{Code: code, Err: err}
}

// Locks lets one piece of work at a time have a machine. The zero value works.
type Locks struct {
	mu   sync.Mutex // guards held
	held map[string]chan struct{}
}

// Lock waits for the machine of a name. unlock gives it back.
func (l *Locks) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		held := l.held[name]
		if held == nil {
			mine := make(chan struct{})
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			l.held[name] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, name)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
