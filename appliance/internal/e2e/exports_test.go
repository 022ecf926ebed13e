package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coffer/api"
	"coffer/appliance/pki"
	"coffer/nbd"
)

// fetch reads an export whole with nbdcopy, over several connections.
func (l *lab) fetch(uri string) []byte {
	l.Helper()
	out := l.path("fetched")
	_ = os.Remove(out) // of the last time
	if b, err := exec.CommandContext(l.Context(), "nbdcopy", "--connections=4", uri, out).CombinedOutput(); err != nil {
		l.Fatalf("nbdcopy %s: %v\n%s", uri, err, b)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		l.Fatal(err)
	}
	return got
}

// Disks of a saveset over NBD: read only they are what was backed up; with an overlay they take writes, which survive the
// death of the appliance, become a saveset, and leave nothing behind when they are dropped.
func TestExports(t *testing.T) {
	needRoot(t)
	for _, tool := range []string{"qemu-img", "qemu-io", "nbdcopy", "nbdinfo"} {
		needTool(t, tool)
	}
	l := newLab(t)
	source := l.task("disks", "--image", "*.img", "--image", "*.qcow2")
	disks := newDiskImages(t, source)
	age()
	base := l.backup("disks", api.LevelFull, api.RunSuccess).Saveset
	disk := filepath.Join(source, "data.img")
	l.refused([]string{"no such disk"}, "export", "add", base, "/nothing")

	plain := decode[api.Export](l, "export", "add", base, disk)
	for _, uri := range plain.URIs {
		if !bytes.Equal(l.fetch(uri), disks.raw) {
			t.Errorf("%s is not the disk that was backed up", uri)
		}
		disks.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disk)
	}
	if len(plain.URIs) != 2 {
		t.Errorf("served at %q", plain.URIs)
	}
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4k", plain.URIs[0]).CombinedOutput(); err == nil {
		t.Errorf("a read-only export took a write: %s", out)
	}

	over := decode[api.Export](l, "export", "add", base, disk, "--overlay", "--limit", "8MiB", "--client", client)
	uri := over.URIs[0]
	want := bytes.Clone(disks.raw)
	fill := func(at, n int, with byte) { copy(want[at:at+n], bytes.Repeat([]byte{with}, n)) }
	disks.tool("qemu-io", "-f", "raw", "-c", "write -P 7 1000k 100k", "-c", "write -P 8 1234567 1000", "-c", "write -z -u 4M 1M", "-c", "flush", uri)
	fill(1000<<10, 100<<10, 7)
	fill(1234567, 1000, 8)
	fill(4<<20, 1<<20, 0)
	// qemu-io flushes when it ends: a client that is cut off does not.
	l.cutOff(over.ID, func(c *nbd.Client) {
		if err := c.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 5000), 10<<20); err != nil {
			t.Fatal(err)
		}
		l.Kill()
	})
	fill(10<<20, 5000, 9)
	l.relaunch()
	if !bytes.Equal(l.fetch(uri), want) {
		t.Fatal("the overlay lost something when the appliance was killed")
	}
	if got := decode[api.Export](l, "export", "show", over.ID); got.State != api.ExportReady || got.Overlay.Unclean || got.Overlay.BytesData < 100<<10 ||
		got.Overlay.BytesData > 1<<20 || got.BytesRead < 1<<20 {
		t.Errorf("shown as %+v, %+v", got, got.Overlay)
	}
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 1 16M 9M", uri).CombinedOutput(); err == nil && !strings.Contains(string(out), "No space left") {
		t.Errorf("beyond its limit it took a write: %s", out)
	}
	want = l.fetch(uri) // of the last write some may have been taken

	l.overAgentPort(over.ID, want)
	l.refused([]string{"has the export", "coffer export drop"}, "saveset", "delete", base, "--force", "--yes")
	made := l.run(api.RunSuccess, "export", "commit", over.ID)
	if made.LevelEffective != api.LevelCopy || made.LevelReason != "overlay_commit" || made.Progress.BytesNew > 12<<20 {
		t.Errorf("commit: %s for %s, %d bytes new", made.LevelEffective, made.LevelReason, made.Progress.BytesNew)
	}
	for saveset, content := range map[string][]byte{made.Saveset: want, base: disks.raw} {
		out := l.path("got")
		l.ok("saveset", "get", saveset, disk, "-o", out, "--force")
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
			t.Errorf("saveset %s has another disk: %v", saveset, err)
		}
	}
	l.ok("saveset", "get", made.Saveset, filepath.Join(source, "system.qcow2.raw"), "-o", l.path("other"), "--force")
	if got, err := os.ReadFile(l.path("other")); err != nil || !bytes.Equal(got, disks.qcow2) {
		t.Errorf("the disk beside it is not what it was: %v", err)
	}
	l.ok("store", "check", "--pages")

	l.ok("export", "drop", plain.ID)
	l.ok("export", "drop", over.ID, "--yes")
	if left, err := os.ReadDir(filepath.Join(l.Data, "overlays")); err != nil || len(left) != 0 {
		t.Errorf("dropped, and left: %v, %v", left, err)
	}
	if out, err := exec.Command("nbdinfo", uri).CombinedOutput(); err == nil {
		t.Errorf("a dropped export is served: %s", out)
	}
	log := decode[api.Page[api.AuditEntry]](l, "audit", "list", "--action", "saveset.nbd").Items
	if len(log) < 3 || !slices.ContainsFunc(log, func(e api.AuditEntry) bool { return strings.Contains(e.Detail, "client "+client) }) {
		t.Errorf("the audit log knows of %+v", log)
	}
	l.ok("saveset", "delete", base, "--force", "--yes")
}

// cutOff runs f with a client of an export on the unix socket.
func (l *lab) cutOff(id string, f func(*nbd.Client)) {
	l.Helper()
	c, err := nbd.Dial(l.Context(), "unix", filepath.Join(l.Data, "run", "nbd.sock"), nbd.ClientOptions{Export: id})
	if err != nil {
		l.Fatal(err)
	}
	f(c)
	_ = c.Close() // the other end is gone
}

// relaunch starts the appliance again and waits for its agent.
func (l *lab) relaunch() {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	if err := l.Launch(ctx); err != nil {
		l.Fatal(err)
	}
	if err := l.agent.WaitOnline(ctx); err != nil {
		l.Fatal(err)
	}
}

// overAgentPort reads an export at the port of agents, with an agent's certificate; without one there is nothing.
func (l *lab) overAgentPort(id string, want []byte) {
	l.Helper()
	identity, err := pki.LoadIdentity(filepath.Join(l.agent.Dir, "identity.pem"))
	if err != nil {
		l.Fatal(err)
	}
	conf := pki.ClientTLS(identity)
	conf.NextProtos = []string{pki.ALPNNBD}
	conn, err := tls.Dial("tcp", l.SMS, conf)
	if err != nil {
		l.Fatal(err)
	}
	c, err := nbd.NewClient(l.Context(), conn, nbd.ClientOptions{Export: id})
	if err != nil {
		l.Fatal(err)
	}
	got := make([]byte, c.Size())
	if err := c.ReadAt(l.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		l.Errorf("another disk at the agents' port: %v", err)
	}
	if err := c.Close(); err != nil {
		l.Error(err)
	}
	conf = conf.Clone()
	conf.Certificates, conf.GetClientCertificate = nil, nil
	var stranger net.Conn
	if stranger, err = tls.Dial("tcp", l.SMS, conf); err == nil {
		if _, err = nbd.NewClient(l.Context(), stranger, nbd.ClientOptions{Export: id}); err == nil {
			l.Error("an export is served to who has no certificate")
		}
	}
}
