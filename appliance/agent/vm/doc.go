// Package vm backs up virtual machines: task type libvirt, on the agent of the KVM host, or on one that is a data mover for a
// host without (qemu+ssh).
//
// A saveset's root directory has, beside each other:
//
//	vda.raw, …    a disk each, as a disk image with fixed chunks, named by its target; what the machine sees, whatever the
//	              format of the file it lies in
//	domain.xml    the definition of the machine, its secrets included
//	nvram         the variables of the firmware, where it has some
//	tpm/…         the state of an emulated TPM, where it has one
//	backup.json   how all this was made: Document
//
// Of a running machine the disks are read from a pull-mode backup job (package images/libvirt), of one that is off from their
// files (package images). A DIFF or INCR reads what the bitmaps of its reference's checkpoint call dirty; all else comes from
// the parent saveset (package disk), so that every saveset is whole.
//
// # Levels
//
// The appliance decides the level and says which run made the reference (sms.LibvirtSource). The agent finds out whether the
// checkpoint of that run is still good. Where it is not, everything is read, and the commit says so (sms.FullCBTInvalid): the
// saveset is a FULL. The same holds for a machine that is off, unless no disk was written since the reference.
//
// # After a kill
//
// Whatever a run makes on the host bears the task's mark and the run's name. Each run begins by removing what the runs before
// it left, all but the checkpoints of savesets that the appliance still builds on. A run that fails deletes its own checkpoint,
// unless it asked for the commit: then the appliance may have made the saveset, and the next run knows.
//
// # Machines on exports
//
// Machines boots, moves and restores machines as the appliance orders: relays.go carries their disks, beside_machine.go places
// what they need beside these, move.go and restore.go are its long works. A host that ssh reaches gets the sockets of the disks by
// ssh's own forwarding (libvirt.Expose). What they make on a host bears the machine's id (leftover.go), so that an agent that was killed finds it
// again: it goes on with a move, and takes a restore back that did not come to its end.
//
// # Where to add
//
// host.go is what is needed of a hypervisor, list.go the inventory for orders. Locks keeps two of them, or a backup, from working on one machine at the same time.
package vm
