package vm

import (
	"context"
	"strings"

	"coffer/appliance/sms"
	"coffer/images/libvirt"
)

// List answers which machines the libvirtd at a URI has.
func List(ctx context.Context, o sms.VMListOrder) (*sms.VMListReply, error) {
	u, err := libvirt.ParseURI(o.URI)
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "%w", err)
	}
	c, err := libvirt.Connect(ctx, u)
	if err != nil {
		return nil, sms.Errorf(sms.CodeRefused, "%w", err)
	}
	defer func() { _ = c.Close() }() // it was asked only
	domains, err := c.Domains(ctx)
	reply := &sms.VMListReply{VMs: []sms.VM{}}
	if err != nil {
		if len(domains) == 0 {
			return nil, sms.Errorf(sms.CodeRefused, "%w", err)
		}
		reply.Warnings = strings.Split(err.Error(), "\n")
	}
	for _, d := range domains {
		reply.VMs = append(reply.VMs, describe(d))
	}
	return reply, nil
}

func describe(d *libvirt.Domain) sms.VM {
	vm := sms.VM{UUID: d.UUID, Name: d.Name, State: string(d.State), Persistent: d.Persistent, GuestAgent: string(d.Agent),
		MemoryMiB: d.MemoryMiB, CPUs: d.CPUs, Disks: []sms.VMDisk{}}
	for _, disk := range d.Disks {
		_, why := disk.Saved()
		vm.Disks = append(vm.Disks, sms.VMDisk{Target: disk.Target, Format: disk.Format, Source: disk.Source, Path: sms.Path(disk.Path),
			Size: disk.Capacity, Tracked: disk.Tracked() && why == "", Why: why})
	}
	return vm
}
