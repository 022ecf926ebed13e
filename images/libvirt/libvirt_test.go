package libvirt

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"coffer/nbd"
)

func TestParseURI(t *testing.T) {
	for text, want := range map[string]URI{
		"":               {Driver: "qemu:///system"},
		"qemu:///system": {Driver: "qemu:///system"},
		"qemu+unix:///system?socket=/run/x&mode=legacy":              {Driver: "qemu:///system", Socket: "/run/x"},
		"qemu+unix:///session?socket=/run/x":                         {Driver: "qemu:///session", Socket: "/run/x"},
		"qemu+ssh://kvm2/system":                                     {Driver: "qemu:///system", SSH: true, Host: "kvm2"},
		"qemu+ssh://root@kvm2:2222/system?keyfile=/k&known_hosts=/h": {Driver: "qemu:///system", SSH: true, Host: "kvm2", User: "root", Port: "2222", KeyFile: "/k", KnownHosts: "/h"},
		"qemu+ssh://[fe80::1]/system":                                {Driver: "qemu:///system", SSH: true, Host: "fe80::1"},
	} {
		got, err := ParseURI(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, word := range map[string]string{
		"vbox:///session":                                  "only qemu",
		"qemu+tcp://kvm2/system":                           "unix socket",
		"qemu+tls://kvm2/system":                           "unix socket",
		"qemu://kvm2/system":                               "unix socket",
		"qemu+ssh:///system":                               "host is missing",
		"qemu+ssh://kvm2/":                                 "path must be",
		"qemu+ssh://kvm2/system?no_verify=1":               "host keys are always verified",
		"qemu+ssh://kvm2/system?known_hosts_verify=ignore": "host keys are always verified",
		"qemu+ssh://kvm2/system?command=/bin/sh":           "not known",
		"qemu+ssh://-oProxyCommand=x/system":               "cannot be",
		"qemu+ssh://-l@kvm2/system":                        "cannot be",
		"qemu+ssh://a:b@kvm2/system":                       "password",
		"qemu+ssh://kvm2/system?keyfile=k":                 "absolute",
		"qemu+ssh://kvm2/system?socket=/a:b":               "colon",
		"qemu:///system?keyfile=/k":                        "not known",
		"qemu:///session":                                  "socket=",
		"qemu+ssh://kvm2/system?keyfile=/a%0Ab":            "character",
		"%":                                                "",
	} {
		if _, err := ParseURI(text); KindOf(err) != KindInvalid || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSSHNeverAsksAndNeverTrusts(t *testing.T) {
	args := strings.Join(sshArgs(URI{Host: "h", User: "u", Port: "1", KeyFile: "/k", KnownHosts: "/a b%"}, "-L", "/l:/r"), " ")
	for _, want := range []string{"-o BatchMode=yes", "-o StrictHostKeyChecking=yes", `-o UserKnownHostsFile="/a b%%" -o GlobalKnownHostsFile=none`,
		"-o ExitOnForwardFailure=yes", "-i /k", "-l u", "-p 1", "-L /l:/r", "-s -- h sftp"} {
		if !strings.Contains(args, want) {
			t.Errorf("ssh %s: lacks %s", args, want)
		}
	}
}

// What a host runs gets its arguments as they are and gives its status back; it does not outlive the input that ssh carries.
func TestCommandsOfAHost(t *testing.T) {
	run := func(argv ...string) *exec.Cmd { // what sshd does with the last argument of ssh
		args := URI{Host: "h"}.command(t.Context(), argv).Args
		return exec.Command("sh", "-c", args[len(args)-1])
	}
	odd := "a 'b' \"c\" $HOME `id` \\ \n*;"
	cmd := run("printf", "%s|", odd, "", "-n")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if want := odd + "||-n|"; err != nil || string(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	for status, argv := range map[int][]string{3: {"sh", "-c", "exit 3"}, 127: {"no-such-program"}} {
		cmd := run(argv...)
		_, _ = cmd.StdinPipe()
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != status {
			t.Errorf("%v: %v, want %d", argv, err, status)
		}
	}
	cmd = run("sleep", "600")
	leash, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = leash.Close()
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
}

// A connection that is lost is called that: the library says "invalid argument" of a call that comes later.
func TestLostConnectionIsNamed(t *testing.T) {
	c := &Conn{uri: URI{Host: "kvm2", SSH: true}}
	for _, lost := range []error{syscall.EINVAL, golibvirt.ErrInterrupted} {
		err := failure("look", c.await(t.Context(), func() error { return lost }))
		if KindOf(err) != KindUnreachable || !strings.Contains(err.Error(), "kvm2: the connection is lost") {
			t.Errorf("%v, %v", err, KindOf(err))
		}
	}
	if err := c.await(t.Context(), func() error { return golibvirt.Error{Code: uint32(golibvirt.ErrNoDomain)} }); codeOf(err) != golibvirt.ErrNoDomain {
		t.Errorf("%v", err)
	}
}

// pieces is a connection that gives what it has in small pieces.
type pieces struct {
	net.Conn
	r io.Reader
}

func (p pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), 3)]) }
func (p pieces) Close() error               { return nil }

func TestGuardRefusesLengths(t *testing.T) {
	packet := func(n uint32, body int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), make([]byte, body)...)
	}
	for name, c := range map[string]struct {
		in []byte
		ok bool
	}{
		"two packets":         {slices.Concat(packet(28, 24), packet(40, 36)), true},
		"shorter than a head": {slices.Concat(packet(28, 24), packet(27, 36)), false},
		"nothing":             {packet(0, 10), false},
		"endless":             {packet(1<<31, 10), false},
	} {
		got, err := io.ReadAll(&guarded{Conn: pieces{r: bytes.NewReader(c.in)}})
		if c.ok != (err == nil) || c.ok && !bytes.Equal(got, c.in) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// mapped is a disk of known extents.
type mapped struct {
	size        int64
	dirty, zero []extent // flags set
	asked       int64
}

func (m *mapped) Size() int64 { return m.size }

func (m *mapped) BlockStatus(_ context.Context, name string, off, n int64, yield func(n int64, flags uint32) bool) error {
	set, flag := m.dirty, uint32(dirty)
	if name == nbd.ContextAllocation {
		set, flag = m.zero, uint32(nbd.Zero|nbd.Hole)
		m.asked += n
	}
	end := off + n
	for off < end {
		next, flags := end, uint32(0)
		for _, e := range set {
			if e.off <= off && off < e.off+e.n {
				next, flags = min(end, e.off+e.n), flag
				break
			}
			if e.off > off {
				next = min(next, e.off)
			}
		}
		if !yield(next-off, flags) {
			return nil
		}
		off = next
	}
	return nil
}

func TestChanged(t *testing.T) {
	const gib = 1 << 30
	m := &mapped{size: 3 * gib, dirty: []extent{{off: 100, n: 50}, {off: gib - 10, n: 20}, {off: 2 * gib, n: gib}},
		zero: []extent{{off: 120, n: 10}, {off: 2*gib + 5, n: gib - 5}}}
	collect := func(changes bool) (out []extent) {
		t.Helper()
		err := Changed(t.Context(), m, changes, func(off, n int64, zero bool) bool {
			e := extent{off: off, n: n}
			if zero {
				e.flags = 1
			}
			if last := len(out) - 1; last >= 0 && out[last].off+out[last].n == off && out[last].flags == e.flags {
				out[last].n += n
			} else {
				out = append(out, e)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := []extent{{100, 20, 0}, {120, 10, 1}, {130, 20, 0}, {gib - 10, 20, 0}, {2 * gib, 5, 0}, {2*gib + 5, gib - 5, 1}}
	if got := collect(true); !slices.Equal(got, want) {
		t.Errorf("changes: %+v, want %+v", got, want)
	}
	if m.asked != 50+20+gib {
		t.Errorf("allocation was asked for %d bytes: only what is dirty counts", m.asked)
	}
	want = []extent{{0, 120, 0}, {130, 2*gib + 5 - 130, 0}}
	if got := collect(false); !slices.Equal(got, want) {
		t.Errorf("allocated: %+v, want %+v", got, want)
	}
}

const domainXML = `<domain type='kvm'><name>shop</name><uuid>00010203-0405-0607-0809-0a0b0c0d0e0f</uuid><memory unit='KiB'>4194304</memory><vcpu>2</vcpu>
<os><type>hvm</type><loader readonly='yes' type='pflash'>/c.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/img/a.qcow2'/><backingStore type='file'><format type='raw'/><source file='/img/base'/><backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/b'/><target dev='vdb'/></disk>
<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sdb'/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>`

func TestParseDomain(t *testing.T) {
	ref := golibvirt.Domain{Name: "shop", ID: 3}
	for i := range ref.UUID {
		ref.UUID[i] = byte(i)
	}
	d, err := parseDomain(ref, domainXML)
	if err != nil {
		t.Fatal(err)
	}
	if d.UUID != "00010203-0405-0607-0809-0a0b0c0d0e0f" || d.MemoryMiB != 4096 || d.CPUs != 2 || d.Agent != AgentConnected ||
		d.NVRAM != "/var/lib/libvirt/qemu/nvram/shop_VARS.fd" || d.TPM != "/var/lib/libvirt/swtpm/"+d.UUID || len(d.Disks) != 5 {
		t.Errorf("%+v", d)
	}
	if a := d.Disks[0]; a.Format != "qcow2" || a.Source != "file" || a.Path != "/img/a.qcow2" || !slices.Equal(a.Backing, []Layer{{"/img/base", "raw"}}) || !a.Tracked() {
		t.Errorf("%+v", a)
	}
	var saved []string
	for _, disk := range d.Disks {
		if ok, why := disk.Saved(); ok != (why == "") {
			t.Errorf("%s: %v, %q", disk.Target, ok, why)
		} else if ok {
			saved = append(saved, disk.Target)
		}
	}
	if !slices.Equal(saved, []string{"vda", "vdb", "vdc"}) {
		t.Errorf("saved: %v", saved)
	}
	if _, err := parseDomain(ref, strings.Replace(domainXML, "dev='vda'", "dev='../a'", 1)); err == nil {
		t.Error("a target that is a path was taken")
	}
	if _, err := parseDomain(ref, "<domain"); err == nil {
		t.Error("half a document was taken")
	}
}

// fake is a libvirtd with one domain.
type fake struct {
	rpc
	files       map[string]bool
	job         string // XML
	checkpoints []string
	frozen      bool
	calls       []string
	fail        map[string]error // by call
	hang        map[string]chan struct{}
	mu          sync.Mutex // guards calls and frozen
}

func (f *fake) note(call string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.mu.Unlock()
	if c := f.hang[call]; c != nil {
		<-c
	}
	return f.fail[call]
}

func libvirtError(code golibvirt.ErrorNumber) error {
	return golibvirt.Error{Code: uint32(code), Message: "libvirt says no"}
}

func (f *fake) DomainFsfreeze(golibvirt.Domain, []string, uint32) (int32, error) {
	err := f.note("freeze")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = err == nil
	return 2, err
}

func (f *fake) DomainFsthaw(golibvirt.Domain, []string, uint32) (int32, error) {
	f.mu.Lock()
	f.frozen = false
	f.mu.Unlock()
	return 2, f.note("thaw")
}

func (f *fake) DomainBackupBegin(_ golibvirt.Domain, backup string, cp golibvirt.OptString, _ golibvirt.DomainBackupBeginFlags) error {
	if err := f.note("begin"); err != nil {
		return err
	}
	f.job = backup
	if len(cp) == 1 {
		var x libvirtxml.DomainCheckpoint
		if err := x.Unmarshal(cp[0]); err != nil {
			return err
		}
		f.checkpoints = append(f.checkpoints, x.Name)
	}
	return nil
}

func (f *fake) DomainBackupGetXMLDesc(golibvirt.Domain, uint32) (string, error) {
	if f.job == "" {
		return "", libvirtError(golibvirt.ErrNoDomainBackup)
	}
	return f.job, nil
}

func (f *fake) DomainAbortJob(golibvirt.Domain) error {
	f.job = ""
	return f.note("abort")
}

func (f *fake) DomainListAllCheckpoints(golibvirt.Domain, int32, uint32) (out []golibvirt.DomainCheckpoint, _ int32, _ error) {
	for _, name := range f.checkpoints {
		out = append(out, golibvirt.DomainCheckpoint{Name: name})
	}
	return out, 0, f.note("list")
}

func (f *fake) DomainCheckpointDelete(c golibvirt.DomainCheckpoint, flags golibvirt.DomainCheckpointDeleteFlags) error {
	call := "delete"
	if flags == golibvirt.DomainCheckpointDeleteMetadataOnly {
		call = "forget"
	}
	if err := f.note(call); err != nil {
		return err
	}
	f.checkpoints = slices.DeleteFunc(f.checkpoints, func(name string) bool { return name == c.Name })
	return nil
}

func (f *fake) Open(context.Context, string) (File, error)        { return nil, fs.ErrNotExist }
func (f *fake) Stat(context.Context, string) (fs.FileInfo, error) { return nil, fs.ErrNotExist }
func (f *fake) ReadDir(_ context.Context, dir string) (out []fs.FileInfo, _ error) {
	for name := range f.files {
		if filepath.Dir(name) == dir {
			out = append(out, fileInfo{name: filepath.Base(name)})
		}
	}
	return out, nil
}
func (f *fake) Remove(_ context.Context, name string) error { delete(f.files, name); return nil }

func newFake() (*fake, *Conn, *Domain) {
	f := &fake{files: map[string]bool{}, fail: map[string]error{}, hang: map[string]chan struct{}{}}
	c := &Conn{lv: f, files: f, close: func() error { return nil }}
	d := &Domain{Name: "shop", State: StateRunning, Agent: AgentConnected, Disks: []Disk{
		{Target: "vda", Device: "disk", Format: "qcow2", Source: "file", Path: "/img/a"},
		{Target: "vdb", Device: "disk", Format: "raw", Source: "block", Path: "/dev/b"},
		{Target: "vdc", Device: "disk", Format: "qcow2", Source: "file", Path: "/img/c"}}}
	return f, c, d
}

var tag = Tag{Owner: "0a", Run: "r-2"}

func TestBeginFreezesAndThaws(t *testing.T) {
	f, c, d := newFake()
	j, err := c.Begin(t.Context(), d, JobSpec{Tag: tag, Disks: []string{"vda", "vdb"}, Checkpoint: true,
		Reference: &Checkpoint{Name: "coffer-0a-r-1", Disks: []string{"vda"}}})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"freeze", "begin", "thaw"}; !slices.Equal(f.calls, want) || f.frozen {
		t.Errorf("calls %v, want %v", f.calls, want)
	}
	if j.Quiesced.State != Frozen || j.Quiesced.FileSystems != 2 || j.Checkpoint != "coffer-0a-r-2" || !j.Changes("vda") || j.Changes("vdb") {
		t.Errorf("%+v", j)
	}
	var x libvirtxml.DomainBackup
	if err := xml.Unmarshal([]byte(f.job), &x); err != nil {
		t.Fatal(err)
	}
	disks := x.Pull.Disks.Disks
	if len(disks) != 3 || disks[0].Incremental != "coffer-0a-r-1" || disks[0].ExportBitmap != bitmapName || disks[0].Scratch.File.File != "/img/coffer-0a-r-2-vda.scratch" ||
		disks[1].BackupMode != "full" || disks[1].Scratch.File.File != "/var/tmp/coffer-0a-r-2-vdb.scratch" || disks[2].Backup != "no" ||
		x.Pull.Server.UNIX.Socket != "/var/tmp/coffer-0a-r-2.sock" {
		t.Errorf("%s", f.job)
	}
	f.files["/img/coffer-0a-r-2-vda.scratch"], f.files["/img/other"] = true, true
	if err := j.End(t.Context()); err != nil || f.job != "" || len(f.files) != 1 {
		t.Errorf("end: %v, job %q, files %v", err, f.job, f.files)
	}
}

// Whatever fails, the guest does not stay frozen and no job stays.
func TestBeginFails(t *testing.T) {
	for name, c := range map[string]struct {
		mode  QuiesceMode
		agent GuestAgent
		fail  string
		err   error
		want  string // state; empty: an error
		kind  Kind
	}{
		"the agent does not freeze":               {"", AgentConnected, "freeze", libvirtError(golibvirt.ErrAgentUnresponsive), "freeze_failed", 0},
		"it has to, and does not":                 {QuiesceRequire, AgentConnected, "freeze", libvirtError(golibvirt.ErrAgentUnresponsive), "", KindOther},
		"it has to, and there is none":            {QuiesceRequire, AgentAbsent, "", nil, "", KindOther},
		"there is none":                           {"", AgentAbsent, "", nil, "crash_consistent", 0},
		"it shall not":                            {QuiesceOff, AgentConnected, "", nil, "crash_consistent", 0},
		"the bitmap is inconsistent":              {"", AgentConnected, "begin", libvirtError(golibvirt.ErrCheckpointInconsistent), "", KindLost},
		"libvirtd refuses":                        {"", AgentConnected, "begin", libvirtError(golibvirt.ErrOperationInvalid), "", KindOther},
		"the guest does not thaw: a job for none": {"", AgentConnected, "thaw", libvirtError(golibvirt.ErrAgentUnresponsive), "", KindOther},
	} {
		t.Run(name, func(t *testing.T) {
			f, conn, d := newFake()
			d.Agent = c.agent
			f.fail[c.fail] = c.err
			j, err := conn.Begin(t.Context(), d, JobSpec{Tag: tag, Disks: []string{"vda"}, Quiesce: c.mode, Checkpoint: true})
			switch {
			case c.want == "" && (err == nil || KindOf(err) != c.kind || f.job != ""):
				t.Errorf("%v, job %q", err, f.job)
			case c.want != "" && (err != nil || string(j.Quiesced.State) != c.want || (j.Quiesced.Err != nil) != (c.fail != "")):
				t.Errorf("%+v, %v", j, err)
			}
			if f.frozen {
				t.Error("the guest stays frozen")
			}
		})
	}
}

// A guest agent that hangs is given up, and thawed; the backup goes on without.
func TestFreezeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c, d := newFake()
		f.hang["freeze"] = make(chan struct{})
		start := time.Now()
		q, err := c.freeze(t.Context(), d, QuiesceAuto)
		if err != nil || q.State != FreezeFailed || time.Since(start) != freezeTimeout {
			t.Errorf("%+v, %v after %v", q, err, time.Since(start))
		}
		close(f.hang["freeze"])
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestClean(t *testing.T) {
	f, c, d := newFake()
	f.job = "<domainbackup mode='pull'><server transport='unix' socket='/x/coffer-0a-r-1.sock'/></domainbackup>"
	f.checkpoints = []string{"coffer-0a-r-0", "mine", "coffer-0a-r-1", "coffer-0ab-r-1"}
	for _, name := range []string{"/img/coffer-0a-r-1-vda.scratch", "/img/coffer-0ab-r-1-vda.scratch", "/img/coffer-0a-notes", "/var/tmp/coffer-0a-r-1.sock", "/own/coffer-0a-r-1-vdb.scratch"} {
		f.files[name] = true
	}
	got, err := c.Clean(t.Context(), d, tag, "/own", "coffer-0a-r-0")
	if err != nil || !got.Job || !slices.Equal(got.Checkpoints, []string{"coffer-0a-r-1"}) || len(got.Files) != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	if want := []string{"coffer-0a-r-0", "mine", "coffer-0ab-r-1"}; !slices.Equal(f.checkpoints, want) || len(f.files) != 2 || f.job != "" {
		t.Errorf("left: %v, %v, %q", f.checkpoints, f.files, f.job)
	}
	for _, theirs := range []string{"<domainbackup mode='pull'><server transport='unix' socket='/x/coffer-0ab-r-1.sock'/></domainbackup>",
		"<domainbackup mode='pull'><server transport='tcp' name='h' port='1'/></domainbackup>", "<domainbackup mode='push'/>"} {
		f.job = theirs
		if _, err := c.Clean(t.Context(), d, tag, ""); KindOf(err) != KindBusy || f.job != theirs {
			t.Errorf("beside %s: %v", theirs, err)
		}
	}
}

func TestDropCheckpoints(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		forget bool
	}{
		"a bitmap is lost":       {libvirtError(golibvirt.ErrCheckpointInconsistent), true},
		"libvirtd has no time":   {libvirtError(golibvirt.ErrOperationTimeout), false},
		"a job is in the way":    {libvirtError(golibvirt.ErrOperationInvalid), false},
		"the connection is lost": {errors.New("gone"), false},
	} {
		f, conn, d := newFake()
		f.checkpoints = []string{"coffer-0a-r-0", "coffer-0a-r-1"}
		f.fail["delete"] = c.err
		dropped, err := conn.DropCheckpoints(t.Context(), d, tag, "coffer-0a-r-0")
		if c.forget != (err == nil) || c.forget != (len(dropped) == 1) || c.forget == slices.Contains(f.checkpoints, "coffer-0a-r-1") || !slices.Contains(f.checkpoints, "coffer-0a-r-0") {
			t.Errorf("%s: dropped %v, left %v, %v", name, dropped, f.checkpoints, err)
		}
	}
	f, conn, d := newFake()
	f.checkpoints, d.State = []string{"coffer-0a-r-0"}, StateOff
	if dropped, err := conn.DropCheckpoints(t.Context(), d, tag); err != nil || len(dropped) != 0 || len(f.checkpoints) != 1 {
		t.Errorf("off: %v, %v", dropped, err)
	}
}

func TestTag(t *testing.T) {
	for _, bad := range []Tag{{}, {Owner: "a"}, {Owner: "a-b", Run: "r"}, {Owner: "a", Run: "../r"}, {Owner: "a", Run: strings.Repeat("r", 41)}} {
		if bad.Validate() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := (Tag{Owner: "0123456789ab", Run: "20261122-101104-001"}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestCallIsGivenUp(t *testing.T) {
	f, c, d := newFake()
	f.hang["abort"] = make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
	if err := c.call(ctx, "abort", func(lv rpc) error { return lv.DomainAbortJob(d.ref) }); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	close(f.hang["abort"])
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, c, _ = newFake()
	if err := c.call(t.Context(), "panic", func(rpc) error { panic("bad answer") }); err == nil {
		t.Error("a panic is no error")
	}
}
