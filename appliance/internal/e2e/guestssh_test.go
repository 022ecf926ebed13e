package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// carriers are the ssh processes that carry sockets to a host.
func carriers(t *testing.T, port string) []int { return sshProcesses(t, port, " -R ") }

// sshProcesses are those to a host that have a word among their arguments.
func sshProcesses(t *testing.T, port, word string) (pids []int) {
	t.Helper()
	out, err := exec.Command("ps", "-eo", "pid=,args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range bytes.Split(out, []byte("\n")) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[1] != "ssh" || !strings.Contains(string(line), "-p "+port) || !strings.Contains(string(line), word) {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// An agent that reaches a host by ssh boots a machine there: its disks come over that ssh. The connection is cut: the guest waits,
// and goes on. It moves to the host's storage; another one is dropped, a third restored, the first time with ssh killed in its middle. Nothing
// is left on the host.
func TestMachinesOverSSH(t *testing.T) {
	machines.Long(t)
	lv := machines.StartLibvirt(t)
	sshd := machines.StartSSHD(t, lv.Enter()...)
	path := machines.Guest(t, lv.Dir, "guest.qcow2", "qcow2", "ticker")
	h := &host{newLab(t), lv, "shop", machines.Disk{Path: path, Format: "qcow2"}}
	c := guestConsole{t, filepath.Join(lv.Dir, "console")}
	lv.Define(machines.Domain{Name: h.domain, Disks: []machines.Disk{h.disk}, Mode: "ticker", Serial: c.file})
	h.add()
	saveset := h.backup(h.domain, api.LevelFull, api.RunSuccess).Saveset
	before := h.stored(saveset)
	lv.Virsh("undefine", h.domain)
	pool := filepath.Join(lv.Dir, "pool")
	if err := os.Mkdir(pool, 0o755); err != nil {
		t.Fatal(err)
	}
	lv.Virsh("pool-define-as", "vms", "dir", "--target", pool)
	lv.Virsh("pool-start", "vms")
	on := client + "=" + lv.SSH(sshd)

	g := decode[api.Guest](h.lab, "vm", "boot", saveset, "--host", on)
	socket := filepath.Join("/run/coffer-agent", g.ID, "vda.sock")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket on the host: %v, %v", info, err)
	}
	if out := lv.Virsh("dumpxml", "shop"); !strings.Contains(out, socket) {
		t.Fatalf("its disk is not at %s: %s", socket, out)
	}
	machines.Console(t, c.file, "GUEST-PAYLOAD-OK", 1)
	c.goesOn("over ssh")

	pids := carriers(t, sshd.Port)
	if len(pids) != 1 {
		t.Fatalf("%d processes carry sockets", len(pids))
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.goesOn("after ssh was killed")
	if now := carriers(t, sshd.Port); len(now) != 1 || now[0] == pids[0] {
		t.Errorf("carried by %v, before by %v", now, pids)
	}
	ticks := c.ticks()
	(&fleet{host: h}).killAgent(func() {})
	c.goesOn("after the agent was killed")
	t.Logf("the guest had written %d times before, %d now", ticks, c.ticks())

	b := decode[api.Guest](h.lab, "vm", "boot", saveset, "--host", on, "--name", "copy", "--new-identity", "--paused")
	h.ok("vm", "drop", "copy", "--yes")
	restore := []string{"vm", "restore", saveset, "--host", on, "--pool", "vms", "--name", "copy", "--new-identity", "--format", "raw"}
	cut := decode[api.Guest](h.lab, append(restore, "--no-wait")...)
	var converting []int
	h.within("ssh runs qemu-img", func() bool {
		converting = sshProcesses(t, sshd.Port, "qemu-img")
		return len(converting) > 0
	})
	if err := syscall.Kill(converting[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.within("the restore has failed", func() bool {
		cut = decode[api.Guest](h.lab, "vm", "show", cut.ID)
		return cut.Over
	})
	if cut.State != api.GuestFailed || !strings.Contains(cut.Problem, "convert") {
		t.Errorf("a restore whose ssh was killed: %+v", cut)
	}
	if left, _ := filepath.Glob(filepath.Join(pool, "*")); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	if r := decode[api.Guest](h.lab, restore...); r.State != api.GuestRestored || r.Name != "copy" || r.UUID == g.UUID {
		t.Errorf("restored: %+v", r)
	}
	h.hasDisk(filepath.Join(pool, "copy-vda-*"), before)
	lv.Virsh("undefine", "copy")
	for _, name := range []string{"libvirt", "its disk"} { // whichever ssh a move loses, it comes to its end or can be made again
		if h.ok("vm", "move", "shop", "--pool", "vms", "--no-wait"); name == "libvirt" {
			time.Sleep(2000 * time.Millisecond)
		}
		for _, pid := range sshProcesses(t, sshd.Port, "ssh") {
			if carries := slices.Contains(carriers(t, sshd.Port), pid); carries == (name == "its disk") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		h.within("the move has ended", func() bool {
			g = decode[api.Guest](h.lab, "vm", "show", g.ID)
			return g.Over || g.State == api.GuestRunning
		})
		t.Logf("a move whose ssh for %s was killed: %s %q", name, g.State, g.Problem)
		if g.State == api.GuestMoved {
			break
		}
		c.goesOn("after a move that failed")
	}
	if g.State != api.GuestMoved {
		if g = decode[api.Guest](h.lab, "vm", "move", "shop", "--pool", "vms"); g.State != api.GuestMoved {
			t.Errorf("moved: %+v", g)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(pool, "shop-*")); len(left) != 1 {
		t.Errorf("the pool has %v", left)
	}
	h.nothingExported()
	c.goesOn("from its pool")
	if out := lv.Virsh("domblklist", h.domain); !strings.Contains(out, pool) || strings.Contains(out, "coffer-agent") {
		t.Errorf("its disks are %s", out)
	}
	for _, id := range []string{g.ID, b.ID, cut.ID} {
		for _, dir := range []string{id, id + "-far"} {
			if _, err := os.Stat(filepath.Join("/run/coffer-agent", dir)); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
	}
	h.within("no ssh is left", func() bool { return len(carriers(t, sshd.Port)) == 0 })
	if names := lv.Virsh("list", "--all", "--name"); names != "shop" {
		t.Errorf("machines %q", names)
	}
	if after := h.stored(saveset); after != before {
		t.Error("the saveset has changed")
	}
}
