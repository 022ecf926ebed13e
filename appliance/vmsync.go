package appliance

import (
	"context"
	"path"
	"slices"
	"strings"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/sms"
)

// SyncVMs implements server.VMs.
func (v vms) SyncVMs(ctx context.Context, host string, s api.VMSync) (api.VMSyncReport, error) {
	for _, p := range slices.Concat(s.Include, s.Exclude) {
		if _, err := path.Match(p, ""); err != nil {
			return api.VMSyncReport{}, api.Errorf(api.CodeBadRequest, "%q is not a pattern", p)
		}
	}
	if s.Pool == "" {
		s.Pool = catalog.DefaultPool
	}
	if _, err := v.catalog.Pool(ctx, s.Pool); err != nil {
		return api.VMSyncReport{}, noPool(s.Pool, err)
	}
	list, err := v.listVMs(ctx, host, s.URI)
	if err != nil {
		return api.VMSyncReport{}, err
	}
	tasks, err := v.catalog.Tasks(ctx)
	if err != nil {
		return api.VMSyncReport{}, apiError(err)
	}
	clients, err := v.catalog.Clients(ctx)
	if err != nil {
		return api.VMSyncReport{}, apiError(err)
	}
	plan := planSync(host, s, list, tasks, clients)
	report := api.VMSyncReport{Warnings: list.Warnings}
	for _, step := range plan {
		if !s.DryRun {
			if err := v.syncStep(ctx, host, s, &step); err != nil {
				return report, err
			}
		}
		report.Items = append(report.Items, step.VMSynced)
	}
	return report, nil
}

// syncStep is what is to be done for one machine.
type syncStep struct {
	api.VMSynced
	newClient bool
	options   catalog.TaskOptions // of the task, as it shall be
}

// planSync compares the machines of a host with the tasks. It changes nothing.
func planSync(host string, s api.VMSync, list *sms.VMListReply, tasks []catalog.Task, clients []catalog.Client) []syncStep {
	p := syncPlan{host: host, sync: s, clients: map[string]bool{}, tasks: map[string]bool{}, given: map[string]bool{}}
	for _, c := range clients {
		p.clients[c.Name] = true
	}
	for _, t := range tasks {
		p.tasks[t.Name] = true
	}
	var out []syncStep
	there := map[string]bool{}
	for _, vm := range list.VMs {
		there[vm.UUID] = true
		out = append(out, p.machine(vm, tasks))
	}
	whole := len(list.Warnings) == 0 && len(list.VMs) > 0
	for _, t := range tasks {
		m := t.Options.Libvirt
		if m == nil || !m.Generated || there[m.UUID] || t.Worker() != host || uriOf(m.URI) != uriOf(s.URI) {
			continue
		}
		step := syncStep{VMSynced: api.VMSynced{Action: api.VMRemoved, Domain: m.Domain, UUID: m.UUID, Task: t.Name, Client: t.Client}}
		switch {
		case s.KeepGone:
			step.Action, step.Reason = api.VMGone, "tasks of machines that are gone are kept"
		case !whole:
			step.Action, step.Reason = api.VMGone, "the host does not tell all its machines"
		}
		out = append(out, step)
	}
	return out
}

// syncPlan is a plan in work: the names that are taken, and the clients that this plan has given to a machine.
type syncPlan struct {
	host                  string
	sync                  api.VMSync
	clients, tasks, given map[string]bool
}

func (p *syncPlan) machine(vm sms.VM, tasks []catalog.Task) syncStep {
	step := syncStep{VMSynced: api.VMSynced{Domain: vm.Name, UUID: vm.UUID}}
	for _, t := range tasks {
		if !backsUp(t, p.host, p.sync.URI, vm) {
			continue
		}
		step.Task, step.Client, step.options = t.Name, t.Client, t.Options
		if !t.Options.Libvirt.Generated {
			step.Action, step.Reason = api.VMKept, "the task was made by hand"
			return step
		}
		p.compare(&step, t, vm)
		return step
	}
	why := p.leftOut(vm)
	if why != "" {
		step.Action, step.Reason = api.VMSkipped, why
		return step
	}
	step.Action = api.VMMade
	step.Task = p.free(p.tasks, p.sync.Prefix+vm.Name, vm.UUID)
	p.tasks[step.Task] = true
	step.options.Libvirt = &catalog.TaskMachine{URI: p.sync.URI, UUID: vm.UUID, Domain: vm.Name, Quiesce: p.sync.Quiesce,
		ScratchDir: p.sync.ScratchDir, Generated: true}
	for _, target := range p.sync.ExcludeDisks {
		if slices.ContainsFunc(vm.Disks, func(d sms.VMDisk) bool { return d.Target == target }) {
			step.options.Libvirt.ExcludeDisks = append(step.options.Libvirt.ExcludeDisks, target)
		}
	}
	step.Client = p.host
	if !p.sync.HostClient {
		p.ownClient(&step, vm, tasks)
	}
	return step
}

// ownClient gives the machine a client of its own. One that has the machine's name, and no task of another machine, is it:
// the machine may have an agent inside, too.
func (p *syncPlan) ownClient(step *syncStep, vm sms.VM, tasks []catalog.Task) {
	name := nameOf(vm.Name)
	others := slices.ContainsFunc(tasks, func(t catalog.Task) bool {
		return t.Client == name && t.Options.Libvirt != nil && t.Options.Libvirt.UUID != vm.UUID
	})
	if name != "" && p.clients[name] && !others && !p.given[name] && name != p.host {
		step.Client = name
	} else {
		step.Client, step.newClient = p.free(p.clients, vm.Name, vm.UUID), true
	}
	p.clients[step.Client], p.given[step.Client] = true, true
	step.options.Mover = p.host
}

// compare finds out whether a task of ours is still right.
func (p *syncPlan) compare(step *syncStep, t catalog.Task, vm sms.VM) {
	m := *t.Options.Libvirt
	step.Action = api.VMKept
	if t.Worker() != p.host || uriOf(m.URI) != uriOf(p.sync.URI) {
		step.Action, step.Reason = api.VMMoved, "it was on "+hostText(t.Worker(), m.URI)
		m.URI = p.sync.URI
		step.options.Mover = p.host
		if t.Client == p.host {
			step.options.Mover = ""
		}
	}
	if m.Domain != vm.Name {
		if step.Action == api.VMKept {
			step.Action, step.Reason = api.VMRenamed, "it was "+m.Domain
		}
		m.Domain = vm.Name
	}
	step.options.Libvirt = &m
}

// leftOut says why a machine without a task gets none.
func (p *syncPlan) leftOut(vm sms.VM) string {
	match := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool {
			ok, _ := path.Match(pattern, vm.Name) // checked before
			return ok
		})
	}
	switch {
	case len(p.sync.Include) > 0 && !match(p.sync.Include):
		return "no pattern names it"
	case match(p.sync.Exclude):
		return "a pattern leaves it out"
	case !vm.Persistent:
		return "it is transient: not defined on the host"
	case !slices.ContainsFunc(vm.Disks, func(d sms.VMDisk) bool { return d.Why == "" && !slices.Contains(p.sync.ExcludeDisks, d.Target) }):
		return "it has no disk that would be saved"
	}
	return ""
}

// maxName is the longest name of a client or task.
const maxName = 64

// nameOf makes a name of a domain's, which may have any characters.
func nameOf(domain string) string {
	var b strings.Builder
	for _, r := range domain {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.' || r == '_' || r == '-':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	name := strings.TrimLeft(b.String(), "._-")
	return name[:min(len(name), maxName)]
}

// free makes a name that is not taken; a part of the UUID tells machines of one name apart.
func (p *syncPlan) free(taken map[string]bool, domain, uuid string) string {
	name := nameOf(domain)
	if name != "" && !taken[name] {
		return name
	}
	for n := 8; ; n = len(uuid) {
		long := strings.TrimLeft(name[:min(len(name), maxName-n-1)]+"-"+uuid[:min(n, len(uuid))], "._-")
		if !taken[long] || n >= len(uuid) {
			return long
		}
	}
}

// syncStep does what the plan says for one machine.
func (v vms) syncStep(ctx context.Context, host string, s api.VMSync, step *syncStep) error {
	switch step.Action {
	case api.VMMade:
		return v.makeTask(ctx, s, step)
	case api.VMRenamed, api.VMMoved:
		err := v.catalog.SetTaskOptions(ctx, step.Task, step.options)
		if catalog.KindOf(err) == catalog.KindNotFound {
			step.Action, step.Reason = api.VMSkipped, "its task has just been removed"
			return nil
		}
		if err != nil {
			return apiError(err)
		}
		v.record(ctx, "task.change", step.Task, string(step.Action)+": "+step.Reason)
	case api.VMRemoved:
		err := v.catalog.RemoveTask(ctx, step.Task)
		switch catalog.KindOf(err) {
		case catalog.KindInUse:
			step.Action, step.Reason = api.VMGone, "a run of its task has not ended"
			return nil
		case catalog.KindNotFound:
			return nil
		}
		if err != nil {
			return apiError(err)
		}
		v.record(ctx, "task.remove", step.Task, "machine "+step.Domain+" is gone from "+hostText(host, s.URI))
	}
	return nil
}

func (v vms) makeTask(ctx context.Context, s api.VMSync, step *syncStep) error {
	if step.newClient {
		if err := v.catalog.AddClient(ctx, step.Client); err != nil && catalog.KindOf(err) != catalog.KindExists {
			return apiError(err)
		}
		v.jobs.ClientChanged(step.Client)
		v.record(ctx, "client.add", step.Client, "for machine "+step.Domain)
	}
	_, err := v.catalog.AddTask(ctx, catalog.Task{Name: step.Task, Client: step.Client, Type: catalog.TaskLibvirt, Pool: s.Pool, Options: step.options})
	if catalog.KindOf(err) == catalog.KindExists {
		step.Action, step.Reason = api.VMSkipped, "a task of this name has just been made"
		return nil
	}
	if err != nil {
		return apiError(err)
	}
	v.record(ctx, "task.add", step.Task, "client "+step.Client+", machine "+step.Domain)
	return nil
}
