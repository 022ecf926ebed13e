package api

// TaskLibvirt is the task type of a virtual machine of a KVM host.
const TaskLibvirt TaskType = "libvirt"

// Machine says which virtual machine a task of type libvirt backs up, and how.
type Machine struct {
	URI          string   `json:"uri,omitempty" maxLength:"4096" doc:"of the libvirtd, as the agent reaches it: qemu:///system (default) or qemu+ssh://USER@HOST/system"`
	UUID         string   `json:"uuid,omitempty" pattern:"^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$" doc:"of the domain; found by its name when the task is made"`
	Domain       string   `json:"domain,omitempty" maxLength:"255" doc:"name of the domain"`
	ExcludeDisks []string `json:"exclude_disks,omitempty" maxItems:"256" doc:"targets (vdb) of disks to leave out"`
	Quiesce      string   `json:"quiesce,omitempty" enum:"auto,require,off" doc:"freeze the guest's file systems when a backup begins: where its agent answers (auto, default), or the backup fails (require), or never (off)"`
	ScratchDir   string   `json:"scratch_dir,omitempty" maxLength:"4096" doc:"directory of the KVM host for socket and scratch files; default: beside the disks"`
	Generated    bool     `json:"generated,omitempty" doc:"made by 'coffer vm tasks sync', which changes and removes it"`
}

// VM is a virtual machine that a host has.
type VM struct {
	UUID       string   `json:"uuid"`
	Name       string   `json:"name"`
	State      string   `json:"state" doc:"running, paused, shut off and so on, as virsh names it"`
	Persistent bool     `json:"persistent" doc:"it stays when it is off"`
	GuestAgent string   `json:"guest_agent" enum:"none,absent,connected"`
	MemoryMiB  uint64   `json:"memory_mib"`
	CPUs       uint     `json:"cpus"`
	Disks      []VMDisk `json:"disks"`
	Tasks      []string `json:"tasks,omitempty" doc:"tasks that back it up"`
}

// VMDisk is a disk of a virtual machine.
type VMDisk struct {
	Target  string `json:"target"`
	Format  string `json:"format"`
	Source  string `json:"source,omitempty" doc:"file, block, network and so on"`
	Path    string `json:"path,omitempty"`
	Bytes   int64  `json:"bytes,omitempty" doc:"capacity; 0 unknown"`
	Tracked bool   `json:"tracked" doc:"INCR and DIFF read only what changed"`
	Why     string `json:"why_not_saved,omitempty" doc:"why no backup takes it"`
}

// VMList are the virtual machines of a host.
type VMList struct {
	Items    []VM     `json:"items"`
	Warnings []string `json:"warnings,omitempty" doc:"what could not be listed"`
}

// VMSync makes tasks for all virtual machines of a host, and keeps them in step.
type VMSync struct {
	URI          string   `json:"uri,omitempty" maxLength:"4096" doc:"of the libvirtd, as the agent reaches it; default qemu:///system"`
	Pool         string   `json:"pool,omitempty" maxLength:"64" doc:"media pool of new tasks; default: the pool named default"`
	Prefix       string   `json:"prefix,omitempty" maxLength:"32" pattern:"^[A-Za-z0-9._-]*$" doc:"begins the names of new tasks"`
	Include      []string `json:"include,omitempty" maxItems:"1000" doc:"patterns of domains' names; default: all"`
	Exclude      []string `json:"exclude,omitempty" maxItems:"1000" doc:"patterns of domains' names to leave out"`
	ExcludeDisks []string `json:"exclude_disks,omitempty" maxItems:"256" doc:"of new tasks"`
	Quiesce      string   `json:"quiesce,omitempty" enum:"auto,require,off" doc:"of new tasks"`
	ScratchDir   string   `json:"scratch_dir,omitempty" maxLength:"4096" doc:"of new tasks"`
	HostClient   bool     `json:"host_client,omitempty" doc:"the tasks are the host's own: no client is made for each machine"`
	KeepGone     bool     `json:"keep_gone,omitempty" doc:"do not remove tasks of machines that are gone"`
	DryRun       bool     `json:"dry_run,omitempty" doc:"tell what would be done"`
}

// VMAction is what became of a machine's task.
type VMAction string

// Actions of a sync.
const (
	VMMade    VMAction = "made"    // there was no task
	VMKept    VMAction = "kept"    // there is one, and it is right
	VMRenamed VMAction = "renamed" // the machine has another name; the task keeps its own, and its chain
	VMMoved   VMAction = "moved"   // the machine is on another host now
	VMRemoved VMAction = "removed" // the machine is gone; the savesets stay
	VMGone    VMAction = "gone"    // it is gone, and the task is still there: Reason says why
	VMSkipped VMAction = "skipped" // left out: Reason says why
)

// VMSynced is one line of a sync's report.
type VMSynced struct {
	Action VMAction `json:"action" enum:"made,kept,renamed,moved,removed,gone,skipped"`
	Domain string   `json:"domain"`
	UUID   string   `json:"uuid,omitempty"`
	Task   string   `json:"task,omitempty"`
	Client string   `json:"client,omitempty"`
	Reason string   `json:"reason,omitempty"`
}

// VMSyncReport says what a sync did, or would do.
type VMSyncReport struct {
	Items    []VMSynced `json:"items"`
	Warnings []string   `json:"warnings,omitempty" doc:"what could not be listed; then nothing is removed"`
}
