package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// guestConsole is what a guest says on its serial console.
type guestConsole struct {
	t    *testing.T
	file string
}

func (c guestConsole) ticks() int {
	b, _ := os.ReadFile(c.file)
	if bytes.Contains(b, []byte("TICK-FAILED")) {
		c.t.Fatal("the guest had an error from its disk")
	}
	return bytes.Count(b, []byte("GUEST-TICK "))
}

// goesOn waits until the guest has written some more.
func (c guestConsole) goesOn(what string) {
	c.t.Helper()
	n := c.ticks()
	machines.Eventually(c.t, "the guest writes "+what, 4*time.Minute, func() bool { return c.ticks() >= n+2 })
}

// nothingExported checks that the appliance has neither exports nor machines.
// hasDisk checks what the one raw image of a pattern holds.
func (h *host) hasDisk(pattern, want string) {
	h.Helper()
	images, err := filepath.Glob(pattern)
	if err != nil || len(images) != 1 {
		h.Fatalf("images %v, %v", images, err)
	}
	f, err := os.Open(images[0])
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	if got := sum(h.TB, f); got != want {
		h.Errorf("the restored disk has sha256 %s, the saved one %s", got, want)
	}
}

func (h *host) nothingExported() {
	h.Helper()
	for _, dir := range []string{"overlays", "machines"} {
		if left, err := os.ReadDir(filepath.Join(h.Data, dir)); err != nil || len(left) > 0 {
			h.Errorf("%s has %v, %v", dir, left, err)
		}
	}
}

// A machine is saved, boots from its saveset and writes; the appliance is killed and started again meanwhile; it is moved to
// a storage pool and goes on with no export; and it is restored.
func TestInstantBoot(t *testing.T) {
	machines.Long(t)
	lv := machines.StartLibvirt(t)
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
	on := client + "=" + lv.URI()

	begun := time.Now()
	g := decode[api.Guest](h.lab, "vm", "boot", saveset, "--host", on)
	t.Logf("it runs after %v", time.Since(begun))
	if g.State != api.GuestRunning || g.Name != h.domain || g.UUID == "" || len(g.Disks) != 1 {
		t.Fatalf("%+v", g)
	}
	machines.Console(t, c.file, "GUEST-PAYLOAD-OK", 1)
	t.Logf("its guest is up after %v", time.Since(begun))
	c.goesOn("to its overlay")
	h.refused([]string{"machine shop"}, "export", "drop", g.Disks[0].Export, "--force", "--yes")
	h.refused([]string{"machine shop"}, "export", "commit", g.Disks[0].Export)

	h.Kill()
	n := c.ticks()
	h.relaunch()
	c.goesOn("after the appliance was killed")
	t.Logf("the guest had written %d times before the kill, %d now", n, c.ticks())
	h.within("the machine is attached again", func() bool {
		g := decode[api.Guest](h.lab, "vm", "show", "shop")
		return g.State == api.GuestRunning && g.HostState == "running" && g.Problem == ""
	})
	lv.Virsh("destroy", h.domain)
	h.within("the appliance sees that it has stopped", func() bool {
		return decode[api.Guest](h.lab, "vm", "show", "shop").State == api.GuestStopped
	})
	h.ok("vm", "reset", "shop")
	machines.Console(t, c.file, "boot=2", 1)
	c.goesOn("after its second boot")

	if g := decode[api.Guest](h.lab, "vm", "move", "shop", "--pool", "vms"); g.State != api.GuestMoved || !g.Over {
		t.Errorf("moved: %+v", g)
	}
	h.nothingExported()
	h.Kill()
	c.goesOn("from its pool, with no appliance")
	h.relaunch()
	if out := lv.Virsh("domblklist", h.domain); !strings.Contains(out, pool) || strings.Contains(out, "nbd") {
		t.Errorf("its disks are %s", out)
	}

	r := decode[api.Guest](h.lab, "vm", "restore", saveset, "--host", on, "--pool", "vms", "--name", "shop-2", "--new-identity", "--format", "raw")
	if r.State != api.GuestRestored || r.Name != "shop-2" || r.UUID == "" || r.UUID == g.UUID {
		t.Errorf("restored: %+v", r)
	}
	h.refused([]string{"shop-2"}, "vm", "restore", saveset, "--host", on, "--pool", "vms", "--name", "shop-2", "--new-identity")
	h.nothingExported()
	h.hasDisk(filepath.Join(pool, "shop-2*"), before)
	if after := h.stored(saveset); after != before {
		t.Error("the saveset has changed")
	}
	if names := strings.Fields(lv.Virsh("list", "--all", "--name")); !slices.Equal(names, []string{"shop", "shop-2"}) {
		t.Errorf("the host has %v", names)
	}
}
