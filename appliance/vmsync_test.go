package appliance

import (
	"slices"
	"strings"
	"testing"

	"coffer/api"
	"coffer/appliance/catalog"
	"coffer/appliance/sms"
)

func machineNamed(name, uuid string) sms.VM {
	return sms.VM{UUID: strings.Repeat(uuid, 8) + "-0000-0000-0000-000000000000", Name: name, Persistent: true,
		Disks: []sms.VMDisk{{Target: "vda", Format: "qcow2"}, {Target: "vdb", Format: "raw"}}}
}

func taskFor(task, client, mover, uri string, vm sms.VM) catalog.Task {
	return catalog.Task{Name: task, Client: client, Type: catalog.TaskLibvirt, Options: catalog.TaskOptions{Mover: mover,
		Libvirt: &catalog.TaskMachine{URI: uri, UUID: vm.UUID, Domain: vm.Name, Generated: true}}}
}

func TestPlanSync(t *testing.T) {
	shop, old, web, renamed := machineNamed("shop", "1"), machineNamed("old", "2"), machineNamed("web", "3"), machineNamed("new name!", "2")
	transient, diskless := machineNamed("fly", "4"), machineNamed("none", "5")
	transient.Persistent = false
	diskless.Disks = []sms.VMDisk{{Target: "sda", Why: "it is a cdrom"}}
	byHand := taskFor("mine", "kvm1", "", "", shop)
	byHand.Options.Libvirt.Generated, byHand.Options.Libvirt.UUID = false, ""
	const other = "qemu+ssh://kvm2/system"
	for name, c := range map[string]struct {
		sync    api.VMSync
		vms     []sms.VM
		warn    []string
		tasks   []catalog.Task
		clients []string
		want    []string // action machine task client mover
	}{
		"new": {vms: []sms.VM{shop, old}, want: []string{"made shop shop shop kvm1", "made old old old kvm1"}},
		"new with names that are taken": {sync: api.VMSync{Prefix: "vm-"}, vms: []sms.VM{shop},
			tasks:   []catalog.Task{taskFor("vm-shop", "shop", "kvm9", "", old)},
			clients: []string{"shop"}, want: []string{"made shop vm-shop-11111111 shop-11111111 kvm1"}},
		"an own client that is there":     {vms: []sms.VM{shop}, clients: []string{"shop"}, want: []string{"made shop shop shop kvm1"}},
		"the machine is called as a host": {vms: []sms.VM{machineNamed("kvm1", "7")}, want: []string{"made kvm1 kvm1 kvm1-77777777 kvm1"}},
		"the host's own tasks":            {sync: api.VMSync{HostClient: true}, vms: []sms.VM{shop}, want: []string{"made shop shop kvm1 "}},
		"two of one name": {vms: []sms.VM{shop, machineNamed("shop", "6")}, want: []string{"made shop shop shop kvm1",
			"made shop shop-66666666 shop-66666666 kvm1"}},
		"kept":         {vms: []sms.VM{shop}, tasks: []catalog.Task{taskFor("shop", "shop", "kvm1", "qemu:///system", shop)}, want: []string{"kept shop shop shop kvm1"}},
		"made by hand": {vms: []sms.VM{shop}, tasks: []catalog.Task{byHand}, want: []string{"kept shop mine kvm1 "}},
		"renamed":      {vms: []sms.VM{renamed}, tasks: []catalog.Task{taskFor("old", "old", "kvm1", "", old)}, want: []string{"renamed new name! old old kvm1"}},
		"moved": {sync: api.VMSync{URI: other}, vms: []sms.VM{shop}, tasks: []catalog.Task{taskFor("shop", "shop", "kvm9", "", shop)},
			want: []string{"moved shop shop shop kvm1"}},
		"gone": {vms: []sms.VM{shop}, tasks: []catalog.Task{taskFor("shop", "shop", "kvm1", "", shop), taskFor("old", "old", "kvm1", "", old),
			taskFor("web", "web", "kvm1", other, web)}, want: []string{"kept shop shop shop kvm1", "removed old old old "}},
		"gone and kept":      {sync: api.VMSync{KeepGone: true}, vms: []sms.VM{shop}, tasks: []catalog.Task{taskFor("old", "old", "kvm1", "", old)}, want: []string{"made shop shop shop kvm1", "gone old old old "}},
		"a list with holes":  {vms: []sms.VM{shop}, warn: []string{"one did not answer"}, tasks: []catalog.Task{taskFor("old", "old", "kvm1", "", old)}, want: []string{"made shop shop shop kvm1", "gone old old old "}},
		"a host without any": {tasks: []catalog.Task{taskFor("old", "old", "kvm1", "", old)}, want: []string{"gone old old old "}},
		"patterns, transient and empty ones": {sync: api.VMSync{Include: []string{"*"}, Exclude: []string{"w*"}}, vms: []sms.VM{web, transient, diskless},
			want: []string{"skipped web   ", "skipped fly   ", "skipped none   "}},
	} {
		t.Run(name, func(t *testing.T) {
			clients := []catalog.Client{{Name: "kvm1"}}
			for _, name := range c.clients {
				clients = append(clients, catalog.Client{Name: name})
			}
			var got []string
			for _, step := range planSync("kvm1", c.sync, &sms.VMListReply{VMs: c.vms, Warnings: c.warn}, c.tasks, clients) {
				got = append(got, strings.Join([]string{string(step.Action), step.Domain, step.Task, step.Client, step.options.Mover}, " "))
				if (step.Action == api.VMMade || step.Action == api.VMRenamed) && step.options.Libvirt.Domain != step.Domain {
					t.Errorf("%s: the task shall be for %+v", step.Domain, step.options.Libvirt)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("planned\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestNamesOfMachines(t *testing.T) {
	for domain, want := range map[string]string{"shop": "shop", "Büro 7": "B-ro-7", "-x": "x", "日本": "", strings.Repeat("a", 80): strings.Repeat("a", 64)} {
		if got := nameOf(domain); got != want {
			t.Errorf("name of %q: %q, want %q", domain, got, want)
		}
	}
	p := syncPlan{}
	uuid := "12345678-0000-0000-0000-000000000000"
	if got := p.free(nil, "日本", uuid); got != "12345678" {
		t.Errorf("a name of nothing: %q", got)
	}
	if got := p.free(map[string]bool{strings.Repeat("a", 64): true}, strings.Repeat("a", 80), uuid); len(got) != 64 || !strings.HasSuffix(got, "-12345678") {
		t.Errorf("a long name: %q", got)
	}
}
