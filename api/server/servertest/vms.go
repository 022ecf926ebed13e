package servertest

import (
	"context"

	"coffer/api"
)

// VMs lists two machines for every host but one whose URI says nowhere.
func (b *Backend) VMs(ctx context.Context, host, uri string) (api.VMList, error) {
	if _, err := b.Client(ctx, host); err != nil {
		return api.VMList{}, err
	}
	if uri == "qemu+ssh://nowhere/system" {
		return api.VMList{}, api.Errorf(api.CodeSourceRefused, "connect to libvirt on nowhere: ssh: Host key verification failed.")
	}
	return api.VMList{Items: []api.VM{
		{UUID: "5b7b1a54-0d5e-4a3f-9d5b-0e7c1f2a3b4c", Name: "shop", State: "running", Persistent: true, GuestAgent: "connected", MemoryMiB: 4096, CPUs: 2,
			Disks: []api.VMDisk{{Target: "vda", Format: "qcow2", Source: "file", Path: "/var/lib/libvirt/images/shop.qcow2", Bytes: 40 << 30, Tracked: true},
				{Target: "sda", Format: "raw", Why: "it is a cdrom"}}, Tasks: []string{"shop"}},
		{UUID: "6c8c2b65-1e6f-4b40-8e6c-1f8d2a3b4c5d", Name: "old", State: "shut off", Persistent: true, GuestAgent: "none", MemoryMiB: 1024, CPUs: 1,
			Disks: []api.VMDisk{{Target: "vda", Format: "raw", Source: "block", Path: "/dev/vg0/old", Bytes: 10 << 30}}}}}, nil
}

// SyncVMs tells of one machine of each kind.
func (b *Backend) SyncVMs(ctx context.Context, host string, s api.VMSync) (api.VMSyncReport, error) {
	if _, err := b.Client(ctx, host); err != nil {
		return api.VMSyncReport{}, err
	}
	return api.VMSyncReport{Items: []api.VMSynced{
		{Action: api.VMMade, Domain: "shop", UUID: "5b7b1a54-0d5e-4a3f-9d5b-0e7c1f2a3b4c", Task: s.Prefix + "shop", Client: "shop"},
		{Action: api.VMRenamed, Domain: "old", UUID: "6c8c2b65-1e6f-4b40-8e6c-1f8d2a3b4c5d", Task: "archive", Client: "archive", Reason: "it was archive"},
		{Action: api.VMRemoved, Domain: "test", Task: "test", Client: "test"},
	}}, b.Fail
}
