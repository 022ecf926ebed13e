package libvirt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// NBDDisk is an export that stands for a disk.
type NBDDisk struct {
	Export string // its name on the wire
	Socket string // unix socket on the host
}

// FileDisk is an image on the host that stands for a disk.
type FileDisk struct {
	Path   string
	Format string // raw, qcow2
	Block  bool   // a block device
}

// Machine says how the definition of a saved machine becomes one that can be started.
type Machine struct {
	XML string // as it was saved
	// Name of the new machine; empty: that of the old one.
	Name string
	// NewIdentity gives it a new UUID and new MAC addresses, so that it can run beside the old one.
	NewIdentity bool
	// NBD and Files hold what the disks are now, by target. Disks in neither are left out, drives for media become empty.
	NBD   map[string]NBDDisk
	Files map[string]FileDisk
	// NVRAM is the file of the firmware's variables on the host; empty: the firmware makes new ones.
	NVRAM string
	// Network replaces the networks of all interfaces; NoNetwork takes the interfaces out.
	Network   string
	NoNetwork bool
}

// Definition returns the XML to define or start, and what of the old machine it does not have, for people.
func (m Machine) Definition() (xml string, lost []string, err error) {
	var x libvirtxml.Domain
	if err := x.Unmarshal(m.XML); err != nil {
		return "", nil, failf(KindInvalid, "read the definition of the saved machine", "%w", err)
	}
	if x.Devices == nil || x.OS == nil {
		return "", nil, failf(KindInvalid, "read the definition of the saved machine", "it has no devices or no operating system")
	}
	x.ID, x.SecLabel, x.Resource = nil, nil, nil
	if m.Name != "" {
		x.Name = m.Name
	}
	if m.NewIdentity {
		if x.UUID, err = newUUID(); err != nil {
			return "", nil, err
		}
		x.GenID = nil
		if x.SysInfo != nil { // the firmware's tables repeat the UUID, and libvirt refuses another one there
			for i := range x.SysInfo {
				dropUUID(&x.SysInfo[i])
			}
		}
	}
	m.firmware(&x)
	lost = append(lost, m.disks(&x)...)
	m.interfaces(&x)
	lost = append(lost, hostOnly(x.Devices)...)
	forgetRunning(x.Devices)
	text, err := x.Marshal()
	if err != nil {
		return "", nil, failf(KindInvalid, "write the definition of the machine", "%w", err)
	}
	return text, lost, nil
}

func dropUUID(s *libvirtxml.DomainSysInfo) {
	if s.SMBIOS == nil || s.SMBIOS.System == nil {
		return
	}
	kept := s.SMBIOS.System.Entry[:0]
	for _, e := range s.SMBIOS.System.Entry {
		if e.Name != "uuid" {
			kept = append(kept, e)
		}
	}
	s.SMBIOS.System.Entry = kept
}

// firmware gives the machine its variables, or lets libvirt make new ones.
func (m Machine) firmware(x *libvirtxml.Domain) {
	if x.OS.NVRam == nil {
		return
	}
	x.OS.NVRam.Source = nil
	x.OS.NVRam.NVRam = m.NVRAM
	if m.NVRAM == "" && x.OS.NVRam.Template == "" {
		x.OS.NVRam = nil
	}
}

// disks puts the new sources in.
func (m Machine) disks(x *libvirtxml.Domain) (lost []string) {
	var kept []libvirtxml.DomainDisk
	for _, d := range x.Devices.Disks {
		target := ""
		if d.Target != nil {
			target = d.Target.Dev
		}
		d.BackingStore, d.Mirror, d.Auth, d.Encryption = nil, nil, nil, nil
		switch nbd, file := m.NBD[target], m.Files[target]; {
		case nbd.Socket != "":
			d.Source = &libvirtxml.DomainDiskSource{Network: &libvirtxml.DomainDiskSourceNetwork{
				Protocol: "nbd", Name: nbd.Export,
				Hosts: []libvirtxml.DomainDiskSourceHost{{Transport: "unix", Socket: nbd.Socket}},
			}}
			d.Driver = driver(d.Driver, "raw")
			// A lost appliance must pause the machine, not give its file systems errors.
			d.Driver.ErrorPolicy, d.Driver.RErrorPolicy, d.Driver.IO = "stop", "stop", ""
		case file.Path != "":
			d.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: file.Path}}
			if file.Block {
				d.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: file.Path}}
			}
			d.Driver = driver(d.Driver, file.Format)
		case d.Device == "cdrom" || d.Device == "floppy":
			if d.Source != nil {
				lost = append(lost, fmt.Sprintf("the medium in drive %s", target))
			}
			d.Source = nil
		default:
			lost = append(lost, fmt.Sprintf("disk %s, which the saveset does not have", target))
			continue
		}
		kept = append(kept, d)
	}
	x.Devices.Disks = kept
	return lost
}

// driver keeps of an old disk's driver what the guest may notice.
func driver(old *libvirtxml.DomainDiskDriver, format string) *libvirtxml.DomainDiskDriver {
	d := &libvirtxml.DomainDiskDriver{Name: "qemu", Type: format, Discard: "unmap"}
	if old != nil {
		d.Queues, d.QueueSize, d.IOMMU, d.ATS, d.Packed = old.Queues, old.QueueSize, old.IOMMU, old.ATS, old.Packed
		d.IOThread, d.Cache = old.IOThread, old.Cache
	}
	return d
}

func (m Machine) interfaces(x *libvirtxml.Domain) {
	if m.NoNetwork {
		x.Devices.Interfaces = nil
	}
	for i := range x.Devices.Interfaces {
		n := &x.Devices.Interfaces[i]
		if m.NewIdentity {
			n.MAC = nil
		}
		if m.Network != "" {
			n.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: m.Network}}
			n.VirtualPort, n.VLan, n.PortOptions = nil, nil, nil
		}
		if n.Source != nil && n.Source.Network != nil {
			n.Source.Network.PortID, n.Source.Network.Bridge = "", ""
		}
		n.Target = nil
	}
}

// hostOnly takes out what belongs to the old machine's host alone.
func hostOnly(d *libvirtxml.DomainDeviceList) (lost []string) {
	if n := len(d.Hostdevs); n > 0 {
		lost = append(lost, fmt.Sprintf("%d devices of the host that were passed through", n))
		d.Hostdevs = nil
	}
	if n := len(d.Filesystems); n > 0 {
		lost = append(lost, fmt.Sprintf("%d directories of the host that were shared", n))
		d.Filesystems = nil
	}
	return lost
}

// forgetRunning takes out what libvirt noted of the running machine: its next start makes these anew.
func forgetRunning(d *libvirtxml.DomainDeviceList) {
	for i := range d.Channels {
		if s := d.Channels[i].Source; s != nil && s.UNIX != nil && s.UNIX.Mode == "bind" && strings.HasPrefix(s.UNIX.Path, "/var/lib/libvirt/") {
			s.UNIX.Path = ""
		}
	}
	for i := range d.Serials {
		if s := d.Serials[i].Source; s != nil && s.Pty != nil {
			s.Pty.Path = ""
		}
	}
	for i := range d.Consoles {
		d.Consoles[i].TTY = ""
		if s := d.Consoles[i].Source; s != nil && s.Pty != nil {
			s.Pty.Path = ""
		}
	}
}

func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// Start starts a transient machine: it is gone when it stops. Paused, it waits for Resume.
func (c *Conn) Start(ctx context.Context, xml string, paused bool) (*Domain, error) {
	flags := golibvirt.DomainCreateFlags(0)
	if paused {
		flags = golibvirt.DomainStartPaused
	}
	var ref golibvirt.Domain
	err := c.await(ctx, func() (err error) {
		ref, err = c.raw.DomainCreateXML(xml, flags)
		return err
	})
	if err != nil {
		return nil, failure("start the machine", err)
	}
	return &Domain{Name: ref.Name, UUID: formatUUID(ref.UUID), ID: ref.ID, State: StateRunning, ref: ref}, nil
}

// Define makes a machine that stays. Of one that runs and is transient, it makes it stay.
func (c *Conn) Define(ctx context.Context, xml string) (*Domain, error) {
	var ref golibvirt.Domain
	err := c.await(ctx, func() (err error) {
		ref, err = c.raw.DomainDefineXML(xml)
		return err
	})
	if err != nil {
		return nil, failure("define the machine", err)
	}
	return &Domain{Name: ref.Name, UUID: formatUUID(ref.UUID), ID: ref.ID, State: StateOff, Persistent: true, ref: ref}, nil
}

// Boot starts a defined machine.
func (c *Conn) Boot(ctx context.Context, d *Domain) error {
	return failure("start "+d.Name, c.await(ctx, func() error {
		_, err := c.raw.DomainCreateWithFlags(d.ref, 0)
		return err
	}))
}

// Destroy ends a machine as pulling its plug does. One that does not run is no error.
func (c *Conn) Destroy(ctx context.Context, d *Domain) error {
	err := c.await(ctx, func() error { return c.raw.DomainDestroy(d.ref) })
	if n := codeOf(err); n == golibvirt.ErrOperationInvalid || n == golibvirt.ErrNoDomain {
		return nil
	}
	return failure("stop "+d.Name, err)
}

// Undefine removes a definition with its notes of checkpoints. The firmware's variables stay, as the disks do. No definition
// is no error.
func (c *Conn) Undefine(ctx context.Context, d *Domain) error {
	flags := golibvirt.DomainUndefineKeepNvram | golibvirt.DomainUndefineCheckpointsMetadata
	err := c.await(ctx, func() error { return c.raw.DomainUndefineFlags(d.ref, flags) })
	if n := codeOf(err); n == golibvirt.ErrNoDomain || n == golibvirt.ErrOperationInvalid {
		return nil
	}
	return failure("remove the definition of "+d.Name, err)
}

// Rename gives a machine that is off another name. libvirt refuses it for one with checkpoints: their notes go first.
func (c *Conn) Rename(ctx context.Context, d *Domain, name string) error {
	op := fmt.Sprintf("rename %s to %s", d.Name, name)
	if err := c.ForgetCheckpoints(ctx, d); err != nil {
		return failure(op, err)
	}
	err := c.await(ctx, func() error {
		_, err := c.raw.DomainRename(d.ref, golibvirt.OptString{name}, 0)
		return err
	})
	if err != nil {
		return failure(op, err)
	}
	d.Name, d.ref.Name = name, name
	return nil
}

// ForgetCheckpoints takes the checkpoints of a machine off libvirt's books, and leaves its images alone.
func (c *Conn) ForgetCheckpoints(ctx context.Context, d *Domain) error {
	refs, err := c.checkpoints(ctx, d)
	if err != nil {
		return err
	}
	var faults []error
	for _, ref := range slices.Backward(refs) {
		err := c.call(ctx, "forget checkpoint "+ref.Name, func(lv rpc) error {
			return lv.DomainCheckpointDelete(ref, golibvirt.DomainCheckpointDeleteMetadataOnly)
		})
		if codeOf(err) != golibvirt.ErrNoDomainCheckpoint {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// Resume lets a paused machine go on.
func (c *Conn) Resume(ctx context.Context, d *Domain) error {
	return failure("resume "+d.Name, c.await(ctx, func() error { return c.raw.DomainResume(d.ref) }))
}

// PausedByError tells whether a machine is paused because a disk failed.
func (c *Conn) PausedByError(ctx context.Context, d *Domain) (bool, error) {
	var state, reason int32
	err := c.call(ctx, "ask for the state of "+d.Name, func(lv rpc) (err error) {
		state, reason, err = lv.DomainGetState(d.ref, 0)
		return err
	})
	return err == nil && stateOf(state) == StatePaused && golibvirt.DomainPausedReason(reason) == golibvirt.DomainPausedIoerror, err
}

// Definition is the XML that makes a running machine stay as it runs now, when it is defined.
func (c *Conn) Definition(ctx context.Context, d *Domain) (xml string, err error) {
	err = c.call(ctx, "read the definition of "+d.Name, func(lv rpc) (err error) {
		xml, err = lv.DomainGetXMLDesc(d.ref, golibvirt.DomainXMLInactive|golibvirt.DomainXMLSecure)
		return err
	})
	return xml, err
}

// Identity reads the name and UUID in a definition.
func Identity(xml string) (name, uuid string, err error) {
	var x libvirtxml.Domain
	if err := x.Unmarshal(xml); err != nil {
		return "", "", failf(KindInvalid, "read the definition of the saved machine", "%w", err)
	}
	return x.Name, x.UUID, nil
}
