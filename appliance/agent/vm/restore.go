package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"coffer/appliance/sms"
	"coffer/images"
	"coffer/images/libvirt"
	"coffer/images/qemuimg"
)

// restore makes a machine in a storage pool.
func (ms *Machines) restore(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) error {
	if o.Definition == nil {
		return errors.New("the order has no definition")
	}
	format, err := formatOf(o)
	if err != nil {
		return err
	}
	if err := ms.openRelays(ctx, c, m, o.Disks); err != nil {
		return err
	}
	err = ms.startJob(m, sms.MachineRestore, func(ctx context.Context, c *libvirt.Conn, j *jobMeter) error {
		d, lost, err := m.restoreAll(ctx, c, o, format, j)
		if d != nil {
			m.jobMu.Lock()
			defer m.jobMu.Unlock()
			j.job.UUID, j.job.Name, j.job.Warnings = d.UUID, d.Name, lost
		}
		return err
	})
	if err != nil {
		return errors.Join(err, m.undo(context.WithoutCancel(ctx), c))
	}
	return nil
}

// restoreAll copies the disks, defines the machine and starts it. An old machine goes when the new one is complete. What fails
// leaves the host as it was.
func (m *machine) restoreAll(ctx context.Context, c *libvirt.Conn, o sms.MachineOrder, format string, j *jobMeter) (_ *libvirt.Domain, lost []string, err error) {
	undo := context.WithoutCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, sweepImages(undo, c, o.Pool, m.id), m.unplace(undo, c))
		}
	}()
	name, old, err := oldMachine(ctx, c, o.Definition)
	if err != nil {
		return nil, nil, err
	}
	def := definition(o.Definition)
	if def.Files, err = m.copyDisks(ctx, c, o.Pool, name, format, j); err != nil {
		return nil, nil, err
	}
	p, err := clearPlace(undo, c, m.id, o.Definition, old)
	if err != nil {
		return nil, nil, err
	}
	xml, uuid, lost, err := m.place(undo, c, o.Definition, def)
	if err != nil {
		return nil, nil, errors.Join(err, p.restore(undo, nil))
	}
	d, err := p.take(undo, xml, o.Definition.Start)
	if err != nil {
		return nil, nil, err
	}
	m.nvram = "" // it is the machine's now
	return d, append(lost, settleRestore(undo, c, m.id, uuid)...), nil
}

// settleRestore removes what is not needed any more once a restored machine is there. What cannot be removed is told.
func settleRestore(ctx context.Context, c *libvirt.Conn, id, uuid string) (left []string) {
	if err := c.TPMs().Settle(ctx, uuid, id); err != nil {
		left = append(left, err.Error())
	}
	old, err := asideOf(ctx, c, id)
	if err == nil && old != nil {
		err = c.Undefine(ctx, old)
	}
	if err != nil {
		left = append(left, "the machine whose place it took is still defined: "+err.Error())
	}
	return left
}

// copyDisks makes the images, by a qemu-img of the host.
func (m *machine) copyDisks(ctx context.Context, c *libvirt.Conn, pool, name, format string, j *jobMeter) (map[string]libvirt.FileDisk, error) {
	files := map[string]libvirt.FileDisk{}
	done, total := uint64(0), m.relays.size()
	exports := m.relays.disks()
	for _, target := range m.relays.targets() {
		x, at := m.relays.by[target], exports[target]
		v, err := c.CreateVolume(ctx, pool, imageName(name, target, m.id, format), format, x.dev.Size())
		if err != nil {
			return nil, err
		}
		err = qemuimg.Convert(ctx, qemuimg.NBD(at.Socket, at.Export), qemuimg.Image{Path: v.File.Path, Format: images.Format(v.File.Format)},
			qemuimg.Options{Existing: true, Command: c.Commands(), Progress: func(share float64) { j.set(target, done+uint64(share*float64(x.dev.Size())), total) }})
		if err != nil {
			return nil, err
		}
		files[target] = v.File
		done += uint64(x.dev.Size())
	}
	j.set("", total, total)
	return files, nil
}

// oldPlace is where an old machine is that a new one replaces.
type oldPlace struct {
	c     *libvirt.Conn
	id    string
	old   *libvirt.Domain // nil: none
	name  string          // of the old one
	xml   string          // of the old one
	ran   bool            // it has been stopped
	aside bool            // it has another name now: the new one is not defined over it
	moved bool            // it has the new one's name now, and will be defined over
}

// clearPlace stops the old machine, where there is one, and sees to it that the new one can be defined. libvirt takes a
// definition for that of a machine that is there if both name and UUID are the same, and refuses it if one of them is.
func clearPlace(ctx context.Context, c *libvirt.Conn, id string, d *sms.MachineDefinition, old *libvirt.Domain) (*oldPlace, error) {
	p := &oldPlace{c: c, id: id, old: old}
	if old == nil {
		return p, nil
	}
	name, uuid, err := libvirt.Identity(d.XML)
	if err == nil {
		err = p.clear(ctx, cmp.Or(d.Name, name), uuid, d.NewIdentity)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take the old machine's place: %w", err), p.restore(ctx, nil))
	}
	return p, nil
}

func (p *oldPlace) clear(ctx context.Context, name, uuid string, newIdentity bool) (err error) {
	if p.xml, err = p.c.XML(ctx, p.old); err != nil {
		return err
	}
	p.name = p.old.Name
	if p.old.Active() {
		if err := p.c.Destroy(ctx, p.old); err != nil {
			return err
		}
		p.ran = true
	}
	switch {
	case !p.old.Persistent: // it is gone
		return nil
	case newIdentity || p.old.UUID != uuid:
		err = p.c.Rename(ctx, p.old, setAside(p.name, p.id))
		p.aside = err == nil
	case p.old.Name != name:
		err = p.c.Rename(ctx, p.old, name)
		p.moved = err == nil
	default:
		err = p.c.ForgetCheckpoints(ctx, p.old)
	}
	return err
}

// take defines the new machine, and starts it where it should be. What fails puts the old one back, and starts it again if it
// ran.
func (p *oldPlace) take(ctx context.Context, xml string, start bool) (*libvirt.Domain, error) {
	d, err := p.c.Define(ctx, xml)
	if err == nil && start {
		err = p.c.Boot(ctx, d)
	}
	if err != nil {
		return nil, errors.Join(err, p.restore(ctx, d))
	}
	return d, nil
}

// restore puts the old machine back; d is the new one, nil where it was not defined.
func (p *oldPlace) restore(ctx context.Context, d *libvirt.Domain) error {
	var faults []error
	note := func(err error) { faults = append(faults, err) }
	if d != nil {
		note(p.c.Destroy(ctx, d))
	}
	over := d != nil && p.old != nil && p.old.Persistent && !p.aside // the new definition is in the old one's place
	if d != nil && !over {
		note(p.c.Undefine(ctx, d))
	}
	if p.aside || p.moved {
		note(p.c.Rename(ctx, p.old, p.name))
	}
	if over {
		_, err := p.c.Define(ctx, p.xml)
		note(err)
	}
	note(p.c.TPMs().Sweep(ctx, p.id)) // before it is started
	switch {
	case !p.ran:
	case p.old.Persistent:
		note(p.c.Boot(ctx, p.old))
	default:
		_, err := p.c.Start(ctx, p.xml, false)
		note(err)
	}
	return errors.Join(faults...)
}

// oldMachine finds the machine whose place the new one takes; nil where there is none. One that may not go is an error.
func oldMachine(ctx context.Context, c *libvirt.Conn, d *sms.MachineDefinition) (name string, old *libvirt.Domain, err error) {
	name, uuid, err := libvirt.Identity(d.XML)
	if err != nil {
		return "", nil, err
	}
	if d.Name != "" {
		name = d.Name
	}
	if d.NewIdentity {
		uuid = ""
	}
	for _, by := range [][2]string{{uuid, ""}, {"", name}} {
		if by == [2]string{} {
			continue
		}
		found, err := c.Domain(ctx, by[0], by[1])
		switch {
		case libvirt.KindOf(err) == libvirt.KindNoDomain:
			continue
		case err != nil:
			return "", nil, err
		case !d.Overwrite:
			return "", nil, fmt.Errorf("machine %s (%s) is there already: give the new one another name and a new identity, or order it to take its place", found.Name, found.UUID)
		case old != nil && old.UUID != found.UUID:
			return "", nil, fmt.Errorf("machines %s and %s are both in the way: one has the identity, the other the name", old.Name, found.Name)
		}
		old = found
	}
	return name, old, nil
}
