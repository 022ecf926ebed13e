//go:build linux

package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/appliance/agent/vm"
	"coffer/appliance/internal/lab"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/recipe"
)

// machines is an appliance with an agent, a libvirtd, and the chain of one task.
type machines struct {
	t     *testing.T
	a     *appliance
	lv    *lab.Libvirt
	order sms.LibvirtSource

	last, full *dedup.Manifest
}

const owner = "0123456789ab"

func newMachines(t *testing.T, uri string, lv *lab.Libvirt, domain string) *machines {
	a := newAppliance(t, 0)
	a.agent()
	return &machines{t: t, a: a, lv: lv, order: sms.LibvirtSource{URI: uri, Domain: domain, Owner: owner, ScratchDir: sms.Path(lv.Dir)}}
}

// start orders a backup, with the reference that the appliance would name.
func (m *machines) start(level string) func() (dedup.Manifest, *sink, error) {
	m.t.Helper()
	src := m.order
	parent := m.last
	if level == "DIFF" {
		parent = m.full
	}
	if level == "FULL" || level == "COPY" {
		parent = nil
	}
	if m.last != nil {
		src.LastRun = m.last.Run
	}
	if m.full != nil {
		src.FullRun = m.full.Run
	}
	if parent != nil {
		src.Reference = parent.Run
	}
	r, k := m.a.startBackup(sms.BackupOrder{TaskType: sms.TaskLibvirt, Level: level, ReadAll: parent == nil, Libvirt: &src}, parent)
	return func() (dedup.Manifest, *sink, error) {
		res := r.Wait(context.Background())
		if res.Committed == nil {
			if res.Err == nil {
				res.Err = fmt.Errorf("%+v", res.Outcome)
			}
			return dedup.Manifest{}, k, res.Err
		}
		if level != "COPY" {
			m.last = &k.manifest
			if level == "FULL" || k.commit.FullReason != "" {
				m.full = m.last
			}
		}
		return k.manifest, k, nil
	}
}

// backup makes a saveset and returns it with its document.
func (m *machines) backup(level string) (dedup.Manifest, *sink, *vm.Document) {
	m.t.Helper()
	s, k, err := m.start(level)()
	if err != nil {
		m.t.Fatalf("%s: %v", level, err)
	}
	doc, err := vm.ParseDocument(m.read(s, vm.DocumentName))
	if err != nil {
		m.t.Fatal(err)
	}
	return s, k, doc
}

// open opens a file of a saveset.
func (m *machines) open(s dedup.Manifest, path string) (*dedup.File, func()) {
	m.t.Helper()
	v, err := m.a.store.View(m.t.Context(), s.ID)
	if err != nil {
		m.t.Fatal(err)
	}
	dir := s.Root.Digest
	var e recipe.Entry
	for name := range strings.SplitSeq(path, "/") {
		if e, _, err = recipe.Lookup(m.t.Context(), v, dir, name); err != nil {
			m.t.Fatalf("%s: %v", path, err)
		}
		dir = e.Content.Digest
	}
	f, err := dedup.OpenFile(v, e)
	if err != nil {
		m.t.Fatal(err)
	}
	return f, func() { _ = v.Close() }
}

func (m *machines) read(s dedup.Manifest, path string) []byte {
	m.t.Helper()
	f, done := m.open(s, path)
	defer done()
	p := make([]byte, f.Size())
	if err := f.ReadAt(m.t.Context(), p, 0); err != nil {
		m.t.Fatal(err)
	}
	return p
}

// names lists the root of a saveset.
func (m *machines) names(s dedup.Manifest) (out []string) {
	m.t.Helper()
	v, err := m.a.store.View(m.t.Context(), s.ID)
	if err != nil {
		m.t.Fatal(err)
	}
	defer v.Close()
	for it := recipe.NewDirIter(v, s.Root.Digest); ; {
		e, _, err := it.Next(m.t.Context())
		if err == io.EOF {
			return out
		}
		if err != nil {
			m.t.Fatal(err)
		}
		out = append(out, e.Name)
	}
}

// reference copies a disk of a machine by other means.
func reference(t *testing.T, d lab.Disk) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("qemu-img", "convert", "-U", "-f", d.Format, "-O", "raw", d.Path, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m *machines) same(s dedup.Manifest, target string, d lab.Disk) {
	m.t.Helper()
	if got, want := m.read(s, target+vm.DiskSuffix), reference(m.t, d); !bytes.Equal(got, want) {
		m.t.Errorf("disk %s of saveset %v is not what the machine's was: sha256 %x, want %x", target, s.ID, sha256.Sum256(got), sha256.Sum256(want))
	}
}

// clean checks that nothing of ours is on the host but checkpoints of these runs.
func (m *machines) clean(domain string, runs ...string) {
	m.t.Helper()
	var want []string
	for _, run := range runs {
		want = append(want, "coffer-"+owner+"-"+run)
	}
	got := strings.Fields(m.lv.Virsh("checkpoint-list", domain, "--name"))
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		m.t.Errorf("checkpoints of %s: %v, want %v", domain, got, want)
	}
	if out, err := exec.Command("virsh", "-q", "-c", m.lv.URI(), "backup-dumpxml", domain).CombinedOutput(); err == nil {
		m.t.Errorf("a backup job is left: %s", out)
	}
	left, _ := filepath.Glob(filepath.Join(m.lv.Dir, "*coffer-*"))
	if len(left) > 0 {
		m.t.Errorf("files are left: %v", left)
	}
}

func notice(k *sink, code string) *sms.Notice {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.notices {
		if k.notices[i].Code == code {
			return &k.notices[i]
		}
	}
	return nil
}

// The whole life of a task's chain against a real libvirtd; the guest is QEMU's firmware, and its writes are QEMU's own, so
// that what changes is known to the byte.
func TestMachines(t *testing.T) {
	lab.Need(t, "libvirtd", "virsh", "qemu-system-x86_64", "qemu-img")
	lv := lab.StartLibvirt(t)
	t.Run("chain", func(t *testing.T) { testChain(t, lv) })
	t.Run("leftovers", func(t *testing.T) { testLeftovers(t, lv) })
	t.Run("lost bitmap", func(t *testing.T) { testLostBitmap(t, lv) })
	t.Run("shut off", func(t *testing.T) { testShutOff(t, lv) })
	t.Run("over ssh", func(t *testing.T) { testOverSSH(t, lv) })
	t.Run("beside", func(t *testing.T) { testBeside(t, lv) })
	t.Run("failures", func(t *testing.T) { testFailures(t, lv) })
}

func testChain(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	a, b, c := lv.Image("chain-a.qcow2", "qcow2", 64), lv.Image("chain-b.raw", "raw", 8), lv.Image("chain-c.qcow2", "qcow2", 8)
	lv.Run(lab.Domain{Name: "chain", Disks: []lab.Disk{a, b, c}})
	m := newMachines(t, lv.URI(), lv, "chain")
	m.order.ExcludeDisks = []string{"vdc"}
	write := func(i int, what string) {
		lv.Write("chain", i, what)
		lv.Write("chain", i, "flush")
	}
	write(0, "write -P 1 1M 3M")
	write(0, "write -P 2 40M 100k")
	write(1, "write -P 3 1M 64k")
	full, k, doc := m.backup("FULL")
	m.same(full, "vda", a)
	m.same(full, "vdb", b)
	if got := m.names(full); !slices.Equal(got, []string{"backup.json", "domain.xml", "vda.raw", "vdb.raw"}) {
		t.Errorf("the saveset has %v", got)
	}
	if doc.Level != "FULL" || doc.Checkpoint == "" || doc.Reference != "" || len(doc.Disks) != 2 || len(doc.Excluded) != 1 ||
		doc.Quiesce.State != "crash_consistent" || doc.Disks[0].Format != "qcow2" || doc.Disks[0].Capacity != 64<<20 || doc.Disks[0].Incremental {
		t.Errorf("document: %+v", doc)
	}
	if k.commit.SourceID != doc.UUID || k.commit.FullReason != "" {
		t.Errorf("commit: %+v", k.commit)
	}
	if !strings.Contains(string(m.read(full, "domain.xml")), "<uuid>"+doc.UUID) {
		t.Error("domain.xml does not have the machine's UUID")
	}
	m.clean("chain", full.Run)

	write(0, "write -P 4 2M 64k")   // other data
	write(0, "write -z 40M 64k")    // zeros where data was
	write(0, "write -P 5 63M 1000") // a part of a chunk
	incr, _, doc := m.backup("INCR")
	m.same(incr, "vda", a)
	m.same(incr, "vdb", b)
	d := doc.Disks[0]
	if !d.Incremental || d.Dirty == 0 || d.Dirty > 1<<20 || d.Read > d.Dirty+d.Dirty*3/10 || doc.Disks[1].Incremental || doc.Reference == "" {
		t.Errorf("INCR: %+v", doc)
	}
	m.clean("chain", full.Run, incr.Run)

	write(0, "write -P 6 10M 128k")
	before := m.last
	copied, _, doc := m.backup("COPY")
	m.same(copied, "vda", a)
	if doc.Checkpoint != "" || m.last != before {
		t.Errorf("COPY: %+v", doc)
	}
	m.clean("chain", full.Run, incr.Run)

	incr2, _, doc := m.backup("INCR")
	m.same(incr2, "vda", a)
	if d := doc.Disks[0]; !d.Incremental || d.Dirty != 128<<10 || d.Read != d.Dirty {
		t.Errorf("second INCR: %+v", d)
	}
	m.clean("chain", full.Run, incr2.Run)

	diff, _, doc := m.backup("DIFF")
	m.same(diff, "vda", a)
	if d := doc.Disks[0]; !d.Incremental || d.Dirty < 128<<10 || d.Dirty > 1<<20 {
		t.Errorf("DIFF: %+v", d)
	}
	m.clean("chain", full.Run, diff.Run)

	nothing, _, doc := m.backup("INCR")
	m.same(nothing, "vda", a)
	if d := doc.Disks[0]; !d.Incremental || d.Dirty != 0 || d.Read != 0 {
		t.Errorf("INCR of nothing: %+v", d)
	}
	full2, _, _ := m.backup("FULL")
	m.same(full2, "vda", a)
	m.clean("chain", full2.Run)
	m.same(full, "vdb", b) // earlier generations are what they were
}

// What a killed run leaves is removed by the next one, and nothing else is.
func testLeftovers(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	a := lv.Image("left-a.qcow2", "qcow2", 16)
	lv.Run(lab.Domain{Name: "left", Disks: []lab.Disk{a}})
	m := newMachines(t, lv.URI(), lv, "left")
	lv.Write("left", 0, "write -P 1 1M 3M")
	full, _, _ := m.backup("FULL")
	begin := func(tag string) {
		t.Helper()
		job, cp := filepath.Join(lv.Dir, "job.xml"), filepath.Join(lv.Dir, "cp.xml")
		place(t, job, fmt.Sprintf("<domainbackup mode='pull'><server transport='unix' socket='%s/%s.sock'/><disks><disk name='vda' backup='yes' type='file'><scratch file='%s/%s-vda.scratch'/></disk></disks></domainbackup>", lv.Dir, tag, lv.Dir, tag))
		place(t, cp, fmt.Sprintf("<domaincheckpoint><name>%s</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>", tag))
		lv.Virsh("backup-begin", "left", job, cp)
	}
	begin("coffer-" + owner + "-killed")
	place(t, filepath.Join(lv.Dir, "coffer-"+owner+"-killed-vdx.scratch"), "left")
	lv.Write("left", 0, "write -P 2 5M 64k")
	lv.Write("left", 0, "flush")
	incr, k, doc := m.backup("INCR")
	m.same(incr, "vda", a)
	if n := notice(k, "cleaned"); n == nil || k.commit.FullReason != "" || doc.Disks[0].Dirty != 64<<10 {
		t.Errorf("notices %+v, document %+v", k.notices, doc)
	}
	m.clean("left", full.Run, incr.Run)

	begin("coffer-ffffffffffff-other") // another task's
	if _, _, err := m.start("INCR")(); sms.CodeOf(err) != vm.CodeBusy {
		t.Errorf("beside another's job: %v", err)
	}
	lv.Virsh("domjobabort", "left")
	lab.Eventually(t, "end of the job", time.Minute, func() bool {
		return exec.Command("virsh", "-q", "-c", lv.URI(), "backup-dumpxml", "left").Run() != nil
	})
	incr2, _, _ := m.backup("INCR")
	m.same(incr2, "vda", a)
	if got := lv.Virsh("checkpoint-list", "left", "--name"); !strings.Contains(got, "coffer-ffffffffffff-other") {
		t.Errorf("the checkpoint of another task is gone: %s", got)
	}
}

func place(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A bitmap that is lost, and one that a crash left inconsistent, give a FULL for the reason cbt_invalid; the chain goes on
// from there.
func testLostBitmap(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	a := lv.Image("lost-a.qcow2", "qcow2", 16)
	lv.Run(lab.Domain{Name: "lost", Disks: []lab.Disk{a}})
	m := newMachines(t, lv.URI(), lv, "lost")
	lv.Write("lost", 0, "write -P 1 1M 3M")
	full, _, _ := m.backup("FULL")
	invalid := func(what string) {
		t.Helper()
		lv.Write("lost", 0, "write -P 9 2M 64k")
		lv.Write("lost", 0, "flush")
		s, k, doc := m.backup("INCR")
		m.same(s, "vda", a)
		if k.commit.FullReason != sms.FullCBTInvalid || doc.Level != "FULL" || doc.Reason != "cbt_invalid" || doc.Disks[0].Incremental || notice(k, "cbt_invalid") == nil {
			t.Errorf("%s: commit %+v, document %+v, notices %+v", what, k.commit, doc, k.notices)
		}
		m.clean("lost", s.Run)
		lv.Write("lost", 0, "write -P 8 9M 64k")
		s2, k, doc := m.backup("INCR")
		if k.commit.FullReason != "" || doc.Disks[0].Dirty != 64<<10 {
			t.Errorf("%s: INCR after it: %+v", what, doc)
		}
		m.clean("lost", s.Run, s2.Run)
	}
	lv.Virsh("destroy", "lost")
	remove := exec.Command("qemu-img", "bitmap", "--remove", "-f", "qcow2", a.Path, "coffer-"+owner+"-"+full.Run)
	if out, err := remove.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lv.Virsh("start", "lost")
	invalid("a removed bitmap")

	lv.Virsh("checkpoint-delete", "lost", "coffer-"+owner+"-"+m.last.Run, "--metadata")
	invalid("a forgotten checkpoint")
}

// Disks of a machine that is off are read from their files; untouched ones are not read again.
func testShutOff(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	base := lv.Image("off-base.qcow2", "qcow2", 16)
	io := func(path, format, what string) {
		t.Helper()
		if out, err := exec.Command("qemu-io", "-f", format, "-c", what, path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	io(base.Path, "qcow2", "write -P 1 1M 3M")
	a := lab.Disk{Path: filepath.Join(lv.Dir, "off-a.qcow2"), Format: "qcow2"}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base.Path, "-F", "qcow2", a.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b := lv.Image("off-b.raw", "raw", 8)
	io(a.Path, "qcow2", "write -P 2 2M 64k")
	io(b.Path, "raw", "write -P 3 1M 64k")
	lv.Define(lab.Domain{Name: "off", Disks: []lab.Disk{a, b}})
	m := newMachines(t, lv.URI(), lv, "off")
	old := time.Now().Add(-time.Hour)
	for _, path := range []string{base.Path, a.Path, b.Path} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	full, k, doc := m.backup("FULL")
	m.same(full, "vda", a)
	m.same(full, "vdb", b)
	if doc.State != "shut off" || doc.Quiesce.State != "shut_off" || doc.Checkpoint != "" || k.commit.FullReason != "" {
		t.Errorf("FULL: %+v", doc)
	}
	incr, k, doc := m.backup("INCR")
	m.same(incr, "vda", a)
	if k.commit.FullReason != "" || doc.Disks[0].Read != 0 || doc.Disks[1].Read != 0 || k.commit.Counters.BytesRead > 64<<10 {
		t.Errorf("INCR of an untouched machine: %+v, %+v", doc, k.commit)
	}
	io(b.Path, "raw", "write -P 4 2M 64k")
	incr, k, doc = m.backup("INCR")
	m.same(incr, "vda", a)
	m.same(incr, "vdb", b)
	if k.commit.FullReason != sms.FullCBTInvalid || doc.Disks[0].Read != 0 || doc.Disks[1].Read == 0 {
		t.Errorf("INCR of a touched machine: %+v, %+v", doc, k.commit)
	}
	lv.Virsh("start", "off")
	s, k, _ := m.backup("INCR")
	m.same(s, "vda", a)
	if k.commit.FullReason != sms.FullCBTInvalid {
		t.Errorf("INCR of the running machine: %+v", k.commit)
	}
	m.clean("off", s.Run)
}

// A host without an agent is reached through ssh: the same, running and off.
func testOverSSH(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	sshd := lab.StartSSHD(t)
	a := lv.Image("ssh-a.qcow2", "qcow2", 32)
	vars := filepath.Join(lv.Dir, "ssh-vars")
	place(t, vars, "variables")
	lv.Run(lab.Domain{Name: "ssh", Disks: []lab.Disk{a}})
	m := newMachines(t, lv.SSH(sshd), lv, "ssh")
	lv.Write("ssh", 0, "write -P 1 1M 5M")
	lv.Write("ssh", 0, "flush")
	full, _, _ := m.backup("FULL")
	m.same(full, "vda", a)
	lv.Write("ssh", 0, "write -P 2 2M 64k")
	lv.Write("ssh", 0, "flush")
	incr, _, doc := m.backup("INCR")
	m.same(incr, "vda", a)
	if d := doc.Disks[0]; !d.Incremental || d.Dirty != 64<<10 || d.Read != d.Dirty {
		t.Errorf("INCR: %+v", d)
	}
	m.clean("ssh", full.Run, incr.Run)
	lv.Virsh("destroy", "ssh")
	off, k, _ := m.backup("INCR")
	m.same(off, "vda", a)
	if k.commit.FullReason != sms.FullCBTInvalid {
		t.Errorf("off: %+v", k.commit)
	}
	if dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), fmt.Sprintf("coffer-ssh-%d-*", os.Getpid()))); len(dirs) > 0 {
		t.Errorf("tunnels are left: %v", dirs)
	}
	if err := os.WriteFile(sshd.KnownHosts, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.start("FULL")(); sms.CodeOf(err) != vm.CodeUnreachable || !strings.Contains(err.Error(), "Host key verification failed") {
		t.Errorf("with an unknown host key: %v", err)
	}
}

// What lies beside the disks: firmware variables; a warning where they cannot be read.
func testBeside(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	a := lv.Image("beside-a.qcow2", "qcow2", 8)
	vars, code := filepath.Join(lv.Dir, "vars.fd"), filepath.Join(lv.Dir, "code.fd")
	place(t, vars, strings.Repeat("v", 600<<10))
	place(t, code, "code")
	os1 := fmt.Sprintf("<loader readonly='yes' type='pflash'>%s</loader><nvram>%s</nvram>", code, vars)
	lv.Define(lab.Domain{Name: "beside", Disks: []lab.Disk{a}, OS: os1})
	m := newMachines(t, lv.URI(), lv, "beside")
	s, _, doc := m.backup("FULL")
	if got := m.read(s, "nvram"); string(got) != strings.Repeat("v", 600<<10) || doc.NVRAM != vars {
		t.Errorf("nvram: %d bytes, %+v", len(got), doc)
	}
	if err := os.Remove(vars); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(vars, 0o700); err != nil { // root may read everything, but no directory
		t.Fatal(err)
	}
	if _, k, _ := m.backup("FULL"); notice(k, "nvram_not_saved") == nil || k.commit.Counters.Warnings == 0 {
		t.Errorf("nvram that cannot be read: %+v", k.notices)
	}
}

func testFailures(t *testing.T, lv *lab.Libvirt) {
	lv = lv.For(t)
	a := lv.Image("fail-a.qcow2", "qcow2", 8)
	lv.Run(lab.Domain{Name: "fail", Disks: []lab.Disk{a}})
	m := newMachines(t, lv.URI(), lv, "fail")
	full, _, _ := m.backup("FULL")
	for name, c := range map[string]struct {
		change func(s *sms.LibvirtSource)
		code   string
	}{
		"no such machine": {func(s *sms.LibvirtSource) { s.Domain = "nobody" }, vm.CodeNoMachine},
		"no libvirtd":     {func(s *sms.LibvirtSource) { s.URI = "qemu+unix:///system?socket=/nowhere" }, vm.CodeUnreachable},
		"bad URI":         {func(s *sms.LibvirtSource) { s.URI = "vbox:///session" }, vm.CodeBadOrder},
		"quiesce":         {func(s *sms.LibvirtSource) { s.Quiesce = "require" }, vm.CodeQuiesce},
		"no disks":        {func(s *sms.LibvirtSource) { s.ExcludeDisks = []string{"vda"} }, vm.CodeDisk},
		"no scratch":      {func(s *sms.LibvirtSource) { s.ScratchDir = "/nowhere" }, "failed"},
	} {
		was := m.order
		c.change(&m.order)
		_, _, err := m.start("INCR")()
		if string(sms.CodeOf(err)) != c.code {
			t.Errorf("%s: %v (code %q, want %q)", name, err, sms.CodeOf(err), c.code)
		}
		m.order = was
	}
	m.clean("fail", full.Run)
	reply, err := m.a.server.Send(t.Context(), "web1", sms.Order{ID: "list", Kind: sms.OrderVMList, VMList: &sms.VMListOrder{URI: lv.URI()}})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(reply.VMList.VMs, func(v sms.VM) bool { return v.Name == "fail" })
	if i < 0 {
		t.Fatalf("list: %+v", reply.VMList)
	}
	if v := reply.VMList.VMs[i]; v.State != "running" || !v.Persistent || v.MemoryMiB != 256 || v.CPUs != 1 || len(v.Disks) != 1 ||
		v.Disks[0].Target != "vda" || v.Disks[0].Size != 8<<20 || !v.Disks[0].Tracked || v.GuestAgent != "none" {
		text, _ := json.Marshal(v)
		t.Errorf("list: %s", text)
	}
}
