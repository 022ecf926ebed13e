package sms

// OrderMachine asks for something to be done with a machine that runs from an export, or is restored from one. The answer
// comes when it is done; moving and restoring go on after it, and MachineState tells how far they are.
const OrderMachine OrderKind = "machine"

// MachineVerb is what is to be done.
type MachineVerb string

// The verbs.
const (
	// MachineBoot defines and starts a transient machine whose disks are exports.
	MachineBoot MachineVerb = "boot"
	// MachineAttach makes the exports of a machine that was booted reachable again, and has it go on if it waits for them:
	// after the agent or the appliance was restarted. It may be repeated.
	MachineAttach MachineVerb = "attach"
	// MachineMove copies the disks of a running machine to a storage pool and has it use them.
	MachineMove MachineVerb = "move"
	// MachineRestore makes a machine in a storage pool, out of exports.
	MachineRestore MachineVerb = "restore"
	// MachineState only asks.
	MachineState MachineVerb = "state"
	// MachineDrop ends a machine, with all that was made for it on the host, and gives its exports back. None is no error.
	MachineDrop MachineVerb = "drop"
	// MachineRelease gives the exports back and leaves the machine as it is: after a move or a restore.
	MachineRelease MachineVerb = "release"
)

// MachineOrder is what is to be done with one machine.
type MachineOrder struct {
	Verb MachineVerb `json:"verb"`
	ID   string      `json:"id"`            // the appliance's name of the machine: 12 hexadecimal digits
	URI  string      `json:"uri,omitempty"` // of the libvirtd; empty: the agent's own machine
	// UUID of the machine that runs. Boot and restore tell it in their replies.
	UUID  string        `json:"uuid,omitempty"`
	Disks []MachineDisk `json:"disks,omitempty"` // of boot, attach and restore

	// Definition says what boot and restore make.
	Definition *MachineDefinition `json:"definition,omitempty"`
	// Pool and Format (raw, qcow2) of the images that move and restore make. Later orders repeat them.
	Pool   string `json:"pool,omitempty"`
	Format string `json:"format,omitempty"`
	// Expect, of state and attach, is what the appliance believes is going on: boot, move or restore. An agent that knows
	// nothing of it was killed meanwhile: it finds out what became of it, and goes on with a move.
	Expect MachineVerb `json:"expect,omitempty"`
}

// MachineDisk is a disk and the export that it is.
type MachineDisk struct {
	Target string `json:"target"`
	Export string `json:"export"`
}

// MachineDefinition says how a saved machine becomes a new one.
type MachineDefinition struct {
	XML   string `json:"xml"` // as it was saved
	NVRAM []byte `json:"nvram,omitempty"`
	// NVRAMGzip stands in for an NVRAM that is too large for an order.
	NVRAMGzip []byte `json:"nvram_gzip,omitempty"`
	// TPM is the state of its emulated TPM.
	TPM         []MachineFile `json:"tpm,omitempty"`
	Name        string        `json:"name,omitempty"` // empty: the saved one
	NewIdentity bool          `json:"new_identity,omitempty"`
	Network     string        `json:"network,omitempty"` // instead of those that were saved
	NoNetwork   bool          `json:"no_network,omitempty"`
	Paused      bool          `json:"paused,omitempty"` // of boot: start it, and have it wait
	Start       bool          `json:"start,omitempty"`  // of restore
	// Overwrite lets restore take the place of a machine of this name or identity, once the new one is complete.
	Overwrite bool `json:"overwrite,omitempty"`
}

// MachineFile is a small file: its path below a directory that is known, and what it holds.
type MachineFile struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
}

// MachineReply answers a MachineOrder.
type MachineReply struct {
	UUID  string `json:"uuid,omitempty"`
	Name  string `json:"name,omitempty"`
	State string `json:"state,omitempty"` // as virsh domstate has it; empty: there is no such machine
	// Job is the move or restore that was ordered last.
	Job      *MachineJob `json:"job,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
}

// MachineJob is how far a move or restore is.
type MachineJob struct {
	Verb     MachineVerb `json:"verb"`
	UUID     string      `json:"uuid,omitempty"` // of the machine that a restore made
	Name     string      `json:"name,omitempty"`
	Disk     string      `json:"disk,omitempty"` // target of the one that is being copied
	Done     uint64      `json:"done"`           // bytes, of all disks
	Total    uint64      `json:"total"`
	Finished bool        `json:"finished,omitempty"`
	Warnings []string    `json:"warnings,omitempty"`
	Error    string      `json:"error,omitempty"` // of a finished one: why it failed; all that it made is gone
}
