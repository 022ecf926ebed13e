package sms

// TaskLibvirt is the task type of virtual machines that a libvirtd manages.
const TaskLibvirt = "libvirt"

// OrderVMList asks which virtual machines a host has.
const OrderVMList OrderKind = "vm_list"

// LibvirtSource says which machine a task of type libvirt backs up, and what the backup may build on.
type LibvirtSource struct {
	// URI of the libvirtd; empty means the agent's own machine.
	URI string `json:"uri,omitempty"`
	// UUID names the domain where it is set, else its name does.
	UUID   string `json:"uuid,omitempty"`
	Domain string `json:"domain,omitempty"`
	// ExcludeDisks are targets (vdb) of disks to leave out.
	ExcludeDisks []string `json:"exclude_disks,omitempty"`
	// Quiesce is auto (or empty), require or off.
	Quiesce string `json:"quiesce,omitempty"`
	// ScratchDir is a directory of the host for socket and scratch files; empty: as the agent finds good.
	ScratchDir Path `json:"scratch_dir,omitempty"`

	// Owner marks what the task makes on the host. It is the same in each run of the task, and no other task's.
	Owner string `json:"owner"`
	// Reference is the run that made the parent of a DIFF or INCR: its checkpoint says what changed since.
	Reference string `json:"reference,omitempty"`
	// FullRun and LastRun made the last FULL and the last saveset of the task's chain. Their checkpoints stay while this
	// run may still fail; after its commit a DIFF or INCR keeps the FULL's and its own, a FULL its own. COPY touches none.
	FullRun string `json:"full_run,omitempty"`
	LastRun string `json:"last_run,omitempty"`
}

// VMListOrder asks for the machines of the libvirtd at URI.
type VMListOrder struct {
	URI string `json:"uri,omitempty"`
}

// VMListReply answers it. Warnings tell what could not be listed.
type VMListReply struct {
	VMs      []VM     `json:"vms"`
	Warnings []string `json:"warnings,omitempty"`
}

// VM is a virtual machine of a host.
type VM struct {
	UUID       string   `json:"uuid"`
	Name       string   `json:"name"`
	State      string   `json:"state"` // as virsh domstate has it
	Persistent bool     `json:"persistent"`
	GuestAgent string   `json:"guest_agent"` // none, absent, connected
	MemoryMiB  uint64   `json:"memory_mib"`
	CPUs       uint     `json:"cpus"`
	Disks      []VMDisk `json:"disks"`
}

// VMDisk is a disk of a machine.
type VMDisk struct {
	Target string `json:"target"`
	Format string `json:"format"`
	Source string `json:"source"` // file, block, network, …
	Path   Path   `json:"path,omitempty"`
	Size   int64  `json:"size,omitempty"` // bytes, 0 unknown
	// Tracked says that INCR and DIFF read what changed only.
	Tracked bool `json:"tracked,omitempty"`
	// Why says why no backup takes the disk; empty where one does.
	Why string `json:"why,omitempty"`
}
