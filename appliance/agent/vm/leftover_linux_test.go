//go:build linux

package vm_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coffer/appliance/agent/vm"
	"coffer/appliance/internal/lab"
	"coffer/appliance/sms"
)

// cutMove is a machine that runs from an export on a host with a pool, while its agent does not live.
type cutMove struct {
	t                   *testing.T
	lv                  *lab.Libvirt
	d                   *desk
	xml, pool, run, dir string
	image               string // where a move would copy to
}

const cutID = "0123456789ab"

func newCutMove(t *testing.T) *cutMove {
	t.Helper()
	lv := lab.StartLibvirt(t)
	disk := filepath.Join(lv.Dir, "disk.raw")
	if err := os.WriteFile(disk, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	lv.Define(lab.Domain{Name: "web", Disks: []lab.Disk{{Path: disk, Format: "raw"}}})
	c := &cutMove{t: t, lv: lv, d: newDesk(t, disk), xml: lv.Virsh("dumpxml", "--inactive", "web"), pool: filepath.Join(lv.Dir, "pool"), dir: t.TempDir()}
	lv.Virsh("undefine", "web")
	if err := os.Mkdir(c.pool, 0o755); err != nil {
		t.Fatal(err)
	}
	lv.Virsh("pool-define-as", "vms", "dir", "--target", c.pool)
	lv.Virsh("pool-start", "vms")
	var err error
	if c.run, err = os.MkdirTemp("/tmp", "vm"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(c.run) })
	c.image = filepath.Join(c.pool, "web-vda-"+cutID+".qcow2")
	return c
}

// agent is one that knows nothing of the machine.
func (c *cutMove) agent() *vm.Machines {
	ms := &vm.Machines{Dial: c.d.dial, RunDir: c.run, StateDir: c.dir, Logger: slog.New(slog.DiscardHandler)}
	c.t.Cleanup(func() { _ = ms.Close() })
	return ms
}

func (c *cutMove) order(ms *vm.Machines, o sms.MachineOrder) *sms.MachineReply {
	c.t.Helper()
	o.ID, o.URI, o.Pool = cutID, c.lv.URI(), "vms"
	o.Disks = []sms.MachineDisk{{Target: "vda", Export: "aaaa00000001"}}
	r, err := ms.Order(c.t.Context(), o)
	if err != nil {
		c.t.Fatalf("%s: %v", o.Verb, err)
	}
	return r
}

// copy does what a move does, up to the point where the agent is killed.
func (c *cutMove) copy(pivot bool) {
	c.t.Helper()
	c.lv.Virsh("vol-create-as", "vms", filepath.Base(c.image), "8M", "--format", "qcow2")
	args := []string{"blockcopy", "web", "vda", c.image, "--format", "qcow2", "--reuse-external", "--transient-job", "--wait"}
	if pivot {
		args = append(args, "--pivot")
	}
	c.lv.Virsh(args...)
}

// keep writes what the agent keeps while it changes disks over.
func (c *cutMove) keep(xml string) {
	c.t.Helper()
	b, err := json.Marshal(map[string]any{"version": 1, "pool": "vms", "images": []string{c.image}, "xml": xml})
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "machine-"+cutID+".json"), b, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// left tells what there is still: images, domains (those that stay in capitals), what the agent keeps, sockets.
func (c *cutMove) left() string {
	c.t.Helper()
	count := func(dir, pattern string) int {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			c.t.Fatal(err)
		}
		return len(found)
	}
	return strings.TrimSpace(fmt.Sprintf("images %d kept %d sockets %d %s%s", count(c.pool, "*"), count(c.dir, "*"), count(c.run, "*"),
		c.lv.Virsh("list", "--all", "--transient", "--name"), strings.ToUpper(c.lv.Virsh("list", "--all", "--persistent", "--name"))))
}

// At whatever point of a move an agent was killed, the next one finds out how far it was.
func TestMoveIsTakenUp(t *testing.T) {
	lab.Long(t)
	c := newCutMove(t)
	for _, test := range []struct {
		name  string
		until func(c *cutMove) // what happened of the move, and to the machine
		moved bool             // at once, or after the move has gone on
		fault string           // of the job; and then the machine is dropped
		left  string
	}{
		{"before it began", func(*cutMove) {}, true, "", "images 1 kept 0 sockets 0 WEB"},
		{"while it copied", func(c *cutMove) { c.copy(false) }, true, "", "images 1 kept 0 sockets 0 WEB"},
		{"before it changed over", func(c *cutMove) { c.copy(false); c.keep("") }, true, "", "images 1 kept 0 sockets 0 WEB"},
		{"after it changed over", func(c *cutMove) { c.copy(true); c.keep("") }, true, "", "images 1 kept 0 sockets 0 WEB"},
		{"after it was defined", func(c *cutMove) {
			c.copy(true)
			c.keep("<domain/>")
			path := filepath.Join(c.dir, "x")
			if err := os.WriteFile(path, []byte(c.lv.Virsh("dumpxml", "web")), 0o600); err != nil {
				c.t.Fatal(err)
			}
			c.lv.Virsh("define", path)
			_ = os.Remove(path)
		}, true, "", "images 1 kept 0 sockets 0 WEB"},
		{"while it copied, and the host stopped", func(c *cutMove) { c.copy(false); c.lv.Virsh("destroy", "web") }, false, "while it was moved", "images 0 kept 0 sockets 0"},
		{"while it changed over, and the host stopped", func(c *cutMove) {
			c.copy(true)
			c.keep("")
			c.lv.Virsh("destroy", "web")
		}, false, c.image, "images 1 kept 1 sockets 0"},
		{"before it was defined, and the host stopped", func(c *cutMove) {
			c.copy(true)
			c.keep(c.lv.Virsh("dumpxml", "--inactive", "web"))
			c.lv.Virsh("destroy", "web")
		}, true, "", "images 1 kept 0 sockets 0 WEB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := *c
			c.t, c.lv = t, c.lv.For(t)
			first := c.agent()
			uuid := c.order(first, sms.MachineOrder{Verb: sms.MachineBoot, Definition: &sms.MachineDefinition{XML: c.xml}}).UUID
			test.until(&c)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			next := c.agent()
			c.order(next, sms.MachineOrder{Verb: sms.MachineAttach, UUID: uuid, Expect: sms.MachineMove})
			var r *sms.MachineReply
			lab.Eventually(t, "the job ends", 2*time.Minute, func() bool {
				r = c.order(next, sms.MachineOrder{Verb: sms.MachineState, UUID: uuid, Expect: sms.MachineMove})
				return r.Job != nil && r.Job.Finished
			})
			if r.Job.Verb != sms.MachineMove || !strings.Contains(r.Job.Error, test.fault) || test.moved != (r.Job.Error == "") || test.moved != (r.UUID == uuid) {
				t.Errorf("%+v, job %+v", r, r.Job)
			}
			c.order(next, sms.MachineOrder{Verb: sms.MachineRelease})
			if left := c.left(); left != test.left {
				t.Errorf("left: %s, want %s", left, test.left)
			}
			if !test.moved {
				c.order(next, sms.MachineOrder{Verb: sms.MachineDrop})
				if left := c.left(); left != "images 0 kept 0 sockets 0" {
					t.Errorf("after the drop: %s", left)
				}
				return
			}
			if out := c.lv.Virsh("domblklist", "web"); !strings.Contains(out, c.image) {
				t.Errorf("its disks are %s", out)
			}
			if c.lv.Virsh("domstate", "web") == "running" {
				c.lv.Virsh("destroy", "web")
			}
			c.lv.Virsh("undefine", "web")
			c.lv.Virsh("vol-delete", "--pool", "vms", filepath.Base(c.image))
		})
	}
}

// A restore whose agent was killed just before or after it defined the new machine is taken back, or taken up.
func TestRestoreIsTakenUp(t *testing.T) {
	lab.Long(t)
	c := newCutMove(t)
	define := func(name, disk string) {
		t.Helper()
		c.lv.Define(lab.Domain{Name: name, Disks: []lab.Disk{{Path: disk, Format: "qcow2"}}})
	}
	old := c.lv.Image("old.qcow2", "qcow2", 8).Path
	for _, complete := range []bool{false, true} {
		c.lv.Virsh("vol-create-as", "vms", filepath.Base(c.image), "8M", "--format", "qcow2")
		define("web-replaced-by-"+cutID, old)
		want := ""
		if complete {
			define("web", c.image)
			want = c.lv.Virsh("domuuid", "web")
		}
		ms := c.agent()
		r := c.order(ms, sms.MachineOrder{Verb: sms.MachineState, Expect: sms.MachineRestore})
		if !complete {
			if r.Job != nil {
				t.Errorf("job %+v of a restore that was not complete", r.Job)
			}
			c.order(ms, sms.MachineOrder{Verb: sms.MachineDrop})
			if out := c.lv.Virsh("domblklist", "web"); !strings.Contains(out, old) || c.left() != "images 0 kept 0 sockets 0 WEB" {
				t.Errorf("the old machine's disks are %s; left: %s", out, c.left())
			}
			c.lv.Virsh("undefine", "web")
			continue
		}
		if r.Job == nil || !r.Job.Finished || r.Job.Error != "" || r.Job.UUID != want || r.Job.Name != "web" || len(r.Job.Warnings) > 0 {
			t.Errorf("job %+v", r.Job)
		}
		if _, err := ms.Order(t.Context(), sms.MachineOrder{Verb: sms.MachineDrop, ID: cutID, URI: c.lv.URI(), Pool: "vms"}); err == nil {
			t.Error("a complete machine was dropped")
		}
		if c.left() != "images 1 kept 0 sockets 0 WEB" {
			t.Errorf("left: %s", c.left())
		}
	}
}
