package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"coffer/appliance/sms"
	"coffer/images"
	"coffer/images/libvirt"
	"coffer/images/qemuimg"
)

// nvramDir is where libvirt keeps the variables of firmwares: QEMU may read and write there.
const nvramDir = "/var/lib/libvirt/qemu/nvram"

func nvramPath(id string) string { return nvramDir + "/coffer-" + id + "_VARS.fd" }

// placeNVRAM writes the saved variables of the firmware to a file of the machine's own.
func (m *machine) placeNVRAM(d *sms.MachineDefinition, def *libvirt.Machine) error {
	if len(d.NVRAM) == 0 {
		return nil
	}
	if err := os.MkdirAll(nvramDir, 0o755); err != nil {
		return err
	}
	m.nvram = nvramPath(m.id)
	if err := os.WriteFile(m.nvram, d.NVRAM, 0o600); err != nil {
		return err
	}
	if m.relays.chown {
		if err := os.Chown(m.nvram, m.relays.user.UID, m.relays.user.GID); err != nil {
			return err
		}
	}
	def.NVRAM = m.nvram
	return nil
}

func (m *machine) removeNVRAM() error {
	if m.nvram == "" {
		return nil
	}
	err := os.Remove(m.nvram)
	m.nvram = ""
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// startJob runs a move or restore in a goroutine of its own.
func (ms *Machines) startJob(m *machine, verb sms.MachineVerb, work func(ctx context.Context, c *libvirt.Conn, j *jobMeter) error) error {
	m.jobMu.Lock()
	defer m.jobMu.Unlock()
	if m.job != nil && !m.job.Finished {
		return fmt.Errorf("a %s of this machine is going on", m.job.Verb)
	}
	u, err := libvirt.ParseURI(m.uri)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	m.job, m.cancel, m.done = &sms.MachineJob{Verb: verb}, cancel, make(chan struct{})
	job, done := m.job, m.done
	ms.work.Go(func() {
		defer close(done)
		defer cancel(nil)
		c, err := libvirt.Connect(ctx, u)
		if err == nil {
			err = errors.Join(work(ctx, c, &jobMeter{m, job}), c.Close())
		}
		m.jobMu.Lock()
		defer m.jobMu.Unlock()
		if job.Finished = true; err != nil {
			job.Error = err.Error()
			m.log.Error("job of a machine", "verb", verb, "error", err)
		}
	})
	return nil
}

// endJob cancels the job and waits for its end.
func (m *machine) endJob(why error) {
	m.jobMu.Lock()
	cancel, done := m.cancel, m.done
	m.jobMu.Unlock()
	if done == nil {
		return
	}
	cancel(why)
	<-done
}

// jobMeter takes the progress of a job.
type jobMeter struct {
	m   *machine
	job *sms.MachineJob
}

func (j *jobMeter) set(disk string, done, total uint64) {
	j.m.jobMu.Lock()
	defer j.m.jobMu.Unlock()
	j.job.Disk, j.job.Done, j.job.Total = disk, done, total
}

func (r *relays) targets() []string {
	var all []string
	for target := range r.by {
		all = append(all, target)
	}
	slices.Sort(all)
	return all
}

func (r *relays) size() (n uint64) {
	for _, x := range r.by {
		n += uint64(x.dev.Size())
	}
	return n
}

func formatOf(o sms.MachineOrder) (string, error) {
	switch o.Format {
	case "":
		return "qcow2", nil
	case "qcow2", "raw":
		return o.Format, nil
	}
	return "", fmt.Errorf("images of format %q are not made: qcow2 and raw are", o.Format)
}

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
	r, uuid := m.relays, m.uuid
	return ms.startJob(m, sms.MachineMove, func(ctx context.Context, c *libvirt.Conn, j *jobMeter) error {
		d, err := c.Domain(ctx, uuid, "")
		if err != nil {
			return err
		}
		return moveDisks(ctx, c, d, r, o.Pool, format, j)
	})
}

// moveDisks copies all disks before the machine is told to use the first copy, so that it never has some here and some there
// for longer than the changing over takes.
func moveDisks(ctx context.Context, c *libvirt.Conn, d *libvirt.Domain, r *relays, pool, format string, j *jobMeter) (err error) {
	var made []*libvirt.Volume
	var copied, pivoted []string
	defer func() {
		if err == nil {
			return
		}
		undo := context.WithoutCancel(ctx)
		for _, target := range copied {
			if !slices.Contains(pivoted, target) {
				err = errors.Join(err, c.AbortCopy(undo, d, target))
			}
		}
		for i, v := range made {
			if i >= len(pivoted) {
				err = errors.Join(err, c.DeleteVolume(undo, v))
			}
		}
	}()
	done, total := uint64(0), r.size()
	for _, target := range r.targets() {
		size := r.by[target].dev.Size()
		v, err := c.CreateVolume(ctx, pool, d.Name+"-"+target+"."+format, format, size)
		if err != nil {
			return err
		}
		made, copied = append(made, v), append(copied, target)
		err = c.CopyDisk(ctx, d, target, v.File, func(p libvirt.BlockProgress) { j.set(target, done+min(p.Done, uint64(size)), total) })
		if err != nil {
			return err
		}
		done += uint64(size)
	}
	for _, target := range copied {
		if err := c.Pivot(ctx, d, target); err != nil {
			return err
		}
		pivoted = append(pivoted, target)
	}
	j.set("", total, total)
	return c.Persist(context.WithoutCancel(ctx), d)
}

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
		d, err := m.restoreAll(ctx, c, o, format, j)
		if d != nil {
			m.jobMu.Lock()
			defer m.jobMu.Unlock()
			j.job.UUID, j.job.Name = d.UUID, d.Name
		}
		return err
	})
	if err != nil {
		return errors.Join(err, m.undo())
	}
	return nil
}

// restoreAll copies the disks, defines the machine and starts it. An old machine goes when the new one is complete.
func (m *machine) restoreAll(ctx context.Context, c *libvirt.Conn, o sms.MachineOrder, format string, j *jobMeter) (_ *libvirt.Domain, err error) {
	def := definition(o.Definition)
	def.Files = map[string]libvirt.FileDisk{}
	var made []*libvirt.Volume
	defined := false
	defer func() {
		if err == nil || defined {
			return
		}
		undo := context.WithoutCancel(ctx)
		for _, v := range made {
			err = errors.Join(err, c.DeleteVolume(undo, v))
		}
		err = errors.Join(err, m.removeNVRAM())
	}()
	name, old, err := oldMachine(ctx, c, o.Definition)
	if err != nil {
		return nil, err
	}
	done, total := uint64(0), m.relays.size()
	for _, target := range m.relays.targets() {
		x := m.relays.by[target]
		v, err := c.CreateVolume(ctx, o.Pool, fmt.Sprintf("%s-%s-%s.%s", name, m.id[:6], target, format), format, x.dev.Size())
		if err != nil {
			return nil, err
		}
		made = append(made, v)
		err = qemuimg.Convert(ctx, qemuimg.NBD(x.socket, x.export), qemuimg.Image{Path: v.File.Path, Format: images.Format(v.File.Format)},
			qemuimg.Options{Existing: true, Progress: func(share float64) { j.set(target, done+uint64(share*float64(x.dev.Size())), total) }})
		if err != nil {
			return nil, err
		}
		def.Files[target] = v.File
		done += uint64(x.dev.Size())
	}
	j.set("", total, total)
	if err := m.placeNVRAM(o.Definition, &def); err != nil {
		return nil, err
	}
	xml, _, err := def.Definition()
	if err != nil {
		return nil, err
	}
	if old != nil {
		if err := errors.Join(c.Destroy(ctx, old), c.Undefine(ctx, old)); err != nil {
			return nil, fmt.Errorf("take the old machine's place: %w", err)
		}
	}
	d, err := c.Define(ctx, xml)
	if err != nil {
		return nil, err
	}
	defined = true
	m.nvram = "" // it is the machine's now
	if o.Definition.Start {
		return d, c.Boot(ctx, d)
	}
	return d, nil
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
