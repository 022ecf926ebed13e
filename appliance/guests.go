package appliance

import (
	"context"
	"fmt"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/exports"
	"coffer/appliance/machines"
	"coffer/appliance/sms"
	"coffer/dedup"
)

// guests implements server.Guests: machines that run from savesets, or are restored from them.
type guests struct{ *appliance }

var _ server.Guests = guests{}

// openMachines finds the machines of the last run. The exports are there by now; the work on them begins with serve.
func (a *appliance) openMachines() error {
	a.machines = machines.New(machines.Options{Dir: a.data.MachinesDir(), Exports: a.exports, Agents: machineAgents{a}, View: a.viewMachine,
		Ended: a.machineEnded, Logger: a.log, Now: a.opts.Now})
	return a.machines.Load()
}

// viewMachine opens the saveset of a machine.
func (a *appliance) viewMachine(ctx context.Context, id dedup.SavesetID) (exports.Reading, error) {
	store, err := a.store.get()
	if err != nil {
		return nil, lockedError(err)
	}
	return exportStore{a, store}.View(ctx, id)
}

// machineEnded records what became of a machine that nobody waits for.
func (a *appliance) machineEnded(i machines.Info) {
	if i.State == machines.Dropped {
		return // the call is in the log
	}
	detail := fmt.Sprintf("machine %s, host %s", i.Name, i.Host)
	if i.Pool != "" {
		detail += ", pool " + i.Pool
	}
	if i.Problem != "" {
		detail += ": " + i.Problem
	}
	a.record(context.Background(), "vm."+string(i.State), i.Saveset.String(), detail)
}

// machineAgents order agents about for machines.
type machineAgents struct{ a *appliance }

var _ machines.Agents = machineAgents{}

// Online implements machines.Agents.
func (m machineAgents) Online(client string) bool { return m.a.agents.Presence(client).Online }

// Order implements machines.Agents.
func (m machineAgents) Order(ctx context.Context, client string, o sms.MachineOrder) (*sms.MachineReply, error) {
	reply, err := m.a.agents.Send(ctx, client, sms.Order{ID: newID("o"), Kind: sms.OrderMachine, Machine: &o})
	return reply.Machine, err
}

// Guests implements server.Guests.
func (g guests) Guests(context.Context) ([]api.Guest, error) {
	return mapped(g.machines.List(), apiGuest), nil
}

// Guest implements server.Guests.
func (g guests) Guest(_ context.Context, key string) (api.Guest, error) {
	return guestOf(g.machines.Get(key))
}

// BootGuest implements server.Guests.
func (g guests) BootGuest(ctx context.Context, b api.GuestBoot) (api.Guest, error) {
	id, err := g.admitGuest(ctx, b.Saveset, b.Host)
	if err != nil {
		return api.Guest{}, err
	}
	return guestOf(g.machines.Boot(ctx, machines.Spec{Saveset: id, Host: b.Host, URI: b.URI, Name: b.Name, By: userOf(ctx),
		Definition: machines.Definition{NewIdentity: b.NewIdentity, Network: b.Network, NoNetwork: b.NoNetwork, Paused: b.Paused}}))
}

// RestoreGuest implements server.Guests.
func (g guests) RestoreGuest(ctx context.Context, r api.GuestRestore) (api.Guest, error) {
	id, err := g.admitGuest(ctx, r.Saveset, r.Host)
	if err != nil {
		return api.Guest{}, err
	}
	return guestOf(g.machines.Restore(ctx, machines.Spec{Saveset: id, Host: r.Host, URI: r.URI, Name: r.Name, Pool: r.Pool, Format: r.Format, By: userOf(ctx),
		Definition: machines.Definition{NewIdentity: r.NewIdentity, Network: r.Network, NoNetwork: r.NoNetwork, Start: r.Start, Overwrite: r.Overwrite}}))
}

// admitGuest checks that the host can work now.
func (a *appliance) admitGuest(ctx context.Context, saveset, host string) (id dedup.SavesetID, err error) {
	if id, err = dedup.ParseSavesetID(saveset); err != nil {
		return id, apiError(err)
	}
	return id, apiError(a.jobs.Admit(ctx, host))
}

// MoveGuest implements server.Guests.
func (g guests) MoveGuest(ctx context.Context, key string, m api.GuestMove) (api.Guest, error) {
	return guestOf(g.machines.Move(ctx, key, m.Pool, m.Format))
}

// ResetGuest implements server.Guests.
func (g guests) ResetGuest(ctx context.Context, key string) (api.Guest, error) {
	return guestOf(g.machines.Reset(ctx, key))
}

// DropGuest implements server.Guests.
func (g guests) DropGuest(ctx context.Context, key string, force bool) error {
	return guestError(g.machines.Drop(ctx, key, force))
}

// unheld refuses to touch an export that a machine needs; what it is for is told.
func (a *appliance) unheld(id string, commit bool) error {
	i, err := a.exports.Get(id)
	if err != nil {
		return exportError(err)
	}
	m, held := a.machines.Holder(i)
	switch {
	case !held:
		return nil
	case commit && m.State == machines.Stopped:
		return nil
	case commit:
		return told(api.CodeInUse, fmt.Sprintf("export %s is a disk of machine %s, which is %s", id, m.Name, m.State), "shut the machine down first; see: coffer vm show "+m.ID)
	}
	return told(api.CodeInUse, fmt.Sprintf("export %s is a disk of machine %s (%s)", id, m.Name, m.State), "to end the machine with its exports: coffer vm drop "+m.ID)
}

func guestOf(i machines.Info, err error) (api.Guest, error) {
	if err != nil {
		return api.Guest{}, guestError(err)
	}
	return apiGuest(i), nil
}

// guestError words what machines refuse.
func guestError(err error) error {
	const list = "see: coffer vm booted"
	switch machines.KindOf(err) {
	case machines.NotFound:
		return told(api.CodeNotFound, err.Error(), list)
	case machines.Invalid:
		return told(api.CodeBadRequest, err.Error(), "savesets of tasks of type libvirt are of machines")
	case machines.Conflict:
		return told(api.CodeConflict, err.Error(), list)
	case machines.Stopping:
		return told(api.CodeShuttingDown, err.Error(), "")
	case machines.Offline:
		return told(api.CodeClientOffline, err.Error(), "start the agent on the client")
	case machines.Refused:
		if sms.CodeOf(err) == sms.CodeRefused {
			return told(api.CodeSourceRefused, err.Error(), "")
		}
	}
	return exportError(err)
}

func apiGuest(i machines.Info) api.Guest {
	out := api.Guest{ID: i.ID, Name: i.Name, UUID: i.UUID, State: api.GuestState(i.State), Over: i.Over, Saveset: i.Saveset.String(), Client: i.Client,
		Task: i.Task, Host: i.Host, URI: i.URI, HostState: i.HostState, Pool: i.Pool, Problem: i.Problem, Warnings: i.Warnings,
		Created: i.Created, By: i.By}
	out.Disks = mapped(i.Disks, func(d machines.Disk) api.GuestDisk {
		return api.GuestDisk{Target: d.Target, Export: d.Export, Bytes: d.Bytes}
	})
	if j := i.Job; j != nil && (i.State == machines.Moving || i.State == machines.Restoring) {
		out.Progress = &api.GuestJob{Disk: j.Disk, Bytes: j.Done, BytesTotal: j.Total}
	}
	return out
}
