package machines

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/appliance/sms"
)

// keep looks after a machine until it is over, or the Manager is closed.
func (x *machine) keep() {
	ctx := x.m.ctx
	var failures int
	var said string // of the last failure
	for pause := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-x.kick:
		case <-time.After(pause):
		}
		if !x.lock(ctx) {
			return
		}
		err := x.step(ctx)
		x.unlock()
		switch {
		case x.info().Over || ctx.Err() != nil:
			return
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				x.m.log.Warn("look after a machine", "machine", x.id, "state", x.snapshot().State, "error", err)
			}
			pause = min(x.m.o.Pace.Retry<<min(failures, 10), x.m.o.Pace.Running)
			failures++
		default:
			failures, said, pause = 0, "", x.pause()
		}
	}
}

func (x *machine) pause() time.Duration {
	switch x.snapshot().State {
	case Moving, Restoring, Booting:
		return x.m.o.Pace.Job
	}
	return x.m.o.Pace.Running
}

// step does what there is to do for the machine now. An error has it tried again.
func (x *machine) step(ctx context.Context) error {
	r := x.snapshot()
	switch {
	case x.info().Over:
		return nil
	case r.State.ending():
		return x.takeBack(ctx, false)
	case r.State == Stopped:
		return x.letGo(ctx)
	case r.State == Booting && !r.Ordered:
		return x.boot(ctx)
	case r.State == Restoring && !r.Ordered:
		return x.restore(ctx)
	}
	err := x.look(ctx)
	if err != nil && x.unclean() {
		err = errUnclean
	}
	if err != nil && ctx.Err() == nil {
		x.trouble(err)
	}
	return err
}

var errUnclean = errors.New("the appliance lost power while the machine ran, and what it had written and not flushed may be lost: it must be reset")

// define reads the saved machine and says what becomes of it.
func (x *machine) define(ctx context.Context) (*sms.MachineDefinition, error) {
	r := x.snapshot()
	s, err := x.m.read(ctx, r.Saveset)
	if err != nil {
		return nil, err
	}
	d := r.Definition
	nvram, packed, err := orderable(s.nvram)
	if err != nil {
		return nil, err
	}
	return &sms.MachineDefinition{XML: s.xml, NVRAM: nvram, NVRAMGzip: packed, TPM: s.tpm, Name: r.Name, NewIdentity: d.NewIdentity, Network: d.Network, NoNetwork: d.NoNetwork,
		Paused: d.Paused, Start: d.Start, Overwrite: d.Overwrite}, nil
}

// maxPlainNVRAM is how many bytes of a firmware's variables fit into an order beside the definition: OVMF's have 528 KiB at most.
const maxPlainNVRAM = 528 << 10

// orderable returns variables as they go into an order; larger ones (AAVMF's have 64 MiB, most of them zeros) packed.
func orderable(nvram []byte) (plain, packed []byte, err error) {
	if len(nvram) <= maxPlainNVRAM {
		return nvram, nil, nil
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err = w.Write(nvram)
	err = errors.Join(err, w.Close())
	return nil, b.Bytes(), err
}

func (x *machine) boot(ctx context.Context) error {
	def, err := x.define(ctx)
	if err == nil {
		x.change(func(r *record) { r.Ordered = true })
		var reply *sms.MachineReply
		reply, err = x.order(ctx, sms.MachineOrder{Verb: sms.MachineBoot, Disks: ordered(x.snapshot().Disks), Definition: def}, bootPatience)
		if err == nil {
			x.runs(reply, true)
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err() // the next start asks the host what became of it
	}
	x.fail(err)
	return nil
}

// runs notes that the machine runs, and whether the agent is known to have its exports.
func (x *machine) runs(reply *sms.MachineReply, attached bool) {
	x.mu.Lock()
	x.attached, x.state = attached, reply.State
	x.mu.Unlock()
	x.change(func(r *record) {
		r.State, r.UUID, r.Problem = Running, reply.UUID, ""
		if reply.Name != "" {
			r.Name = reply.Name
		}
		if len(reply.Warnings) > 0 {
			r.Warnings = reply.Warnings
		}
	})
	x.m.log.Info("machine runs", "machine", x.id, "name", reply.Name, "uuid", reply.UUID)
}

// fail has everything taken back that was made for the machine.
func (x *machine) fail(err error) {
	x.m.log.Error("machine failed", "machine", x.id, "state", x.snapshot().State, "error", err)
	x.change(func(r *record) { r.State, r.Problem = Failed, err.Error() })
	x.wake()
}

func (x *machine) restore(ctx context.Context) error {
	def, err := x.define(ctx)
	if err == nil {
		x.change(func(r *record) { r.Ordered = true })
		r := x.snapshot()
		_, err = x.order(ctx, sms.MachineOrder{Verb: sms.MachineRestore, Disks: ordered(r.Disks), Definition: def}, bootPatience)
		if err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	x.fail(err)
	return nil
}

// expected is the work on a machine that the agent should know of.
var expected = map[State]sms.MachineVerb{Booting: sms.MachineBoot, Moving: sms.MachineMove, Restoring: sms.MachineRestore}

// look asks the host how the machine is. An agent that does not know it is told.
func (x *machine) look(ctx context.Context) error {
	r := x.snapshot()
	o := sms.MachineOrder{Verb: sms.MachineState, Expect: expected[r.State]}
	x.mu.Lock()
	attach, conns := !x.attached && (r.State == Running || r.State == Moving), x.conns
	x.mu.Unlock()
	if attach {
		o.Verb, o.Disks = sms.MachineAttach, ordered(r.Disks)
	}
	reply, err := x.order(ctx, o, orderPatience)
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.state = reply.State
	if attach && x.conns == conns {
		x.attached = true
	}
	x.mu.Unlock()
	x.setJob(reply.Job)
	switch r.State {
	case Booting:
		x.booted(reply)
	case Restoring:
		x.restoring(reply.Job)
	default:
		x.running(r, reply)
	}
	return nil
}

func (x *machine) setJob(j *sms.MachineJob) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.job = nil
	if j != nil {
		x.job = &Job{Disk: j.Disk, Done: int64(j.Done), Total: int64(j.Total)}
	}
}

// booted takes up a boot whose answer nobody here has heard.
func (x *machine) booted(reply *sms.MachineReply) {
	if reply.UUID == "" {
		x.fail(errors.New("the agent or the appliance was stopped while the host booted it"))
		return
	}
	x.runs(reply, false)
	x.wake()
}

func (x *machine) restoring(j *sms.MachineJob) {
	switch {
	case j == nil:
		x.fail(errors.New("the restore was cut off: the agent or the appliance was stopped"))
	case !j.Finished:
		x.trouble(nil)
	case j.Error != "":
		x.fail(errors.New(j.Error))
	default:
		x.change(func(r *record) {
			r.State, r.UUID, r.Problem, r.Name, r.Warnings = Restored, j.UUID, "", orElse(j.Name, r.Name), j.Warnings
		})
		x.wake()
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// running holds what the host says against what is known of a machine that runs or moves.
func (x *machine) running(r record, reply *sms.MachineReply) {
	j := reply.Job
	moving := j != nil && j.Verb == sms.MachineMove
	problem := ""
	if moving && j.Error != "" {
		problem = "the move failed: " + j.Error
	}
	switch {
	case moving && j.Finished && j.Error == "":
		x.change(func(r *record) { r.State, r.Problem = Moved, "" })
		x.wake()
	case reply.State == "" || reply.State == "shut off":
		x.change(func(r *record) { r.State, r.UUID, r.Problem = Stopped, "", problem })
		x.wake()
	case moving && !j.Finished:
		x.change(func(r *record) { r.State, r.Problem = Moving, "" })
	case moving:
		x.change(func(r *record) { r.State, r.Problem = Running, problem })
	case r.State == Moving:
		x.change(func(r *record) { r.State, r.Problem = Running, "the move was cut off: the agent was stopped" })
	default:
		x.trouble(nil)
	}
}

// letGo has the host give the exports of a machine back that has stopped, so that they can be committed.
func (x *machine) letGo(ctx context.Context) error {
	x.mu.Lock()
	attached := x.attached
	x.mu.Unlock()
	if !attached {
		return nil
	}
	if _, err := x.order(ctx, sms.MachineOrder{Verb: sms.MachineRelease}, orderPatience); err != nil {
		return err
	}
	x.forgetAttached()
	return nil
}

// takeBack takes back what was made for a machine that has come to its end, on the host first.
func (x *machine) takeBack(ctx context.Context, force bool) error {
	o := sms.MachineOrder{Verb: sms.MachineDrop}
	if s := x.snapshot().State; s == Moved || s == Restored {
		o.Verb = sms.MachineRelease
	}
	if _, err := x.order(ctx, o, orderPatience); err != nil && !force {
		return fmt.Errorf("take back what was made for machine %s: %w", x.id, err)
	}
	return x.end(ctx)
}

// end drops the exports and forgets the machine.
func (x *machine) end(ctx context.Context) error {
	if err := x.dropExports(ctx); err != nil {
		return err
	}
	r := x.snapshot()
	if err := r.remove(x.m.o.Dir); err != nil {
		return failf(Other, err, "forget machine %s", x.id)
	}
	x.m.forget(x)
	return nil
}
