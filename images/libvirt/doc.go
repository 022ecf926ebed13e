// Package libvirt reaches the virtual machines of a KVM host through its libvirtd: it lists them, and it makes the disks of a
// running one readable as they were at one moment, with what changed since an earlier one.
//
// # Where things stand
//
//	uri.go        which libvirtd, and how it is reached
//	connect.go    the connection; guard.go bounds what arrives on it
//	ssh.go        hosts without an agent: ssh subprocesses that carry libvirtd's socket, the NBD socket, and files
//	sftp.go       the files of such a host; files.go what they are for the rest of the package
//	place.go      files that are written there; tpm.go the state of a TPM among them
//	expose.go     sockets of this machine that such a host gets, for NBD
//	inventory.go  domains; domain.go what a backup needs of their XML
//	names.go      how all that we make on a host is called
//	checkpoint.go reference points of later backups
//	backup.go     the backup job: Begin, Open, End
//	clean.go      what a killed run left
//	quiesce.go    freezing the guest's file systems
//	changed.go    which ranges of a disk a backup reads
//	machine.go    definition of machines; move.go copies of their disks; volume.go images in storage pools
//
// Whoever adds to it (definition and boot of machines, block jobs) takes Conn.Raw for calls that rpc does not list, adds them
// to rpc when tests want a fake, and makes a file for each noun. Conn.Files reads and removes files of the host, whether it is
// this machine or another one; Conn.DialUnix reaches its sockets.
//
// # A backup
//
//	Clean   end a stale job of the task, delete its checkpoints but for those to keep, remove its files
//	Begin   freeze, DomainBackupBegin with a new checkpoint, thaw
//	Open    per disk: NBD with base:allocation and, since a reference, qemu:dirty-bitmap
//	End     DomainAbortJob, which is how a pull-mode job ends well, and wait for it
//	        … the saveset is committed …
//	DropCheckpoints   those that no later backup needs
//
// INVARIANT: a checkpoint is deleted only when a saveset that does not need it is durable, or when no saveset knows it. So a
// run that is killed anywhere leaves the reference of the next one.
//
// libvirt tracks changes of qcow2 images only; disks of other formats are read in full each time. While a job runs, QEMU copies
// what the guest overwrites into a scratch file beside the image: it needs as much room as the guest writes meanwhile. Of a
// domain that is off, disks are read from their files by whoever calls (Conn.Files, package images).
//
// The package knows neither savesets nor the appliance.
package libvirt
