package appliance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"coffer/api"
	"coffer/api/server"
	"coffer/appliance/catalog"
	"coffer/appliance/sms"
)

// listPatience is how long an agent has to list the machines of a host, which may lie behind ssh.
const listPatience = 75 * time.Second

// vms implements server.VMs.
type vms struct{ *appliance }

var _ server.VMs = vms{}

// VMs implements server.VMs.
func (v vms) VMs(ctx context.Context, host, uri string) (api.VMList, error) {
	reply, err := v.listVMs(ctx, host, uri)
	if err != nil {
		return api.VMList{}, err
	}
	tasks, err := v.catalog.Tasks(ctx)
	if err != nil {
		return api.VMList{}, apiError(err)
	}
	out := api.VMList{Items: mapped(reply.VMs, apiVM), Warnings: reply.Warnings}
	for i := range out.Items {
		for _, t := range tasks {
			if backsUp(t, host, uri, reply.VMs[i]) {
				out.Items[i].Tasks = append(out.Items[i].Tasks, t.Name)
			}
		}
	}
	return out, nil
}

// backsUp tells whether a task is one of a machine: by its UUID, or, where the task does not say that, by host and name.
func backsUp(t catalog.Task, host, uri string, vm sms.VM) bool {
	m := t.Options.Libvirt
	switch {
	case m == nil:
		return false
	case m.UUID != "":
		return m.UUID == vm.UUID
	}
	return m.Domain == vm.Name && t.Worker() == host && uriOf(m.URI) == uriOf(uri)
}

// defaultURI is what an agent takes an empty URI for.
const defaultURI = "qemu:///system"

func uriOf(uri string) string {
	if uri == "" {
		return defaultURI
	}
	return uri
}

func apiVM(v sms.VM) api.VM {
	out := api.VM{UUID: v.UUID, Name: v.Name, State: v.State, Persistent: v.Persistent, GuestAgent: v.GuestAgent, MemoryMiB: v.MemoryMiB,
		CPUs: v.CPUs, Disks: []api.VMDisk{}}
	for _, d := range v.Disks {
		out.Disks = append(out.Disks, api.VMDisk{Target: d.Target, Format: d.Format, Source: d.Source, Path: string(d.Path), Bytes: d.Size,
			Tracked: d.Tracked, Why: d.Why})
	}
	return out
}

// listVMs asks an agent which machines a libvirtd has.
func (a *appliance) listVMs(ctx context.Context, host, uri string) (*sms.VMListReply, error) {
	if _, err := a.catalog.Client(ctx, host); err != nil {
		return nil, noClient(host, err)
	}
	if err := a.jobs.Admit(ctx, host); err != nil {
		return nil, apiError(err)
	}
	ctx, done := context.WithTimeoutCause(ctx, listPatience, errNoAnswer)
	defer done()
	reply, err := a.agents.Send(ctx, host, sms.Order{ID: newID("o"), Kind: sms.OrderVMList, VMList: &sms.VMListOrder{URI: uri}})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, api.Errorf(api.CodeTimeout, "the agent of client %s did not answer within %s", host, listPatience)
	case sms.CodeOf(err) == sms.CodeRefused:
		return nil, api.Errorf(api.CodeSourceRefused, "client %s: %v", host, err).
			WithHint("the agent needs libvirtd's socket on its machine, or a key and a known_hosts entry for ssh to the host")
	case err != nil:
		return nil, apiError(err)
	case reply.VMList == nil:
		return nil, api.Errorf(api.CodeSourceRefused, "the agent of client %s did not answer", host)
	}
	return reply.VMList, nil
}

// askMachine asks whether the machine of a new task is there, and takes its UUID, which outlives its name.
func (t tasks) askMachine(ctx context.Context, s *api.TaskSpec) error {
	worker := s.Client
	if s.Mover != "" {
		worker = s.Mover
	}
	list, err := t.listVMs(ctx, worker, s.Machine.URI)
	if err != nil {
		return err
	}
	for _, vm := range list.VMs {
		if s.Machine.UUID != "" && vm.UUID != s.Machine.UUID || s.Machine.UUID == "" && vm.Name != s.Machine.Domain {
			continue
		}
		s.Machine.UUID, s.Machine.Domain = vm.UUID, vm.Name
		return hasDisks(vm, s.Machine.ExcludeDisks)
	}
	return api.Errorf(api.CodeSourceRefused, "the host has no domain %q", orElse(s.Machine.Domain, s.Machine.UUID)).
		WithHint("see: coffer vm list --host %s", hostText(worker, s.Machine.URI))
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func hostText(client, uri string) string {
	if uri == "" {
		return client
	}
	return client + "=" + uri
}

// hasDisks checks that excluded disks exist, and that one is left.
func hasDisks(vm sms.VM, excluded []string) error {
	left, known := 0, map[string]bool{}
	for _, d := range vm.Disks {
		known[d.Target] = true
		if d.Why == "" {
			left++
		}
	}
	var faults []api.FieldError
	for _, target := range excluded {
		if !known[target] {
			faults = append(faults, api.FieldError{Location: "body.libvirt.exclude_disks", Message: fmt.Sprintf("domain %s has no disk %q", vm.Name, target)})
		}
		for _, d := range vm.Disks {
			if d.Target == target && d.Why == "" {
				left--
			}
		}
	}
	if len(faults) == 0 && left <= 0 {
		faults = append(faults, api.FieldError{Location: "body.libvirt", Message: fmt.Sprintf("domain %s has no disk that would be saved", vm.Name)})
	}
	if len(faults) == 0 {
		return nil
	}
	out := api.Errorf(api.CodeBadRequest, "the machine does not have what the task names")
	out.Fields = faults
	return out
}

// machineOf is the catalog's form of a task's machine.
func machineOf(m *api.Machine) *catalog.TaskMachine {
	if m == nil {
		return nil
	}
	return &catalog.TaskMachine{URI: m.URI, UUID: m.UUID, Domain: m.Domain, ExcludeDisks: m.ExcludeDisks, Quiesce: m.Quiesce,
		ScratchDir: m.ScratchDir, Generated: m.Generated}
}

func apiMachine(m *catalog.TaskMachine) *api.Machine {
	if m == nil {
		return nil
	}
	return &api.Machine{URI: m.URI, UUID: m.UUID, Domain: m.Domain, ExcludeDisks: m.ExcludeDisks, Quiesce: m.Quiesce,
		ScratchDir: m.ScratchDir, Generated: m.Generated}
}

// checkMachine holds the fields of a task of type libvirt against each other.
func checkMachine(s api.TaskSpec, fault func(field, format string, args ...any)) {
	m := s.Machine
	if m == nil || m.Domain == "" && m.UUID == "" {
		fault("libvirt.domain", "a task of type libvirt needs the domain that it backs up")
		return
	}
	if m.Generated {
		fault("libvirt.generated", "only 'coffer vm tasks sync' makes tasks that it changes and removes")
	}
	if m.ScratchDir != "" && !strings.HasPrefix(m.ScratchDir, "/") {
		fault("libvirt.scratch_dir", "%q is not an absolute path", m.ScratchDir)
	}
	if strings.ContainsAny(m.URI+m.Domain+m.ScratchDir, "\x00") {
		fault("libvirt", "a name has no NUL byte")
	}
	if len(s.Sources)+len(s.Excludes)+len(s.Images)+len(s.Command) > 0 || s.OneFileSystem || s.StreamName != "" {
		fault("sources", "a task of type libvirt has a domain: neither sources and excludes nor a command")
	}
}
