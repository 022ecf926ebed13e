package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// libvirtTools are the programs that StartLibvirt needs.
var libvirtTools = []string{"libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "unshare"}

// consolePatience is for guests under emulation on a busy machine.
const consolePatience = 10 * time.Minute

// Libvirt is a libvirtd for one test.
type Libvirt struct {
	Dir    string // of its files; guests' files may be in it, too
	Socket string
	t      testing.TB
	kind   string
}

// StartLibvirt starts a libvirtd in namespaces of its own (see libvirt-up.sh). Its domains end with the test.
func StartLibvirt(t testing.TB) *Libvirt {
	t.Helper()
	Need(t, libvirtTools...)
	l := &Libvirt{Dir: Dir(t), t: t, kind: "qemu"}
	down := script(t, l.Dir, "libvirt-down.sh")
	t.Cleanup(func() { run(t, nil, "/bin/bash", down, l.Dir) })
	out := run(t, nil, "/bin/bash", script(t, l.Dir, "libvirt-up.sh"), l.Dir)
	for _, line := range strings.Split(out, "\n") {
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		switch name {
		case "LIBVIRT_SOCK":
			l.Socket = strings.Trim(value, "'")
		case "LIBVIRT_DOMAIN_TYPE":
			l.kind = value
		}
	}
	return l
}

// For returns it for a subtest, so that its failures are the subtest's.
func (l *Libvirt) For(t testing.TB) *Libvirt {
	sub := *l
	sub.t = t
	return &sub
}

// URI reaches it through its socket.
func (l *Libvirt) URI() string { return "qemu+unix:///system?socket=" + l.Socket }

// Enter begins the command line of a program that is to see the files of this libvirtd, such as /var/lib/libvirt, as it does.
func (l *Libvirt) Enter() []string {
	l.t.Helper()
	pid, err := os.ReadFile(filepath.Join(l.Dir, "libvirtd.pid"))
	if err != nil {
		l.t.Fatal(err)
	}
	return []string{"nsenter", "--mount=/proc/" + strings.TrimSpace(string(pid)) + "/ns/mnt", "--"}
}

// SSH is the URI that reaches it through an sshd.
func (l *Libvirt) SSH(s *SSHD) string {
	return fmt.Sprintf("qemu+ssh://root@127.0.0.1:%s/system?socket=%s&keyfile=%s&known_hosts=%s", s.Port, l.Socket, s.KeyFile, s.KnownHosts)
}

// Virsh runs virsh and returns what it printed.
func (l *Libvirt) Virsh(args ...string) string {
	l.t.Helper()
	return strings.TrimSpace(run(l.t, nil, "virsh", append([]string{"-q", "-c", l.URI()}, args...)...))
}

// Disk is a disk of a domain.
type Disk struct{ Path, Format string }

// Domain describes a domain.
type Domain struct {
	Name, UUID string // UUID may be empty
	Disks      []Disk // vda, vdb, …
	Mode       string // of a guest: what it does
	Serial     string // file that gets its console; empty: none
	MiB        int    // of memory; 0: 256
	Agent      bool   // has a channel for a guest agent
	Extra      string // XML of further devices
	OS         string // XML within <os>
}

// Define defines a domain.
func (l *Libvirt) Define(d Domain) {
	l.t.Helper()
	path := filepath.Join(l.Dir, d.Name+".xml")
	if err := os.WriteFile(path, []byte(l.xml(d)), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.Virsh("define", path)
}

// Run defines a domain and starts it.
func (l *Libvirt) Run(d Domain) {
	l.t.Helper()
	l.Define(d)
	l.Virsh("start", d.Name)
}

func (l *Libvirt) xml(d Domain) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<domain type='%s'><name>%s</name>", l.kind, d.Name)
	if d.UUID != "" {
		fmt.Fprintf(&b, "<uuid>%s</uuid>", d.UUID)
	}
	mib := d.MiB
	if mib == 0 {
		mib = 256
	}
	fmt.Fprintf(&b, `<memory unit='MiB'>%d</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>%s<boot dev='hd'/><smbios mode='sysinfo'/></os>
<sysinfo type='smbios'><system><entry name='serial'>mode=%s</entry></system></sysinfo>
<features><acpi/><apic/></features><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash><devices>`, mib, d.OS, d.Mode)
	for i, disk := range d.Disks {
		fmt.Fprintf(&b, "<disk type='file' device='disk'><driver name='qemu' type='%s' discard='unmap'/><source file='%s'/><target dev='vd%c' bus='virtio'/></disk>\n",
			disk.Format, disk.Path, 'a'+i)
	}
	if d.Serial != "" {
		fmt.Fprintf(&b, "<serial type='file'><source path='%s'/><target port='0'/></serial>", d.Serial)
	}
	if d.Agent {
		b.WriteString("<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
	}
	b.WriteString(d.Extra + "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>\n")
	return b.String()
}

// Image makes an empty disk.
func (l *Libvirt) Image(name, format string, mib int) Disk {
	l.t.Helper()
	path := filepath.Join(l.Dir, name)
	run(l.t, nil, "qemu-img", "create", "-q", "-f", format, path, fmt.Sprintf("%dM", mib))
	return Disk{path, format}
}

// Write has QEMU write to a disk as its guest would: n disk is the i-th, counted from 0; what is a command of qemu-io, such as
// "write -P 7 1M 64k".
func (l *Libvirt) Write(domain string, i int, what string) {
	l.t.Helper()
	out := l.Virsh("qemu-monitor-command", domain, "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%s"`, i, what))
	if !strings.Contains(out, "ops;") && out != "" {
		l.t.Fatalf("qemu-io %q: %s", what, out)
	}
}

// Console waits until a domain's console says something.
func Console(t testing.TB, file, text string, times int) {
	t.Helper()
	var said []byte
	defer func() {
		if strings.Count(string(said), text) < times {
			t.Logf("the console ends with\n%s", said[max(0, len(said)-2000):])
		}
	}()
	Eventually(t, text+" on the console", consolePatience, func() bool {
		said, _ = os.ReadFile(file)
		return strings.Count(string(said), text) >= times
	})
}
