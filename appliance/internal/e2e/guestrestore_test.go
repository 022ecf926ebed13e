package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coffer/api"
	machines "coffer/appliance/internal/lab"
)

// uefi is a machine with variables of its firmware, a TPM, and a network that every host has.
func uefi(t *testing.T) machines.Domain {
	t.Helper()
	machines.Need(t, "swtpm", "swtpm_setup")
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	if _, err := os.Stat(code); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal("needs ovmf")
		}
		t.Skip("needs ovmf")
	}
	return machines.Domain{OS: "<loader readonly='yes' type='pflash'>" + code + "</loader><nvram template='" + vars + "'/>",
		Extra: "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><interface type='user'><model type='virtio'/></interface>"}
}

// file is the digest of a file of libvirt's, by its path below /var/lib/libvirt.
func (f *fleet) file(parts ...string) string {
	f.Helper()
	r, err := os.Open(filepath.Join(append([]string{f.lv.Dir, "lib"}, parts...)...))
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	return sum(f.TB, r)
}

func (f *fleet) uuid(name string) string {
	f.Helper()
	return f.lv.Virsh("domuuid", name)
}

// names lists a directory of libvirt's.
func (f *fleet) names(dir string) (out []string) {
	f.Helper()
	entries, err := os.ReadDir(filepath.Join(f.lv.Dir, "lib", dir))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

const (
	nvrams = "qemu/nvram"
	tpms   = "swtpm"
	state  = "tpm2/tpm2-00.permall"
)

// A machine with two disks, variables of its firmware and a TPM is restored: in the place of the one that runs, beside it, and
// with a network that is not there, which leaves the host as it was. It boots from its saveset with all of them, too.
func TestWholeMachines(t *testing.T) {
	machines.Long(t)
	f := newFleet(t, 24, uefi(t))
	old := f.uuid("shop")
	vars, tpm := f.file(nvrams, "shop_VARS.fd"), f.file(tpms, old, state)
	restore := func(more ...string) []string {
		return append([]string{"vm", "restore", f.saveset, "--host", f.on, "--pool", "vms"}, more...)
	}
	f.lv.Virsh("start", "shop")
	was := f.lv.Virsh("dumpxml", "--inactive", "shop")

	// What fails at the last step puts the old machine back, and it runs again.
	kept := []any{f.names(nvrams), f.names(tpms)}
	f.refused([]string{"missing"}, restore("--overwrite", "--start", "--network", "missing")...)
	f.refused([]string{"missing"}, restore("--overwrite", "--new-identity", "--start", "--network", "missing")...)
	f.refused([]string{"missing"}, restore("--overwrite", "--name", "store", "--start", "--network", "missing")...)
	f.refused([]string{"is there already"}, restore("--start")...)
	f.refused([]string{"nowhere"}, "vm", "restore", f.saveset, "--host", f.on, "--pool", "nowhere", "--overwrite")
	if now := f.lv.Virsh("dumpxml", "--inactive", "shop"); now != was || f.lv.Virsh("domstate", "shop") != "running" {
		t.Errorf("the old machine is %s, %s", f.lv.Virsh("domstate", "shop"), now)
	}
	if left := f.images(); len(left) > 0 || !slices.Equal(f.names(nvrams), kept[0].([]string)) || !slices.Equal(f.names(tpms), kept[1].([]string)) {
		t.Errorf("left are images %v, variables %v, TPMs %v", left, f.names(nvrams), f.names(tpms))
	}
	if names := f.lv.Virsh("list", "--all", "--name"); names != "shop" {
		t.Errorf("machines %q", names)
	}
	f.nothingExported()

	g := decode[api.Guest](f.lab, restore("--overwrite")...)
	if g.State != api.GuestRestored || g.UUID != old || f.lv.Virsh("domstate", "shop") != "shut off" || len(g.Warnings) > 0 {
		t.Errorf("restored: %+v", g)
	}
	f.wholeImages("in the old one's place")
	if xml := f.lv.Virsh("dumpxml", "shop"); !strings.Contains(xml, "coffer-"+g.ID+"_VARS.fd") || strings.Count(xml, f.pool) != 2 {
		t.Errorf("it is %s", xml)
	}
	if f.file(nvrams, "coffer-"+g.ID+"_VARS.fd") != vars || f.file(tpms, old, state) != tpm {
		t.Error("its variables or its TPM are not the saved ones")
	}
	if want := []string{old, old + "-replaced-by-" + g.ID}; !slices.Equal(f.names(tpms), want) {
		t.Errorf("TPMs %v, want %v", f.names(tpms), want)
	}
	f.lv.Virsh("start", "shop") // swtpm runs as another user

	two := decode[api.Guest](f.lab, restore("--name", "shop-2", "--new-identity", "--start")...)
	if two.State != api.GuestRestored || two.UUID == old || f.lv.Virsh("domstate", "shop-2") != "running" || f.lv.Virsh("domstate", "shop") != "running" {
		t.Errorf("beside it: %+v", two)
	}
	if marks := f.names(filepath.Join(tpms, two.UUID)); !slices.Equal(marks, []string{"tpm2"}) {
		t.Errorf("its TPM has %v", marks)
	}
	three := decode[api.Guest](f.lab, restore("--name", "shop-2", "--new-identity", "--overwrite")...)
	if three.State != api.GuestRestored || three.UUID == two.UUID || f.file(tpms, three.UUID, state) != tpm {
		t.Errorf("in the place of one of its name: %+v", three)
	}
	if names := strings.Fields(f.lv.Virsh("list", "--all", "--name")); !slices.Equal(names, []string{"shop", "shop-2"}) {
		t.Errorf("machines %v", names)
	}
	f.nothingExported()

	kept = []any{f.names(nvrams), f.names(tpms)}
	b := decode[api.Guest](f.lab, "vm", "boot", f.saveset, "--host", f.on, "--name", "shop-3", "--new-identity", "--paused")
	if b.State != api.GuestRunning || len(b.Warnings) > 0 || f.file(nvrams, "coffer-"+b.ID+"_VARS.fd") != vars || f.lv.Virsh("domstate", "shop-3") != "paused" {
		t.Errorf("booted: %+v", b)
	}
	if marks := f.names(filepath.Join(tpms, b.UUID)); !slices.Equal(marks, []string{"tpm2"}) {
		t.Errorf("its TPM has %v", marks)
	}
	f.ok("vm", "drop", "shop-3", "--yes")
	if !slices.Equal(f.names(nvrams), kept[0].([]string)) || !slices.Equal(f.names(tpms), kept[1].([]string)) {
		t.Errorf("left are variables %v, TPMs %v", f.names(nvrams), f.names(tpms))
	}
	f.nothingExported()
}
