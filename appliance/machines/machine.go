package machines

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"coffer/appliance/exports"
	"coffer/appliance/sms"
)

// Patience with agents.
const (
	bootPatience  = 5 * time.Minute // a host that is busy starts machines slowly
	orderPatience = 50 * time.Second
)

// machine is one of them.
type machine struct {
	m       *Manager
	id      string
	created time.Time
	turn    chan struct{} // holds one token: whoever has it works on the machine
	kick    chan struct{} // wakes keep

	mu       sync.Mutex // guards all below; never held over I/O
	rec      record
	attached bool // the agent that is connected knows it
	conns    int  // connections of the agent that were seen
	state    string
	job      *Job
	gone     bool
}

func newMachine(m *Manager, r record) *machine {
	return &machine{m: m, id: r.ID, created: r.Created, turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), rec: r}
}

func (x *machine) lock(ctx context.Context) bool {
	select {
	case x.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (x *machine) unlock() { <-x.turn }

func (x *machine) wake() {
	select {
	case x.kick <- struct{}{}:
	default: // it wakes already
	}
}

func (x *machine) host() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec.Host
}

// forgetAttached notes that the agent may know nothing of the machine.
func (x *machine) forgetAttached() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.attached = false
	x.conns++
}

func (x *machine) info() Info {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := &x.rec
	i := Info{ID: r.ID, Name: r.Name, UUID: r.UUID, State: r.State, Over: x.gone, Saveset: r.Saveset, Client: r.Client, Task: r.Task, Host: r.Host,
		URI: r.URI, HostState: x.state, Disks: slices.Clone(r.Disks), Pool: r.Pool, Problem: r.Problem, Warnings: slices.Clone(r.Warnings),
		Created: r.Created, By: r.By}
	if x.job != nil {
		j := *x.job
		i.Job = &j
	}
	return i
}

// snapshot returns the record as it is; only who has the turn changes it.
func (x *machine) snapshot() record {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rec
}

// change changes the record, durably. What cannot be kept is told, and goes on: the next change tries again.
func (x *machine) change(f func(*record)) {
	x.mu.Lock()
	was := x.rec
	f(&x.rec)
	r := x.rec
	x.mu.Unlock()
	if reflect.DeepEqual(was, r) {
		return
	}
	if err := r.write(x.m.o.Dir); err != nil {
		x.m.log.Error("machine not kept", "machine", x.id, "error", err)
	}
}

// trouble notes what went wrong; nil: nothing.
func (x *machine) trouble(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	x.change(func(r *record) { r.Problem = text })
}

// order sends an order about the machine.
func (x *machine) order(ctx context.Context, o sms.MachineOrder, patience time.Duration) (*sms.MachineReply, error) {
	r := x.snapshot()
	o.ID, o.URI, o.UUID = r.ID, r.URI, r.UUID
	o.Pool, o.Format = r.Pool, r.Format
	if !x.m.o.Agents.Online(r.Host) {
		return nil, failf(Offline, nil, "the agent of client %s is not connected", r.Host)
	}
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	reply, err := x.m.o.Agents.Order(ctx, r.Host, o)
	if err == nil && reply == nil {
		err = errors.New("its answer is empty")
	}
	if err != nil {
		return nil, failf(Refused, err, "client %s: %s", r.Host, o.Verb)
	}
	return reply, nil
}

// export makes the exports of a new machine.
func (x *machine) export(ctx context.Context, s *saved, overlay bool) error {
	purpose := "machine " + x.rec.Name + " is restored"
	if overlay {
		purpose = "machine " + x.rec.Name + " runs from it"
	}
	for _, d := range s.disks {
		i, err := x.m.o.Exports.Create(ctx, exports.Spec{Saveset: x.rec.Saveset, Disk: d.file, Overlay: overlay, Allow: []string{x.rec.Host},
			Purpose: purpose, By: x.rec.By, Machine: x.id})
		if err != nil {
			return err
		}
		x.rec.Disks = append(x.rec.Disks, Disk{Target: d.target, Export: i.ID, File: d.file, Bytes: i.Size})
	}
	if err := x.rec.write(x.m.o.Dir); err != nil {
		return failf(Other, err, "keep machine %s", x.id)
	}
	return nil
}

// dropExports drops all exports of the machine, those that its record does not have, too.
func (x *machine) dropExports(ctx context.Context) error {
	var errs []error
	for _, i := range x.m.o.Exports.List() {
		if i.Machine != x.id {
			continue
		}
		if err := x.m.o.Exports.Drop(ctx, i.ID, true); err != nil && exports.KindOf(err) != exports.NotFound {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unclean tells whether a loss of power cost the machine what was not flushed.
func (x *machine) unclean() bool {
	return slices.ContainsFunc(x.m.o.Exports.List(), func(i exports.Info) bool { return i.Machine == x.id && i.Unclean })
}

func (x *machine) move(ctx context.Context, pool, format string) error {
	if r := x.snapshot(); r.State != Running {
		return failf(Conflict, nil, "machine %s is %s: one that runs can be moved", r.Name, r.State)
	}
	if err := x.look(ctx); err != nil { // the agent may not know it yet
		return err
	}
	if r := x.snapshot(); r.State != Running {
		return failf(Conflict, nil, "machine %s is %s: one that runs can be moved", r.Name, r.State)
	}
	// It is noted first, so that what is made for it on the host is found again.
	x.change(func(r *record) { r.State, r.Pool, r.Format, r.Problem = Moving, pool, format, "" })
	x.setJob(nil)
	if _, err := x.order(ctx, sms.MachineOrder{Verb: sms.MachineMove}, orderPatience); err != nil {
		x.change(func(r *record) { r.State = Running }) // where it began all the same, the next look sees it
		return err
	}
	return nil
}

func (x *machine) reset(ctx context.Context) error {
	if r := x.snapshot(); r.State != Running && r.State != Stopped {
		return failf(Conflict, nil, "machine %s is %s: one that runs or has stopped can be reset", r.Name, r.State)
	}
	if _, err := x.order(ctx, sms.MachineOrder{Verb: sms.MachineDrop}, orderPatience); err != nil {
		return err
	}
	x.change(func(r *record) { r.State, r.Ordered, r.UUID, r.Problem = Booting, false, "", "" })
	for _, d := range x.snapshot().Disks {
		if err := x.m.o.Exports.Settle(ctx, d.Export); err != nil {
			return fmt.Errorf("take the overlay of disk %s as it is: %w", d.Target, err)
		}
	}
	return nil
}

func (x *machine) drop(ctx context.Context, force bool) error {
	if r := x.snapshot(); r.State == Restoring {
		if err := x.look(ctx); err != nil && !force { // it may just be complete
			return err
		}
	}
	if r := x.snapshot(); !r.State.ending() {
		if _, err := x.order(ctx, sms.MachineOrder{Verb: sms.MachineDrop}, orderPatience); err != nil && !force {
			return err
		}
		x.change(func(r *record) { r.State, r.UUID, r.Problem = Dropped, "", "" })
		return x.end(ctx)
	}
	return x.takeBack(ctx, force)
}
