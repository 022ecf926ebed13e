package api

import "time"

// Guest is a virtual machine that runs from a saveset, or is restored from one.
type Guest struct {
	ID        string      `json:"id"`
	Name      string      `json:"name" doc:"of the machine on the host"`
	UUID      string      `json:"uuid,omitempty" doc:"of the machine on the host; absent: it does not run"`
	State     GuestState  `json:"state" enum:"booting,running,stopped,moving,restoring,moved,restored,dropped,failed" doc:"stopped: it was shut down, and its overlays keep what it wrote"`
	Over      bool        `json:"over,omitempty" doc:"nothing of it is left on the appliance: no export, no overlay"`
	Saveset   string      `json:"saveset"`
	Client    string      `json:"client" doc:"of the saveset"`
	Task      string      `json:"task" doc:"of the saveset"`
	Host      string      `json:"host" doc:"client whose agent works for it"`
	URI       string      `json:"uri,omitempty" doc:"of the libvirtd; absent: the host's own"`
	HostState string      `json:"host_state,omitempty" doc:"what the host says of it, as virsh names it"`
	Disks     []GuestDisk `json:"disks"`
	Pool      string      `json:"pool,omitempty" doc:"of a move or restore: storage pool of the host"`
	Progress  *GuestJob   `json:"progress,omitempty" doc:"of a move or restore"`
	Problem   string      `json:"problem,omitempty" doc:"what went wrong last"`
	Warnings  []string    `json:"warnings,omitempty" doc:"what it does not have of the saved machine"`
	Created   time.Time   `json:"created_at"`
	By        string      `json:"created_by,omitempty"`
}

// GuestDisk is a disk of a guest.
type GuestDisk struct {
	Target string `json:"target"`
	Export string `json:"export" doc:"id of the export that it is"`
	Bytes  int64  `json:"bytes"`
}

// GuestJob is how far a move or restore is.
type GuestJob struct {
	Disk       string `json:"disk,omitempty" doc:"target of the one that is being copied"`
	Bytes      int64  `json:"bytes"`
	BytesTotal int64  `json:"bytes_total" doc:"0: not known yet"`
}

// GuestState is what a guest does.
type GuestState string

// States of guests.
const (
	GuestBooting   GuestState = "booting"
	GuestRunning   GuestState = "running"
	GuestStopped   GuestState = "stopped"
	GuestMoving    GuestState = "moving"
	GuestRestoring GuestState = "restoring"
	GuestMoved     GuestState = "moved"
	GuestRestored  GuestState = "restored"
	GuestDropped   GuestState = "dropped"
	GuestFailed    GuestState = "failed"
)

// GuestBoot asks for a machine that runs from a saveset.
type GuestBoot struct {
	Saveset     string `json:"saveset" minLength:"1" maxLength:"64"`
	Host        string `json:"host" minLength:"1" maxLength:"64" doc:"client whose agent starts it"`
	URI         string `json:"uri,omitempty" maxLength:"4096" doc:"of the libvirtd on that client's machine; default qemu:///system"`
	Name        string `json:"name,omitempty" maxLength:"255" pattern:"^[^/\\x00-\\x1f]*$" doc:"of the new machine; default: the saved one"`
	NewIdentity bool   `json:"new_identity,omitempty" doc:"give it another UUID and other MAC addresses"`
	Network     string `json:"network,omitempty" maxLength:"255" doc:"libvirt network of all its interfaces, instead of the saved ones"`
	NoNetwork   bool   `json:"no_network,omitempty" doc:"leave its interfaces out"`
	Paused      bool   `json:"paused,omitempty" doc:"start it, and have it wait"`
}

// GuestRestore asks for a machine in a storage pool of a host, made of a saveset.
type GuestRestore struct {
	Saveset     string `json:"saveset" minLength:"1" maxLength:"64"`
	Host        string `json:"host" minLength:"1" maxLength:"64" doc:"client whose agent restores it"`
	URI         string `json:"uri,omitempty" maxLength:"4096" doc:"of the libvirtd on that client's machine; default qemu:///system"`
	Pool        string `json:"pool" minLength:"1" maxLength:"255" doc:"storage pool of the host"`
	Format      string `json:"format,omitempty" enum:"qcow2,raw" doc:"of the images; default qcow2"`
	Name        string `json:"name,omitempty" maxLength:"255" pattern:"^[^/\\x00-\\x1f]*$" doc:"of the new machine; default: the saved one"`
	NewIdentity bool   `json:"new_identity,omitempty" doc:"give it another UUID and other MAC addresses"`
	Network     string `json:"network,omitempty" maxLength:"255" doc:"libvirt network of all its interfaces, instead of the saved ones"`
	NoNetwork   bool   `json:"no_network,omitempty" doc:"leave its interfaces out"`
	Start       bool   `json:"start,omitempty" doc:"start it when it is complete"`
	Overwrite   bool   `json:"overwrite,omitempty" doc:"let it take the place of a machine of its name or identity, once it is complete"`
}

// GuestMove asks for a guest's disks to be copied to a storage pool while it runs.
type GuestMove struct {
	Pool   string `json:"pool" minLength:"1" maxLength:"255" doc:"storage pool of the host"`
	Format string `json:"format,omitempty" enum:"qcow2,raw" doc:"of the images; default qcow2"`
}
