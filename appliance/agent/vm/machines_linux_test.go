//go:build linux

package vm_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coffer/appliance/agent/vm"
	"coffer/appliance/internal/lab"
	"coffer/appliance/sms"
	"coffer/dedup/vfs"
	"coffer/nbd"
	"coffer/nbd/overlay"
	"coffer/nbd/relay"
)

// image is a file as a Device: the disk of a saveset.
type image struct {
	f    *os.File
	size int64
}

func (i image) Size() int64 { return i.size }

func (i image) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := i.f.ReadAt(p, off)
	return err
}

// desk is the appliance's NBD server: the guest's disk with an overlay, and connections that can be cut.
type desk struct {
	t    *testing.T
	dir  string
	path string
	over *overlay.Overlay

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]bool
}

func newDesk(t *testing.T, disk string) *desk {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, dir: t.TempDir(), conns: map[net.Conn]bool{}}
	d.path = filepath.Join(d.dir, "desk.sock")
	d.over, err = overlay.Create(t.Context(), vfs.OS(), filepath.Join(d.dir, "overlay"), image{f, st.Size()}, overlay.Options{BootID: overlay.BootID{1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.cut()
		_ = d.over.Close()
		_ = f.Close()
	})
	d.serve()
	return d
}

// List implements nbd.Exports.
func (d *desk) List(context.Context, nbd.Peer) ([]nbd.ExportInfo, error) { return nil, nil }

// Open implements nbd.Exports.
func (d *desk) Open(_ context.Context, _ nbd.Peer, name string) (nbd.Export, error) {
	name, _ = relay.Named(name)
	if name != "aaaa00000001" {
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindUnknownExport, Op: "open", Name: name}
	}
	return nbd.Export{Name: name, Device: d.over, MultiConn: true}, nil
}

func (d *desk) serve() {
	d.t.Helper()
	l, err := net.Listen("unix", d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	d.l = l
	d.mu.Unlock()
	s := nbd.NewServer(d, nbd.ServerOptions{})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[c] = true
			d.mu.Unlock()
			go func() { _ = s.ServeConn(context.Background(), c) }()
		}
	}()
}

// cut ends the server as a kill does.
func (d *desk) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.l.Close()
	for c := range d.conns {
		_ = c.Close()
	}
	clear(d.conns)
}

func (d *desk) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.path)
}

// guest is a machine with its console.
type guest struct {
	t      *testing.T
	serial string
}

func (g guest) ticks() int {
	b, _ := os.ReadFile(g.serial)
	if strings.Contains(string(b), "TICK-FAILED") {
		g.t.Fatal("the guest had an error from its disk")
	}
	return strings.Count(string(b), "GUEST-TICK ")
}

// goesOn waits until the guest has written some more.
func (g guest) goesOn(what string) {
	g.t.Helper()
	n := g.ticks()
	lab.Eventually(g.t, "the guest writes "+what, 3*time.Minute, func() bool { return g.ticks() >= n+2 })
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// A machine boots from an export and writes; goes on when the server was gone for a while; boots again from its overlay; is
// moved to a storage pool while it writes, and goes on with no export; is restored into the pool, and runs there.
func TestMachinesOnExports(t *testing.T) {
	lab.Long(t)
	lv := lab.StartLibvirt(t)
	disk := lab.Guest(t, lv.Dir, "backup.raw", "raw", "ticker")
	before := sum(t, disk)
	g := guest{t, filepath.Join(lv.Dir, "console")}
	lv.Define(lab.Domain{Name: "web", Mode: "ticker", Serial: g.serial, Disks: []lab.Disk{{Path: disk, Format: "raw"}}})
	xml := lv.Virsh("dumpxml", "--inactive", "web")
	lv.Virsh("undefine", "web")
	pool := filepath.Join(lv.Dir, "pool")
	if err := os.Mkdir(pool, 0o755); err != nil {
		t.Fatal(err)
	}
	lv.Virsh("pool-define-as", "vms", "dir", "--target", pool)
	lv.Virsh("pool-start", "vms")

	d := newDesk(t, disk)
	runDir, err := os.MkdirTemp("/tmp", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(runDir) })
	ms := &vm.Machines{Dial: d.dial, RunDir: runDir, StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() { _ = ms.Close() })
	order := func(o sms.MachineOrder) *sms.MachineReply {
		t.Helper()
		o.ID, o.URI = cmp.Or(o.ID, "0123456789ab"), lv.URI()
		r, err := ms.Order(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", o.Verb, err)
		}
		return r
	}
	disks := []sms.MachineDisk{{Target: "vda", Export: "aaaa00000001"}}
	boot := sms.MachineOrder{Verb: sms.MachineBoot, Disks: disks, Definition: &sms.MachineDefinition{XML: xml, Name: "web-test", NewIdentity: true}}

	began := time.Now()
	r := order(boot)
	t.Logf("started after %v", time.Since(began))
	if r.Name != "web-test" || r.State != "running" || r.UUID == "" {
		t.Fatalf("%+v", r)
	}
	lab.Console(t, g.serial, "GUEST-BOOT-OK", 1)
	t.Logf("booted after %v", time.Since(began))
	lab.Console(t, g.serial, "GUEST-PAYLOAD-OK", 1)
	g.goesOn("to its export")
	d.cut()
	time.Sleep(3 * time.Second)
	d.serve()
	g.goesOn("after the server came back")

	order(sms.MachineOrder{Verb: sms.MachineDrop})
	if out := lv.Virsh("list", "--all", "--name"); out != "" {
		t.Fatalf("after drop there is %q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(runDir, "*")); len(left) > 0 {
		t.Fatalf("%v are left", left)
	}
	order(boot)
	lab.Console(t, g.serial, "boot=2", 1)
	g.goesOn("again")

	order(sms.MachineOrder{Verb: sms.MachineMove, Pool: "vms", Format: "qcow2"})
	lab.Eventually(t, "the move", 4*time.Minute, func() bool {
		j := order(sms.MachineOrder{Verb: sms.MachineState}).Job
		if j == nil || j.Error != "" {
			t.Fatalf("%+v", j)
		}
		return j.Finished
	})
	order(sms.MachineOrder{Verb: sms.MachineRelease})
	d.cut()
	g.goesOn("with no export")
	if out := lv.Virsh("domblklist", "web-test"); !strings.Contains(out, pool) || strings.Contains(out, "nbd") {
		t.Errorf("its disks are %s", out)
	}
	if out := lv.Virsh("list", "--all", "--persistent", "--name"); out != "web-test" {
		t.Errorf("persistent: %q", out)
	}
	d.serve()
	g.restores(lv, order, xml, disks)
	if after := sum(t, disk); after != before {
		t.Error("the backup has changed")
	}
}

// restores makes a machine in the pool, beside one whose name is taken, and in its place.
func (g guest) restores(lv *lab.Libvirt, order func(sms.MachineOrder) *sms.MachineReply, xml string, disks []sms.MachineDisk) {
	t := g.t
	t.Helper()
	const id = "0123456789ac" // another machine than the one that moved
	restore := func(def sms.MachineDefinition) *sms.MachineJob {
		t.Helper()
		def.XML = xml
		order(sms.MachineOrder{ID: id, Verb: sms.MachineRestore, Disks: disks, Pool: "vms", Format: "qcow2", Definition: &def})
		var j *sms.MachineJob
		lab.Eventually(t, "the restore", 4*time.Minute, func() bool {
			j = order(sms.MachineOrder{ID: id, Verb: sms.MachineState}).Job
			return j != nil && j.Finished
		})
		order(sms.MachineOrder{ID: id, Verb: sms.MachineRelease})
		return j
	}
	if j := restore(sms.MachineDefinition{Name: "web-test", NewIdentity: true}); !strings.Contains(j.Error, "there already") {
		t.Errorf("a name that is taken: %+v", j)
	}
	old := lv.Virsh("domuuid", "web-test")
	if j := restore(sms.MachineDefinition{Name: "web-test", NewIdentity: true, Overwrite: true}); j.Error != "" || j.Name != "web-test" || j.UUID == old {
		t.Fatalf("%+v", j)
	}
	if state := lv.Virsh("domstate", "web-test"); state != "shut off" {
		t.Errorf("left off, it is %s", state)
	}
	lv.Virsh("start", "web-test")
	lab.Console(t, g.serial, "boot=3", 1) // what it was when its overlay was read
}
