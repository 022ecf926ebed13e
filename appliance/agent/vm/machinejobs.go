package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

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

func (r *relays) sizes() map[string]int64 {
	all := map[string]int64{}
	for target, x := range r.by {
		all[target] = x.dev.Size()
	}
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
