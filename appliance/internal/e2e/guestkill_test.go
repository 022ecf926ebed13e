package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// fleet is a host with a storage pool, a machine of two disks without a system on them, and its saveset. The machine itself is
// gone from the host.
type fleet struct {
	*host
	pool, saveset, on string
	want              map[string]string // digests of the disks, by target
	rng               *rand.Rand
}

func newFleet(t *testing.T, mib int, d machines.Domain) *fleet {
	t.Helper()
	lv := machines.StartLibvirt(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := &fleet{rng: rand.New(rand.NewPCG(seed, 2)), pool: filepath.Join(lv.Dir, "pool"), want: map[string]string{}}
	d.Name = "shop"
	for _, target := range []string{"vda", "vdb"} {
		path := filepath.Join(lv.Dir, target+".raw")
		b := make([]byte, mib<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(f.rng.Uint64()), byte(f.rng.Uint64()), target[2]}).Read(b)
		clear(b[len(b)/2 : len(b)*3/4])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d.Disks = append(d.Disks, machines.Disk{Path: path, Format: "raw"})
		f.want[target] = sum(t, strings.NewReader(string(b)))
	}
	f.host = &host{newLab(t), lv, d.Name, d.Disks[0]}
	f.on = client + "=" + lv.URI()
	f.lab.agent.Enter = lv.Enter()
	f.killAgent(func() {})
	lv.Define(d)
	if d.OS != "" { // its first start makes its firmware's variables, and the state of its TPM
		lv.Virsh("start", d.Name)
		lv.Virsh("destroy", d.Name)
	}
	f.add()
	f.saveset = f.backup(f.domain, api.LevelFull, api.RunSuccess).Saveset
	if err := os.Mkdir(f.pool, 0o755); err != nil {
		t.Fatal(err)
	}
	lv.Virsh("pool-define-as", "vms", "dir", "--target", f.pool)
	lv.Virsh("pool-start", "vms")
	return f
}

// images lists the files of the pool.
func (f *fleet) images() (names []string) {
	f.Helper()
	entries, err := os.ReadDir(f.pool)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// image is the digest of what a disk's image in the pool holds, found by the disk's target.
func (f *fleet) image(target string) string {
	f.Helper()
	found, err := filepath.Glob(filepath.Join(f.pool, "*-"+target+"-*"))
	if err != nil || len(found) != 1 {
		f.Fatalf("disk %s has the images %v, %v", target, found, err)
	}
	raw := f.path("image.raw")
	defer os.Remove(raw)
	if out, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", found[0], raw).CombinedOutput(); err != nil {
		f.Fatalf("qemu-img: %v: %s", err, out)
	}
	r, err := os.Open(raw)
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	return sum(f.TB, r)
}

// wholeImages checks that the pool has the saved disks and nothing else.
func (f *fleet) wholeImages(what string) {
	f.Helper()
	if names := f.images(); len(names) != len(f.want) {
		f.Errorf("%s: the pool has %v", what, names)
	}
	for target, want := range f.want {
		if got := f.image(target); got != want {
			f.Errorf("%s: disk %s has sha256 %s, the saved one %s", what, target, got, want)
		}
	}
}

// nothing checks that neither host nor appliance has anything left.
func (f *fleet) nothing(what string, id string) {
	f.Helper()
	if names := f.lv.Virsh("list", "--all", "--name"); names != "" {
		f.Errorf("%s: the host has machines: %s", what, names)
	}
	if left := f.images(); len(left) > 0 {
		f.Errorf("%s: the pool has %v", what, left)
	}
	for _, path := range []string{filepath.Join("/run/coffer-agent", id), filepath.Join(f.lab.agent.Dir, "machines", "machine-"+id+".json")} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			f.Errorf("%s: %s is left: %v", what, path, err)
		}
	}
	f.nothingExported()
}

// clearHost removes the machine from the host, with its images.
func (f *fleet) clearHost() {
	f.Helper()
	for _, name := range strings.Fields(f.lv.Virsh("list", "--name")) {
		f.lv.Virsh("destroy", name)
	}
	for _, name := range strings.Fields(f.lv.Virsh("list", "--all", "--name")) {
		f.lv.Virsh("undefine", name, "--nvram")
	}
	for _, name := range f.images() {
		if err := os.Remove(filepath.Join(f.pool, name)); err != nil {
			f.Fatal(err)
		}
	}
}

// killAgent ends the agent as a crash does, and starts it again after what happens meanwhile.
func (f *fleet) killAgent(meanwhile func()) {
	f.Helper()
	f.lab.agent.Kill()
	meanwhile()
	ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
	defer cancel()
	if err := f.lab.agent.Launch(ctx); err != nil {
		f.Fatal(err)
	}
	if err := f.lab.agent.WaitOnline(ctx); err != nil {
		f.Fatal(err)
	}
}

// settles waits until a machine is in one of these states, and has come to its end if that is one.
func (f *fleet) settles(id string, states ...api.GuestState) (g api.Guest) {
	f.Helper()
	deadline := time.Now().Add(4 * time.Minute)
	for {
		g = decode[api.Guest](f.lab, "vm", "show", id)
		for _, s := range states {
			ends := s == api.GuestMoved || s == api.GuestRestored || s == api.GuestFailed
			if g.State == s && g.Over == ends {
				return g
			}
		}
		if time.Now().After(deadline) {
			f.Fatalf("machine %s is %+v, want it %v", id, g, states)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (f *fleet) boot() api.Guest {
	f.Helper()
	return decode[api.Guest](f.lab, "vm", "boot", f.saveset, "--host", f.on)
}

// moved checks that the machine runs from its images, stays, and that no job works on it.
func (f *fleet) moved(what string) {
	f.Helper()
	if out := f.lv.Virsh("domblklist", f.domain); strings.Count(out, f.pool) != 2 || strings.Contains(out, "coffer-agent") {
		f.Errorf("%s: its disks are %s", what, out)
	}
	if out := f.lv.Virsh("list", "--all", "--persistent", "--name"); out != f.domain {
		f.Errorf("%s: persistent is %q", what, out)
	}
	for target := range f.want {
		if out := f.lv.Virsh("blockjob", f.domain, target, "--info"); strings.Contains(out, "%") || strings.Contains(out, "Copy") {
			f.Errorf("%s: a job of disk %s is left: %s", what, target, out)
		}
	}
	if t := f.lv.Virsh("domstate", f.domain); t != "running" {
		f.Errorf("%s: it is %s", what, t)
	}
	f.nothingExported()
}

// The agent is killed while a machine moves, at any moment: its next life takes the move to its end. Or the host goes with it:
// then nothing is left of the move, the record says so, and the machine can be dropped. And a restore that is cut off leaves
// nothing, or a machine that is whole.
func TestKilledAgentOfMachines(t *testing.T) {
	times := 6
	if machines.Long(t) {
		times = 2
	}
	f := newFleet(t, 96, machines.Domain{})
	f.lv.Virsh("undefine", f.domain)

	g := f.boot()
	begun := time.Now()
	f.ok("vm", "move", f.domain, "--pool", "vms")
	took := time.Since(begun)
	f.moved("undisturbed")
	f.wholeImages("undisturbed")
	f.clearHost()
	for i := range times {
		what := fmt.Sprintf("move %d", i)
		g = f.boot()
		f.ok("vm", "move", g.ID, "--pool", "vms", "--no-wait")
		time.Sleep(time.Duration(f.rng.Int64N(int64(took))))
		f.killAgent(func() {})
		f.settles(g.ID, api.GuestMoved)
		f.moved(what)
		f.wholeImages(what)
		f.clearHost()
	}
	for i := range times {
		what := fmt.Sprintf("move %d with its host", i)
		g = f.boot()
		f.ok("vm", "move", g.ID, "--pool", "vms", "--no-wait")
		time.Sleep(time.Duration(f.rng.Int64N(int64(took))))
		stayed := false
		f.killAgent(func() {
			f.lv.Virsh("destroy", f.domain)
			stayed = f.lv.Virsh("list", "--all", "--name") != ""
		})
		if now := f.settles(g.ID, api.GuestStopped, api.GuestMoved); now.State == api.GuestMoved {
			f.wholeImages(what)
			f.clearHost()
		} else if stayed || !strings.Contains(now.Problem, "stopped while") {
			t.Errorf("%s: %+v", what, now)
		} else {
			if strings.Contains(now.Problem, "while it was moved") && len(f.images()) > 0 {
				t.Errorf("%s: the pool has %v", what, f.images())
			}
			f.ok("vm", "drop", g.ID, "--yes")
		}
		f.nothing(what, g.ID)
	}
	begun = time.Now()
	f.ok("vm", "restore", f.saveset, "--host", f.on, "--pool", "vms")
	took = time.Since(begun)
	f.wholeImages("restored")
	f.clearHost()
	ends := map[api.GuestState]int{}
	for i := range times {
		what := fmt.Sprintf("restore %d", i)
		g := decode[api.Guest](f.lab, "vm", "restore", f.saveset, "--host", f.on, "--pool", "vms", "--no-wait")
		time.Sleep(time.Duration(f.rng.Int64N(int64(took))))
		f.killAgent(func() {})
		now := f.settles(g.ID, api.GuestRestored, api.GuestFailed)
		if ends[now.State]++; now.State == api.GuestRestored {
			f.wholeImages(what)
			f.clearHost()
		} else if now.Problem == "" {
			t.Errorf("%s: no word of why: %+v", what, now)
		}
		f.nothing(what, g.ID)
	}
	t.Logf("restores: %v; an undisturbed one takes %v", ends, took)
}
