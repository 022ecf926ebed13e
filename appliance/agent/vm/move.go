package vm

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

// move copies the disks of a running machine into a storage pool.
func (ms *Machines) move(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder) error {
	if m.uuid == "" || m.relays == nil {
		return errors.New("the machine does not run from exports of this agent")
	}
	format, err := formatOf(o)
	if err != nil {
		return err
	}
	if _, err := c.Domain(ctx, m.uuid, ""); err != nil {
		return err
	}
	w := mover{ms: ms, m: m, uuid: m.uuid, sizes: m.relays.sizes(), pool: o.Pool, format: format}
	return ms.startJob(m, sms.MachineMove, w.run)
}

// mover is one move.
type mover struct {
	ms           *Machines
	m            *machine
	uuid         string
	sizes        map[string]int64 // of the disks, by target
	pool, format string
}

// run copies all disks before the machine is told to use the first copy, so that it never has some here and some there for
// longer than the changing over takes. It begins by removing what a move left that was killed, and goes on with the disks
// that this one had not changed over.
func (w mover) run(ctx context.Context, c *libvirt.Conn, j *jobMeter) error {
	d, err := c.Domain(ctx, w.uuid, "")
	if err != nil {
		return err
	}
	var rest []string
	for _, disk := range d.Disks {
		if path.Dir(disk.Socket) == w.ms.socketDir(w.m.id) {
			rest = append(rest, disk.Target)
		}
	}
	if err := w.undo(ctx, c, d, rest); err != nil {
		return fmt.Errorf("remove what an earlier move left: %w", err)
	}
	images, err := w.copy(ctx, c, d, rest, j)
	if err != nil {
		return errors.Join(err, w.undo(context.WithoutCancel(ctx), c, d, rest))
	}
	return w.changeOver(context.WithoutCancel(ctx), c, d, rest, images)
}

// copy makes the images, which follow the disks from then on.
func (w mover) copy(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, rest []string, j *jobMeter) (images []string, err error) {
	done, total := uint64(0), uint64(0)
	for _, target := range rest {
		total += uint64(w.sizes[target])
	}
	for _, target := range rest {
		size := w.sizes[target]
		v, err := c.CreateVolume(ctx, w.pool, imageName(d.Name, target, w.m.id, w.format), w.format, size)
		if err != nil {
			return nil, err
		}
		progress := func(p libvirt.BlockProgress) { j.set(target, done+min(p.Done, uint64(size)), total) }
		if err := copyDisk(ctx, c, d, target, v.File, progress); err != nil {
			return nil, err
		}
		images = append(images, v.File.Path)
		done += uint64(size)
	}
	j.set("", total, total)
	return images, nil
}

// A socket of an export that has a new owner is noticed by QEMU when a read fails; it then connects beside what goes on, and fails
// every read until that is done. Each failure ends a copy.
const (
	copyStarts = 6 // without a byte copied
	copyTries  = 3
	copyPause  = 500 * time.Millisecond // after the first start that fails; twice as long after each further one
)

func copyDisk(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, target string, to libvirt.FileDisk, progress func(libvirt.BlockProgress)) error {
	for starts, tries := 0, 0; ; {
		begun := false
		err := c.CopyDisk(ctx, d, target, to, func(p libvirt.BlockProgress) {
			begun = begun || p.Done > 0
			progress(p)
		})
		if starts++; begun {
			starts, tries = 0, tries+1
		}
		if err == nil || starts == copyStarts || tries == copyTries {
			return err
		}
		select {
		case <-time.After(copyPause << starts):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// changeOver has the machine use its copies, and makes it stay on them.
//
// INVARIANT: while a disk's newest data may be in an image that no definition names, the changeover is kept.
func (w mover) changeOver(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, rest, images []string) error {
	if len(rest) > 0 {
		if err := w.ms.keepChangeover(w.m.id, changeover{Pool: w.pool, Images: images}); err != nil {
			return errors.Join(err, w.undo(ctx, c, d, rest))
		}
	}
	for i, target := range rest {
		err := c.Pivot(ctx, d, target)
		if err == nil {
			continue
		}
		now, lost := c.Domain(ctx, w.uuid, "")
		if lost != nil || !now.Active() {
			return errors.Join(err, lost, stoppedWhile(w.pool, images)) // the images stay
		}
		err = errors.Join(err, w.undo(ctx, c, d, rest[i:]))
		if !onImages(w.m.id, now) {
			err = errors.Join(err, w.ms.dropChangeover(w.m.id))
		}
		return err
	}
	return w.ms.settle(ctx, c, w.m.id, d, changeover{Pool: w.pool, Images: images})
}

// settle makes a machine stay whose disks are all changed over.
func (ms *Machines) settle(ctx context.Context, c *libvirt.Conn, id string, d *libvirt.Domain, n changeover) (err error) {
	if n.XML, err = c.Definition(ctx, d); err != nil {
		return err
	}
	if err := ms.keepChangeover(id, n); err != nil {
		return err
	}
	if _, err := c.Define(ctx, n.XML); err != nil {
		return err
	}
	return ms.dropChangeover(id)
}

// undo ends the copying of disks, and removes the copies that the machine does not use.
func (w mover) undo(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, targets []string) error {
	for _, target := range targets {
		if err := c.AbortCopy(ctx, d, target); err != nil {
			return err
		}
	}
	return sweepImages(ctx, c, w.pool, w.m.id)
}

func stoppedWhile(pool string, images []string) error {
	return fmt.Errorf("the machine stopped while its disks were changed over to their copies in storage pool %s: %s may have what the machine wrote "+
		"last, and the overlays may not; they stay until the machine is reset or dropped", pool, strings.Join(images, ", "))
}

// takeUpMove finds out how far a move is that this agent knows nothing of. over: there is nothing left to attach.
func (ms *Machines) takeUpMove(ctx context.Context, c *libvirt.Conn, m *machine, o sms.MachineOrder, d *libvirt.Domain) (over bool, err error) {
	if m.currentJob() != nil {
		return d == nil, nil
	}
	kept, err := ms.changeover(m.id)
	switch {
	case err != nil:
		return false, err
	case d == nil && kept == nil && o.Expect == sms.MachineMove:
		if err := sweepImages(ctx, c, o.Pool, m.id); err != nil {
			return false, err
		}
		m.finished(sms.MachineJob{Verb: sms.MachineMove, Error: "the machine stopped while it was moved"})
		return true, nil
	case d == nil && kept != nil && kept.XML == "":
		m.finished(sms.MachineJob{Verb: sms.MachineMove, Error: stoppedWhile(kept.Pool, kept.Images).Error()})
		return true, nil
	case d == nil && kept != nil: // only the definition was missing
		if d, err = c.Define(ctx, kept.XML); err != nil {
			return false, err
		}
		m.uuid = d.UUID
		err = ms.dropChangeover(m.id)
	case d == nil:
		return true, nil
	case ms.onExports(m.id, d) || !onImages(m.id, d):
		return false, nil
	case !d.Persistent:
		m.uuid = d.UUID
		err = ms.settle(ctx, c, m.id, d, changeover{Pool: o.Pool})
	default:
		m.uuid = d.UUID
		err = ms.dropChangeover(m.id)
	}
	if err != nil {
		return false, err
	}
	m.finished(sms.MachineJob{Verb: sms.MachineMove})
	return true, nil
}
