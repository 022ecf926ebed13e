package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// host is a libvirtd beside a lab, with one machine and its task.
type host struct {
	*lab
	lv     *machines.Libvirt
	domain string
	disk   machines.Disk
}

func (h *host) add(more ...string) {
	h.Helper()
	h.ok(append([]string{"task", "add", h.domain, "--client", client, "--domain", h.domain, "--uri", h.lv.URI(), "--scratch-dir", h.lv.Dir}, more...)...)
}

// copy is the digest of the machine's disk, read by other means: the machine must not write meanwhile.
func (h *host) copy() string {
	h.Helper()
	raw := filepath.Join(h.dir, "reference")
	defer os.Remove(raw)
	if out, err := exec.Command("qemu-img", "convert", "-U", "-f", h.disk.Format, "-O", "raw", h.disk.Path, raw).CombinedOutput(); err != nil {
		h.Fatalf("qemu-img: %v: %s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	return sum(h.TB, f)
}

func sum(t testing.TB, r io.Reader) string {
	t.Helper()
	s := sha256.New()
	if _, err := io.Copy(s, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", s.Sum(nil))
}

// stored is the digest of the disk in a saveset.
func (h *host) stored(saveset string) string {
	h.Helper()
	cmd := h.Command(h.Context(), "saveset", "get", saveset, "/vda.raw", "-o", "-")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.Fatal(err)
	}
	digest := sum(h.TB, out)
	if err := cmd.Wait(); err != nil {
		h.Fatal(err)
	}
	return digest
}

// document is what a test reads of backup.json.
type document struct {
	Level, Reason, Checkpoint, Reference string
	Disks                                []struct {
		Incremental bool
		Read, Dirty uint64
	}
}

func (h *host) document(saveset string) document {
	h.Helper()
	var d document
	if err := json.Unmarshal([]byte(h.ok("saveset", "get", saveset, "/backup.json", "-o", "-")), &d); err != nil {
		h.Fatal(err)
	}
	return d
}

// dirty asks libvirt how much changed since a checkpoint.
func (h *host) dirty(checkpoint string) uint64 {
	h.Helper()
	var x struct {
		Disks []struct {
			Size uint64 `xml:"size,attr"`
		} `xml:"disks>disk"`
	}
	if err := xml.Unmarshal([]byte(h.lv.Virsh("checkpoint-dumpxml", h.domain, checkpoint, "--size", "--no-domain")), &x); err != nil || len(x.Disks) != 1 {
		h.Fatalf("size of a checkpoint: %+v, %v", x, err)
	}
	return x.Disks[0].Size
}

// works tells whether a backup job runs.
func (h *host) works() bool {
	return exec.Command("virsh", "-q", "-c", h.lv.URI(), "backup-dumpxml", h.domain).Run() == nil
}

// clean checks that nothing is left on the host but these checkpoints.
func (h *host) clean(checkpoints ...string) {
	h.Helper()
	got := strings.Fields(h.lv.Virsh("checkpoint-list", h.domain, "--name"))
	slices.Sort(got)
	slices.Sort(checkpoints)
	if want := slices.Compact(checkpoints); !slices.Equal(got, want) {
		h.Errorf("the host has the checkpoints %v, want %v", got, want)
	}
	if h.works() {
		h.Error("a backup job is left")
	}
	for _, pattern := range []string{filepath.Join(h.lv.Dir, "coffer-*"), filepath.Join(os.TempDir(), "coffer-ssh-*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			h.Errorf("files are left: %v", left)
		}
	}
}

// A machine that runs and writes: a FULL and five INCR, each of which is what the disk was when its job began.
func TestRunningMachine(t *testing.T) {
	incrs := 5
	if machines.Long(t) {
		incrs = 2
	}
	machines.Need(t, "libvirtd", "virsh", "qemu-system-x86_64", "qemu-img")
	lv := machines.StartLibvirt(t)
	path := machines.Guest(t, lv.Dir, "guest.qcow2", "qcow2", "io")
	h := &host{newLab(t), lv, "guest", machines.Disk{Path: path, Format: "qcow2"}}
	serial := filepath.Join(lv.Dir, "serial")
	lv.Run(machines.Domain{Name: h.domain, Disks: []machines.Disk{h.disk}, Mode: "io", Serial: serial})
	h.add()
	machines.Console(t, serial, "GUEST-TICK", 2)
	full := ""
	for i := range incrs + 1 {
		b, _ := os.ReadFile(serial)
		machines.Console(t, serial, "GUEST-TICK", strings.Count(string(b), "GUEST-TICK")+3)
		lv.Virsh("suspend", h.domain)
		want, level, dirty := h.copy(), api.LevelIncr, uint64(0)
		if i > 0 {
			dirty = h.dirty(h.last().Checkpoint)
		}
		ended := make(chan api.Run, 1)
		go func() {
			run, _ := h.lab.Run(context.WithoutCancel(t.Context()), "backup", h.domain, "--level", strings.ToLower(string(level)))
			ended <- run
		}()
		// The job has begun where it can be seen, or has ended: from then on the guest may write.
		var run api.Run
		h.within("the job begins", func() bool {
			select {
			case run = <-ended:
				return true
			default:
				return h.works()
			}
		})
		lv.Virsh("resume", h.domain)
		if run.ID == "" {
			run = <-ended
		}
		if run.State != api.RunSuccess {
			t.Fatalf("generation %d: %s: %s", i, run.State, run.Reason)
		}
		d := h.document(run.Saveset)
		if got := h.stored(run.Saveset); got != want {
			t.Errorf("generation %d: the disk has sha256 %s, the copy %s", i, got, want)
		}
		if i == 0 {
			full = d.Checkpoint
			h.clean(full)
			continue
		}
		t.Logf("generation %d: dirty %d (libvirt says %d), read %d, sent %d bytes", i, d.Disks[0].Dirty, dirty, d.Disks[0].Read, run.Progress.BytesSent)
		if run.LevelEffective != api.LevelIncr || !d.Disks[0].Incremental || dirty == 0 || d.Disks[0].Read > dirty+dirty*3/10 {
			t.Errorf("generation %d: level %s (%s), dirty %d, document %+v", i, run.LevelEffective, run.LevelReason, dirty, d)
		}
		h.clean(full, d.Checkpoint)
	}
}

// last is the document of the newest saveset.
func (h *host) last() document {
	h.Helper()
	return h.document("latest:" + h.domain)
}

// Agent and daemon are killed in the middle of backups: the next run leaves nothing of them on the host, and its saveset is
// what the disk is.
func TestKilledBackupsOfMachines(t *testing.T) {
	times := 10
	if machines.Long(t) {
		times = 2
	}
	machines.Need(t, "libvirtd", "virsh", "qemu-system-x86_64", "qemu-img")
	lv := machines.StartLibvirt(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	random := filepath.Join(lv.Dir, "random")
	noise := func(bytes int64) {
		t.Helper()
		f, err := os.Create(random)
		if err == nil {
			_, err = io.CopyN(f, rand.NewChaCha8([32]byte{byte(rng.Uint64()), byte(rng.Uint64())}), bytes)
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h := &host{newLab(t), lv, "victim", lv.Image("victim.qcow2", "qcow2", 512)}
	lv.Run(machines.Domain{Name: h.domain, Disks: []machines.Disk{h.disk}})
	h.add()
	write := func(at, mib int) {
		t.Helper()
		for ; mib > 0; at, mib = at+8, mib-8 {
			noise(8 << 20)
			lv.Write(h.domain, 0, fmt.Sprintf("write -s %s %dM 8M", random, at))
		}
		lv.Write(h.domain, 0, "flush")
	}
	write(0, 160)
	begun := time.Now()
	first := h.backup(h.domain, api.LevelFull, api.RunSuccess)
	took := time.Since(begun)
	full := h.document(first.Saveset).Checkpoint
	cut := 0
	for i := range 2 * times {
		write(8*rng.IntN(40), 96)
		level := []api.Level{api.LevelIncr, api.LevelFull}[rng.IntN(2)]
		ended := make(chan api.Run, 1)
		go func() {
			run, _ := h.lab.Run(context.WithoutCancel(t.Context()), "backup", h.domain, "--level", strings.ToLower(string(level)))
			ended <- run
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(took))))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var err error
		if i%2 == 0 {
			h.lab.agent.Kill()
			err = h.lab.agent.Launch(ctx)
		} else {
			h.Kill()
			err = h.Launch(ctx)
		}
		if err == nil {
			err = h.lab.agent.WaitOnline(ctx)
		}
		cancel()
		if err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		if run := settled(h.lab, <-ended); run.State == api.RunError {
			cut++
		} else if run.LevelEffective == api.LevelFull {
			full = h.document(run.Saveset).Checkpoint
		}
		next := h.backup(h.domain, api.LevelIncr, api.RunSuccess)
		d := h.document(next.Saveset)
		if next.LevelEffective == api.LevelFull {
			t.Errorf("kill %d: the chain is lost: %s", i, next.LevelReason)
			full = d.Checkpoint
		}
		if got, want := h.stored(next.Saveset), h.copy(); got != want {
			t.Errorf("kill %d: the disk has sha256 %s, the copy %s", i, got, want)
		}
		h.clean(full, d.Checkpoint)
	}
	t.Logf("%d of %d runs were cut off", cut, 2*times)
}

// All machines of a host get tasks and clients, read by the host's agent; the next syncs follow what becomes of them.
func TestMachinesOfAHost(t *testing.T) {
	machines.Long(t)
	machines.Need(t, "libvirtd", "virsh", "qemu-system-x86_64", "qemu-img")
	lv := machines.StartLibvirt(t)
	h := &host{newLab(t), lv, "shop", lv.Image("shop.qcow2", "qcow2", 16)}
	lv.Run(machines.Domain{Name: "shop", Disks: []machines.Disk{h.disk}})
	lv.Define(machines.Domain{Name: "old", Disks: []machines.Disk{lv.Image("old.raw", "raw", 8)}})
	lv.Define(machines.Domain{Name: "none"})
	at := client + "=" + lv.URI()
	sync := func(want ...string) {
		t.Helper()
		var got []string
		for _, it := range decode[api.VMSyncReport](h.lab, "vm", "tasks", "sync", "--host", at, "--scratch-dir", lv.Dir).Items {
			got = append(got, strings.Join([]string{string(it.Action), it.Domain, it.Task, it.Client}, " "))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("sync: %q, want %q", got, want)
		}
	}
	sync("made old old old", "made shop shop shop", "skipped none  ")
	run := h.backup("shop", api.LevelFull, api.RunSuccess)
	if run.Client != "shop" || h.stored(run.Saveset) != h.copy() {
		t.Errorf("the backup by the data mover: %+v", run)
	}
	for _, c := range decode[api.Page[api.Client]](h.lab, "client", "list").Items {
		if want := api.ClientAgentless; c.Name != client && c.State != want {
			t.Errorf("client %s is %s, want %s", c.Name, c.State, want)
		}
	}
	lv.Virsh("destroy", "shop")
	lv.Virsh("checkpoint-delete", "shop", h.last().Checkpoint, "--metadata") // libvirt renames no domain that has one
	lv.Virsh("domrename", "shop", "store")
	lv.Virsh("undefine", "old")
	sync("removed old old old", "renamed store shop shop", "skipped none  ")
	lv.Virsh("start", "store")
	run = h.backup("shop", api.LevelIncr, api.RunSuccess)
	if run.LevelEffective != api.LevelFull || run.LevelReason != "cbt_invalid" {
		t.Errorf("the renamed machine: %s (%s)", run.LevelEffective, run.LevelReason)
	}
	run = h.backup("shop", api.LevelIncr, api.RunSuccess)
	if run.LevelEffective != api.LevelIncr || h.stored(run.Saveset) != h.copy() {
		t.Errorf("the chain goes on: %s (%s)", run.LevelEffective, run.LevelReason)
	}
	sync("kept store shop shop", "skipped none  ")
	h.refused([]string{"no domain", "vm list"}, "task", "add", "x", "--client", client, "--domain", "nobody", "--uri", lv.URI())
	h.refused([]string{"no disk"}, "task", "add", "x", "--client", client, "--domain", "store", "--uri", lv.URI(), "--exclude-disk", "vdz")
	h.refused([]string{"directory"}, "restore", run.Saveset)
	if list := decode[api.VMList](h.lab, "vm", "list", "--host", at); len(list.Items) != 2 || !slices.Equal(list.Items[1].Tasks, []string{"shop"}) {
		t.Errorf("list: %+v", list)
	}
}
