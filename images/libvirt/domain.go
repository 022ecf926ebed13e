package libvirt

import (
	"encoding/hex"
	"fmt"
	"path"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// State of a domain, as `virsh domstate` names it.
type State string

// States.
const (
	StateRunning  State = "running"
	StateBlocked  State = "blocked"
	StatePaused   State = "paused"
	StateShutdown State = "in shutdown"
	StateOff      State = "shut off"
	StateCrashed  State = "crashed"
	StateAsleep   State = "pmsuspended"
	StateUnknown  State = "no state"
)

func stateOf(s int32) State {
	switch golibvirt.DomainState(s) {
	case golibvirt.DomainRunning:
		return StateRunning
	case golibvirt.DomainBlocked:
		return StateBlocked
	case golibvirt.DomainPaused:
		return StatePaused
	case golibvirt.DomainShutdown:
		return StateShutdown
	case golibvirt.DomainShutoff:
		return StateOff
	case golibvirt.DomainCrashed:
		return StateCrashed
	case golibvirt.DomainPmsuspended:
		return StateAsleep
	}
	return StateUnknown
}

// GuestAgent tells what is known of the guest agent of a domain.
type GuestAgent string

// The states of a guest agent.
const (
	AgentNone      GuestAgent = "none"      // the domain has no channel for one
	AgentAbsent    GuestAgent = "absent"    // there is a channel, and nobody listens
	AgentConnected GuestAgent = "connected" // it answers
)

// agentChannel is the name of the guest agent's channel. Part of QEMU's protocol.
const agentChannel = "org.qemu.guest_agent.0"

// Domain is a virtual machine of a host.
type Domain struct {
	UUID, Name string
	ID         int32 // of the running machine, -1 where it is off
	State      State
	Persistent bool // defined: it stays when it is off
	Agent      GuestAgent
	MemoryMiB  uint64
	CPUs       uint
	Disks      []Disk
	// NVRAM is the file of the firmware's variables on the host; empty where there is none.
	NVRAM string
	// TPM is the directory of the state of an emulated TPM on the host, its usual place where the domain names none;
	// empty where there is none.
	TPM string

	ref golibvirt.Domain
}

// Active tells whether the machine has a QEMU process.
func (d *Domain) Active() bool {
	switch d.State {
	case StateRunning, StateBlocked, StatePaused, StateShutdown, StateAsleep:
		return true
	}
	return false
}

// Ref is the domain as libvirt's API wants it.
func (d *Domain) Ref() golibvirt.Domain { return d.ref }

// Disk is a disk of a domain.
type Disk struct {
	Target string // vda
	Bus    string
	Device string // disk, lun, cdrom, floppy
	Format string // raw, qcow2, …: the driver's, never a guess
	Source string // file, block, network, volume, … or empty
	Path   string // of the file or block device on the host
	Socket string // of an NBD disk that is reached through a unix socket
	// Backing is the chain below, as far as the host's libvirtd tells it.
	Backing  []Layer
	ReadOnly bool
	Capacity int64 // bytes; 0 where it is not known
}

// Layer is a file that a disk's image lies on.
type Layer struct{ Path, Format string }

// Saved tells whether a backup takes the disk, and why it does not.
func (d Disk) Saved() (ok bool, why string) {
	switch {
	case d.Device != "disk":
		return false, "it is a " + d.Device
	case d.Source == "":
		return false, "it is empty"
	case d.Source == "vhostuser" || d.Source == "vhostvdpa" || d.Source == "dir":
		return false, "QEMU cannot read a disk of type " + d.Source + " for a backup"
	}
	return true, ""
}

// parseDomain reads what a backup needs of a domain's XML. Everything else stays in the XML, which is saved as it is.
func parseDomain(ref golibvirt.Domain, text string) (*Domain, error) {
	var x libvirtxml.Domain
	if err := x.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("read its XML: %w", err)
	}
	d := &Domain{UUID: formatUUID(ref.UUID), Name: ref.Name, ID: ref.ID, Agent: AgentNone, ref: ref}
	d.MemoryMiB, d.CPUs = memoryOf(x.Memory), vcpusOf(x.VCPU)
	if x.OS != nil && x.OS.NVRam != nil {
		d.NVRAM = nvramOf(x.OS.NVRam)
	}
	if x.Devices == nil {
		return d, nil
	}
	for i := range x.Devices.Disks {
		disk, err := diskOf(&x.Devices.Disks[i])
		if err != nil {
			return nil, err
		}
		d.Disks = append(d.Disks, disk)
	}
	for _, c := range x.Devices.Channels {
		if c.Target != nil && c.Target.VirtIO != nil && c.Target.VirtIO.Name == agentChannel {
			d.Agent = AgentAbsent
			if c.Target.VirtIO.State == "connected" {
				d.Agent = AgentConnected
			}
		}
	}
	for _, t := range x.Devices.TPMs {
		if t.Backend != nil && t.Backend.Emulator != nil {
			d.TPM = tpmDir + "/" + d.UUID
		}
	}
	return d, nil
}

// tpmDir is where libvirt keeps the state of emulated TPMs (qemu_conf.c: swtpmStorageDir).
const tpmDir = "/var/lib/libvirt/swtpm"

// maxTarget bounds the name of a disk: it is a part of files' names.
const maxTarget = 32

func diskOf(x *libvirtxml.DomainDisk) (Disk, error) {
	d := Disk{Device: x.Device, Format: "raw", ReadOnly: x.ReadOnly != nil}
	if d.Device == "" {
		d.Device = "disk"
	}
	if x.Target != nil {
		d.Target, d.Bus = x.Target.Dev, x.Target.Bus
	}
	if !plainName(d.Target) {
		return d, fmt.Errorf("its disk has the target %q, which cannot be a file's name", d.Target)
	}
	if x.Driver != nil && x.Driver.Type != "" {
		d.Format = x.Driver.Type
	}
	d.Source, d.Path = sourceOf(x.Source)
	d.Socket = socketOf(x.Source)
	for b := x.BackingStore; b != nil && b.Source != nil && len(d.Backing) < 64; b = b.BackingStore {
		layer := Layer{Format: "raw"}
		kind, file := sourceOf(b.Source)
		if kind == "" {
			break // the end of the chain
		}
		layer.Path = file
		if b.Format != nil {
			layer.Format = b.Format.Type
		}
		d.Backing = append(d.Backing, layer)
	}
	return d, nil
}

// plainName tells whether a name can be part of a file's name.
func plainName(s string) bool {
	if s == "" || len(s) > maxTarget {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

func sourceOf(s *libvirtxml.DomainDiskSource) (kind, file string) {
	switch {
	case s == nil:
	case s.File != nil && s.File.File != "":
		return "file", s.File.File
	case s.Block != nil:
		return "block", s.Block.Dev
	case s.Dir != nil:
		return "dir", s.Dir.Dir
	case s.Network != nil:
		return "network", ""
	case s.Volume != nil:
		return "volume", ""
	case s.NVME != nil:
		return "nvme", ""
	case s.VHostUser != nil:
		return "vhostuser", ""
	case s.VHostVDPA != nil:
		return "vhostvdpa", ""
	}
	return "", ""
}

// socketOf is the unix socket of an NBD disk.
func socketOf(s *libvirtxml.DomainDiskSource) string {
	if s == nil || s.Network == nil || s.Network.Protocol != "nbd" {
		return ""
	}
	for _, h := range s.Network.Hosts {
		if h.Transport == "unix" {
			return h.Socket
		}
	}
	return ""
}

func nvramOf(n *libvirtxml.DomainNVRam) string {
	if n.Source != nil {
		kind, file := sourceOf(n.Source)
		if kind == "file" || kind == "block" {
			return file
		}
	}
	if file := strings.TrimSpace(n.NVRam); path.IsAbs(file) {
		return file
	}
	return ""
}

func memoryOf(m *libvirtxml.DomainMemory) uint64 {
	if m == nil {
		return 0
	}
	v := uint64(m.Value)
	switch strings.ToLower(m.Unit) {
	case "b", "bytes":
		return v >> 20
	case "mb", "mib", "m":
		return v
	case "gb", "gib", "g":
		return v << 10
	}
	return v >> 10 // KiB, which is what libvirtd itself writes
}

func vcpusOf(v *libvirtxml.DomainVCPU) uint {
	if v == nil {
		return 0
	}
	return v.Value
}

func formatUUID(u golibvirt.UUID) string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseUUID reads a UUID with or without dashes.
func parseUUID(s string) (u golibvirt.UUID, ok bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, false
	}
	copy(u[:], b)
	return u, true
}
