package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

// What a machine gets on its host bears its id: the directory of its sockets, and the images that a move or restore makes.
// By that an agent that was killed finds all of it again.

func imageName(name, target, id, format string) string {
	return fmt.Sprintf("%s-%s-%s.%s", name, target, id, format)
}

// ownImage tells the images of a machine by their names.
func ownImage(id string) func(name string) bool {
	return func(name string) bool {
		return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), "-"+id)
	}
}

// setAside is the name of a machine whose place a restored one takes, until that one is complete.
func setAside(name, id string) string { return name + asideMark + id }

const asideMark = "-replaced-by-"

// socketDir is where QEMU finds the exports of a machine, on its host.
func (ms *Machines) socketDir(id string) string { return path.Join(ms.RunDir, id) }

// carryDir is where this agent has the sockets that ssh carries to the host of a machine.
func (ms *Machines) carryDir(id string) string { return ms.socketDir(id) + "-far" }

// removeSockets removes the directories of sockets that an agent has left that was killed.
func (ms *Machines) removeSockets(ctx context.Context, c *libvirt.Conn, id string) error {
	return errors.Join(os.RemoveAll(ms.carryDir(id)), c.RemoveDir(ctx, ms.socketDir(id)))
}

// onExports tells whether a disk of a machine on the host is one of our exports still.
func (ms *Machines) onExports(id string, d *libvirt.Domain) bool {
	for _, disk := range d.Disks {
		if path.Dir(disk.Socket) == ms.socketDir(id) {
			return true
		}
	}
	return false
}

// onImages tells whether a disk is an image that a move or restore made.
func onImages(id string, d *libvirt.Domain) bool {
	own := ownImage(id)
	for _, disk := range d.Disks {
		if disk.Path != "" && own(path.Base(disk.Path)) {
			return true
		}
	}
	return false
}

// locate finds the machine on the host: by its UUID where that is known, else by its disks; nil: there is none.
func (ms *Machines) locate(ctx context.Context, c *libvirt.Conn, m *machine, uuid string) (*libvirt.Domain, error) {
	if m.uuid != "" {
		uuid = m.uuid
	}
	if uuid != "" {
		d, err := c.Domain(ctx, uuid, "")
		if libvirt.KindOf(err) == libvirt.KindNoDomain {
			return nil, nil
		}
		return d, err
	}
	all, err := c.Domains(ctx)
	for _, d := range all {
		if ms.onExports(m.id, d) || onImages(m.id, d) {
			return d, nil
		}
	}
	return nil, err
}

// sweepImages removes the images that were made for a machine in a pool, and that no machine uses.
func sweepImages(ctx context.Context, c *libvirt.Conn, pool, id string) error {
	if pool == "" {
		return nil
	}
	volumes, err := c.Volumes(ctx, pool, ownImage(id))
	if err != nil || len(volumes) == 0 {
		return err
	}
	all, err := c.Domains(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, d := range all {
		for _, disk := range d.Disks {
			used[disk.Path] = true
		}
	}
	var faults []error
	for _, v := range volumes {
		if !used[v.File.Path] {
			faults = append(faults, c.DeleteVolume(ctx, v))
		}
	}
	return errors.Join(faults...)
}

// putBack gives the machine its name again whose place a restore was to take.
func putBack(ctx context.Context, c *libvirt.Conn, id string) error {
	old, err := asideOf(ctx, c, id)
	if err != nil || old == nil {
		return err
	}
	name, _, _ := strings.Cut(old.Name, asideMark)
	return c.Rename(ctx, old, name)
}

// asideOf finds the machine whose place a restore takes; nil: there is none.
func asideOf(ctx context.Context, c *libvirt.Conn, id string) (*libvirt.Domain, error) {
	all, err := c.Domains(ctx)
	for _, d := range all {
		if strings.HasSuffix(d.Name, asideMark+id) {
			return d, nil
		}
	}
	return nil, err
}

// takeUp finds out what became of the work that the appliance believes is going on, where this agent knows of none: it was
// killed meanwhile.
func (ms *Machines) takeUp(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) error {
	if m.currentJob() != nil {
		return nil
	}
	switch o.Expect {
	case sms.MachineBoot:
		d, err := ms.locate(ctx, c, m, o.UUID)
		if err != nil || d == nil {
			return err
		}
		m.uuid = d.UUID
		return c.TPMs().Settle(ctx, d.UUID, m.id)
	case sms.MachineRestore:
		d, err := ms.locate(ctx, c, m, o.UUID)
		if err != nil || d == nil || !d.Persistent {
			return err
		}
		left := settleRestore(ctx, c, m.id, d.UUID)
		m.finished(sms.MachineJob{Verb: sms.MachineRestore, UUID: d.UUID, Name: d.Name, Warnings: left})
	}
	return nil
}

// finished notes a job that is over.
func (m *machine) finished(j sms.MachineJob) {
	m.jobMu.Lock()
	defer m.jobMu.Unlock()
	j.Finished = true
	m.job = &j
}
