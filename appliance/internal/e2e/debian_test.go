package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// acknowledged is the greatest number of a tick that the guest said it had written and synced.
func (c guestConsole) acknowledged() (last int) {
	b, _ := os.ReadFile(c.file)
	for line := range bytes.Lines(b) {
		var n int
		if _, err := fmt.Sscanf(string(line), "GUEST-TICK %d", &n); err == nil {
			last = max(last, n)
		}
	}
	return last
}

// A guest that is installed from Debian's packages boots from its saveset, writes, and boots again from its overlay; the
// appliance is killed while it writes and while it boots; it is moved to a storage pool, boots from there with no appliance, and
// finds each file that its packages brought and each tick that it ever acknowledged.
func TestDebianGuest(t *testing.T) {
	if machines.Long(t) {
		t.Skip("takes minutes: set COFFER_LONG=1")
	}
	begun := time.Now()
	step := func(what string) { t.Logf("%4.0f s: %s", time.Since(begun).Seconds(), what) }
	lv := machines.StartLibvirt(t)
	h := &host{newLab(t), lv, "debian", machines.Disk{Path: machines.Debian(t, lv.Dir, "debian.raw"), Format: "raw"}}
	step("the disk is there")
	c := guestConsole{t, filepath.Join(lv.Dir, "console")}
	lv.Define(machines.Domain{Name: h.domain, Disks: []machines.Disk{h.disk}, Mode: "ticker", Serial: c.file, MiB: 512})
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
	step("saved")

	g := decode[api.Guest](h.lab, "vm", "boot", saveset, "--host", client+"="+lv.URI())
	if g.State != api.GuestRunning || len(g.Disks) != 1 {
		t.Fatalf("%+v", g)
	}
	step("it runs from its saveset")
	machines.Console(t, c.file, "boot=1", 1)
	machines.Console(t, c.file, "GUEST-WRITE-OK", 1)
	step("it is up")
	c.goesOn("to its overlay")
	h.Kill()
	h.relaunch()
	c.goesOn("after the appliance was killed")
	ticks := c.acknowledged()
	step(fmt.Sprintf("it went on after a kill, and has written %d times", ticks))

	lv.Virsh("destroy", h.domain)
	h.within("the appliance sees that it has stopped", func() bool {
		return decode[api.Guest](h.lab, "vm", "show", h.domain).State == api.GuestStopped
	})
	h.ok("vm", "reset", h.domain)
	h.Kill()
	h.relaunch()
	machines.Console(t, c.file, "boot=2", 1)
	step("it is up again from its overlay; the appliance was killed while it booted")
	c.goesOn("after its second boot")

	if g := decode[api.Guest](h.lab, "vm", "move", h.domain, "--pool", "vms"); g.State != api.GuestMoved || !g.Over {
		t.Errorf("moved: %+v", g)
	}
	step("moved")
	h.nothingExported()
	h.Kill()
	c.goesOn("from its pool, with no appliance")
	if out := lv.Virsh("domblklist", h.domain); !strings.Contains(out, pool) || strings.Contains(out, "nbd") {
		t.Errorf("its disks are %s", out)
	}
	ticks = max(ticks, c.acknowledged())
	lv.Virsh("destroy", h.domain)
	c.verify(lv, h.domain, ticks)
	step(fmt.Sprintf("its files and at least %d ticks are what they were", ticks))
	h.relaunch()
	if after := h.stored(saveset); after != before {
		t.Error("the saveset has changed")
	}
}

// verify boots a machine from where it is, so that it compares its files with their checksums.
func (c guestConsole) verify(lv *machines.Libvirt, domain string, ticks int) {
	c.t.Helper()
	definition := filepath.Join(lv.Dir, "verify.xml")
	text := strings.Replace(lv.Virsh("dumpxml", "--inactive", domain), "mode=ticker", "mode=verify", 1)
	if err := os.WriteFile(definition, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	lv.Virsh("define", definition)
	lv.Virsh("start", domain)
	said := ""
	machines.Eventually(c.t, "the guest has verified its files", 15*time.Minute, func() bool {
		b, _ := os.ReadFile(c.file)
		_, rest, _ := strings.Cut(string(b), "GUEST-VERIFY")
		line, _, whole := strings.Cut(rest, "\n")
		said = line
		return whole
	})
	var files, found int
	if n, err := fmt.Sscanf(said, "-OK files=%d ticks=%d", &files, &found); n != 2 || files == 0 || found < ticks {
		c.t.Errorf("the guest says GUEST-VERIFY%s (%v), and had written %d ticks", said, err, ticks)
	}
}
