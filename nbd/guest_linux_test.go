package nbd_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// labguest runs a command in a throw-away guest with Debian's kernel, which reaches this host's loopback as 10.0.2.2.
const labguest = "../appliance/internal/lab/labguest.sh"

// onDevice connects the kernel's client, makes a file system, fills it, checks it, and looks again after a reconnect.
const onDevice = `set -eux
PATH=$PATH:/usr/sbin:/sbin
connect() { nbd-client 10.0.2.2 "$PORT" /dev/nbd0 -N disk -b 4096 $TLS; }
connect
test "$(blockdev --getsize64 /dev/nbd0)" = 335544320
mkfs.$FS $QUIET /dev/nbd0 >&2
mkdir -p /mnt/n
mount /dev/nbd0 /mnt/n
cp -a /usr/lib/python3 /mnt/n/
head -c 20000000 /dev/urandom > /mnt/n/random
(cd /mnt/n && find . -type f -print0 | sort -z | xargs -0 sha256sum) > /tmp/sums
rm -r /mnt/n/python3/dist-packages/[a-g]*
fstrim -v /mnt/n >&2
umount /mnt/n
nbd-client -d /dev/nbd0
connect
$FSCK /dev/nbd0 >&2
mount -o ro /dev/nbd0 /mnt/n
cd /mnt/n && sha256sum -c --ignore-missing --quiet /tmp/sums
sha256sum random
cd / && umount /mnt/n
nbd-client -d /dev/nbd0
echo GUEST-OK`

// The kernel's own client: nbd-client in a guest makes, fills, checks and mounts file systems on an export, in plain and
// over TLS; then the bytes that arrived here are checked, too.
func TestGuest(t *testing.T) {
	if os.Getenv("COFFER_LONG") != "1" {
		t.Skip("long: set COFFER_LONG=1")
	}
	need(t, "qemu-system-x86_64", "/usr/sbin/nbd-client", "/usr/sbin/mkfs.xfs", "/usr/sbin/e2fsck")
	for _, c := range []struct {
		name, fs, quiet, fsck string
		tls                   bool
	}{
		{"ext4", "ext4", "-q", "e2fsck -fn", false},
		{"ext4 over TLS", "ext4", "-q", "e2fsck -fn", true},
		{"xfs", "xfs", "-q", "xfs_repair -n", false},
		{"xfs over TLS", "xfs", "-q", "xfs_repair -n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := nbdtest.NewMem(320 << 20)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			o, flags := nbd.ServerOptions{}, ""
			if c.tls {
				pki := newCerts(t)
				o.TLS, o.RequireTLS = pki.server, func(nbd.Peer) bool { return true }
				flags = fmt.Sprintf("-certfile %[1]s/client-cert.pem -keyfile %[1]s/client-key.pem -cacertfile %[1]s/ca-cert.pem -tlshostname localhost", pki.dir)
			}
			serveOn(t, l, nbdtest.Of("disk", d), o)
			_, port, err := net.SplitHostPort(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), labguest, "--mod", "nbd "+c.fs, "--timeout", "1800",
				"--env", "PORT="+port, "--env", "FS="+c.fs, "--env", "QUIET="+c.quiet, "--env", "FSCK="+c.fsck, "--env", "TLS="+flags,
				"-c", onDevice).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "GUEST-OK") {
				t.Fatalf("guest: %v\n%s", err, out)
			}
			if d.Flushes() == 0 {
				t.Error("the guest's kernel flushed nothing")
			}
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, d.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			check := strings.Fields(c.fsck)
			tool(t, "/usr/sbin/"+check[0], append(check[1:], image)...)
		})
	}
}
