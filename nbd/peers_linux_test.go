package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// need skips a test that lacks a program, or fails it where nothing may be lacking.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("COFFER_REQUIRE_LAB") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// tool runs a program of others against a server of ours, or the other way round.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.WaitDelay = time.Second
	var faults bytes.Buffer // nbdinfo's has warnings, where programs are missing that it would like to have
	c.Stderr = &faults
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, faults.Bytes())
	}
	return string(out)
}

// peer is an export of ours as libnbd and qemu name it.
type peer struct {
	uri   string   // of libnbd
	qemu  []string // options in front of an image's name
	image string   // qemu's
	home  string   // of fio
	// simple: structured replies are refused.
	simple bool
}

// disk is an export of 16 MiB: data, holes, data again, as the file reference has it.
func disk(t *testing.T) (d *nbdtest.Mem, reference string) {
	t.Helper()
	d = nbdtest.NewMem(16 << 20)
	for _, off := range []int64{0, 5 << 20, 16<<20 - 70000} {
		if err := d.WriteAt(t.Context(), pattern(70000), off); err != nil {
			t.Fatal(err)
		}
	}
	reference = filepath.Join(t.TempDir(), "reference.raw")
	if err := os.WriteFile(reference, d.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return d, reference
}

func plainPeer(t *testing.T, d nbd.Device) peer { return unixPeer(t, d, nbd.ServerOptions{}) }

// simplePeer refuses structured replies.
func simplePeer(t *testing.T, d nbd.Device) peer {
	p := unixPeer(t, d, nbd.ServerOptions{SimpleReplies: true})
	p.simple = true
	return p
}

func unixPeer(t *testing.T, d nbd.Device, o nbd.ServerOptions) peer {
	_, path := serve(t, nbdtest.Of("disk", d), o)
	return peer{uri: "nbd+unix:///disk?socket=" + url.QueryEscape(path),
		image: fmt.Sprintf("driver=nbd,export=disk,server.type=unix,server.path=%s", path)}
}

// tlsPeer insists on TLS with certificates of both sides.
func tlsPeer(t *testing.T, d nbd.Device) peer {
	pki := newCerts(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, nbdtest.Of("disk", d), nbd.ServerOptions{TLS: pki.server, RequireTLS: func(nbd.Peer) bool { return true }})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return peer{
		uri:   "nbds://localhost:" + port + "/disk?tls-certificates=" + url.QueryEscape(pki.dir),
		qemu:  []string{"--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + pki.dir},
		image: "driver=nbd,export=disk,server.type=inet,server.host=localhost,server.port=" + port + ",tls-creds=tls0",
	}
}

// matrix runs a test in plain, and in the long form over TLS and with structured replies refused, too.
func matrix(t *testing.T, f func(t *testing.T, open func(*testing.T, nbd.Device) peer)) {
	t.Run("plain", func(t *testing.T) { f(t, plainPeer) })
	for name, open := range map[string]func(*testing.T, nbd.Device) peer{"TLS": tlsPeer, "simple replies": simplePeer} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv("COFFER_LONG") == "" {
				t.Skip("long: set COFFER_LONG=1, or short")
			}
			f(t, open)
		})
	}
}

func TestNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	matrix(t, func(t *testing.T, open func(*testing.T, nbd.Device) peer) {
		d, _ := disk(t)
		p := open(t, d)
		var info struct {
			TLS, Structured bool
			Exports         []struct {
				Name      string   `json:"export-name"`
				Size      int64    `json:"export-size"`
				Contexts  []string `json:"contexts"`
				MultiConn bool     `json:"can_multi_conn"`
				Cache     bool     `json:"can_cache"`
				DF        bool     `json:"can_df"`
				FUA       bool     `json:"can_fua"`
				Trim      bool     `json:"can_trim"`
				Zero      bool     `json:"can_zero"`
			}
		}
		if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", p.uri)), &info); err != nil {
			t.Fatal(err)
		}
		x := info.Exports[0]
		if p.simple {
			if info.Structured || len(x.Contexts) != 0 || x.DF || x.Name != "disk" || x.Size != d.Size() {
				t.Errorf("%+v", info)
			}
			return
		}
		if !info.Structured || info.TLS != strings.HasPrefix(p.uri, "nbds:") || x.Name != "disk" || x.Size != d.Size() || len(x.Contexts) != 1 ||
			!x.MultiConn || !x.Cache || !x.DF || !x.FUA || !x.Trim || !x.Zero {
			t.Errorf("%+v", info)
		}
		if out := tool(t, "nbdinfo", "--list", "--json", p.uri); strings.Count(out, `"export-name"`) != 2 {
			t.Errorf("list: %s", out)
		}
		var extents []struct{ Offset, Length, Type int64 }
		if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--map", "--json", p.uri)), &extents); err != nil {
			t.Fatal(err)
		}
		if len(extents) != 5 || extents[1].Type != 3 || extents[1].Offset != 73728 || extents[1].Length != 5<<20-73728 {
			t.Errorf("map %+v", extents)
		}
	})
}

func TestNbdcopy(t *testing.T) {
	need(t, "nbdcopy", "cmp")
	matrix(t, func(t *testing.T, open func(*testing.T, nbd.Device) peer) {
		d, reference := disk(t)
		p := open(t, d)
		for i, o := range [][]string{{"--connections=1"}, {"--connections=4", "--requests=64"}, {"--synchronous"}, {"--no-extents"}} {
			got := filepath.Join(t.TempDir(), strconv.Itoa(i))
			tool(t, "nbdcopy", append(o, p.uri, got)...)
			tool(t, "cmp", got, reference)
		}
		up := nbdtest.NewMem(d.Size())
		p = open(t, up)
		tool(t, "nbdcopy", "--connections=4", "--requests=64", "--flush", reference, p.uri)
		if !bytes.Equal(up.Bytes(), d.Bytes()) || up.Flushes() == 0 {
			t.Errorf("copied up: equal %v, %d flushes", bytes.Equal(up.Bytes(), d.Bytes()), up.Flushes())
		}
	})
}

// The script is in testdata: libnbd without its own checks of what a server allows.
func TestLibnbd(t *testing.T) {
	need(t, "/usr/bin/python3")
	if err := exec.Command("/usr/bin/python3", "-c", "import nbd").Run(); err != nil {
		if os.Getenv("COFFER_REQUIRE_LAB") != "" {
			t.Fatal("python3-libnbd is missing")
		}
		t.Skip("python3-libnbd is missing")
	}
	matrix(t, func(t *testing.T, open func(*testing.T, nbd.Device) peer) {
		for _, replies := range []string{"structured", "simple"} {
			d, reference := disk(t)
			ro := open(t, readOnly{d})
			if ro.simple && replies == "structured" {
				continue
			}
			tool(t, "/usr/bin/python3", "testdata/libnbd.py", ro.uri, reference, replies, "ro")
			tool(t, "/usr/bin/python3", "testdata/libnbd.py", open(t, d).uri, reference, replies, "rw")
		}
	})
}

func TestQemuImg(t *testing.T) {
	need(t, "qemu-img")
	matrix(t, func(t *testing.T, open func(*testing.T, nbd.Device) peer) {
		d, reference := disk(t)
		p := open(t, d)
		img := func(command string, args ...string) string {
			return tool(t, "qemu-img", append(append([]string{command}, p.qemu...), args...)...)
		}
		var extents []struct {
			Start, Length int64
			Zero          bool
		}
		if err := json.Unmarshal([]byte(img("map", "--output=json", "--image-opts", p.image)), &extents); err != nil {
			t.Fatal(err)
		}
		if p.simple { // nothing is known to be a hole
			if len(extents) != 1 || extents[0].Zero || extents[0].Length != d.Size() {
				t.Errorf("map %+v", extents)
			}
		} else if len(extents) != 5 || !extents[1].Zero || extents[1].Start != 73728 {
			t.Errorf("map %+v", extents)
		}
		qcow := filepath.Join(t.TempDir(), "q.qcow2")
		img("convert", "-m", "16", "-W", "-O", "qcow2", "--image-opts", p.image, qcow)
		tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, reference)
		if p.qemu == nil { // qemu-img bench takes no credentials
			img("bench", "-c", "2000", "-d", "16", "-s", "4096", "-S", "8192", "--image-opts", p.image)
		}
		up := nbdtest.NewMem(d.Size())
		p = open(t, up)
		img("convert", "-n", "-f", "qcow2", "--target-image-opts", qcow, p.image)
		if !bytes.Equal(up.Bytes(), d.Bytes()) {
			t.Error("converted up: other bytes")
		}
		if p.qemu != nil {
			return
		}
		img("bench", "-w", "-c", "2000", "-d", "16", "-s", "4096", "--pattern=7", "--flush-interval=64", "--image-opts", p.image)
		if b := up.Bytes()[2000*4096-1]; b != 7 || up.Flushes() < 2000/64 {
			t.Errorf("bench wrote %d, %d flushes", b, up.Flushes())
		}
	})
}

func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	matrix(t, func(t *testing.T, open func(*testing.T, nbd.Device) peer) {
		d := nbdtest.NewMem(16 << 20)
		p := open(t, d)
		args := append([]string(nil), p.qemu...)
		args = append(args, "--image-opts", p.image)
		for _, c := range []string{"write -P 1 0 1M", "write -f -P 2 100k 3k", "write -z 200k 64k", "write -z -u 300k 64k", "discard 512k 64k",
			"aio_write -P 3 2M 4M", "aio_write -P 4 8M 4M", "aio_flush", "flush",
			"read -P 1 0 100k", "read -P 2 100k 3k", "read -P 0 200k 64k", "read -P 0 300k 64k", "read -P 3 2M 4M", "read -P 4 8M 4M",
			"read -P 0 12M 4M"} {
			args = append(args, "-c", c)
		}
		if out := tool(t, "qemu-io", args...); strings.Contains(out, "failed") {
			t.Error(out)
		}
		if d.Flushes() == 0 {
			t.Error("no flush arrived")
		}
	})
}

func TestFio(t *testing.T) {
	need(t, "fio")
	for name, open := range map[string]func(*testing.T, nbd.Device) peer{"plain": plainPeer, "simple replies": simplePeer, "TLS": fioPeer} {
		t.Run(name, func(t *testing.T) {
			p := open(t, nbdtest.NewMem(16<<20))
			c := exec.CommandContext(t.Context(), "fio", "--name=verify", "--ioengine=nbd", "--uri="+p.uri, "--rw=randwrite",
				"--bssplit=512/10:4k/50:64k/30:1m/10", "--iodepth=16", "--size=16m", "--io_size=32m", "--verify=crc32c", "--verify_fatal=1",
				"--do_verify=1", "--fsync=100", "--verify_state_save=0", "--output-format=terse")
			if name == "TLS" {
				asNobody(c, p.home)
			}
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("fio: %v\n%s", err, out)
			}
		})
	}
}

// fioPeer is tlsPeer for a program that cannot say where its certificates are: libnbd looks below the home of whoever is
// not root.
func fioPeer(t *testing.T, d nbd.Device) peer {
	if os.Getenv("COFFER_LONG") == "" {
		t.Skip("long: set COFFER_LONG=1, or short")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to run fio as somebody else")
	}
	p := tlsPeer(t, d)
	u, err := url.Parse(p.uri)
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("/var/tmp", "fio")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	p.home, p.uri = home, "nbds://"+u.Host+"/disk"
	pki := filepath.Join(home, ".pki", "libnbd")
	tool(t, "mkdir", "-p", pki)
	tool(t, "cp", "-r", u.Query().Get("tls-certificates")+"/.", pki)
	tool(t, "chown", "-R", "65534:65534", home)
	return p
}

// asNobody runs a program as a user who owns his home and nothing else.
func asNobody(c *exec.Cmd, home string) {
	c.Dir, c.Env = home, append(os.Environ(), "HOME="+home)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// TLS is asked for before anything is told.
func TestPlainAgainstTLS(t *testing.T) {
	need(t, "nbdinfo")
	p := tlsPeer(t, nbdtest.NewMem(1<<20))
	u, err := url.Parse(p.uri)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "nbdinfo", "nbd://"+u.Host+"/disk").CombinedOutput()
	if err == nil {
		t.Errorf("opened in plain: %s", out)
	}
}

// foreign starts a server of others on a unix socket, and returns its path when it listens.
func foreign(t *testing.T, name string, args ...string) string {
	t.Helper()
	need(t, name)
	path := filepath.Join(t.TempDir(), "s")
	for i, a := range args {
		if a == "SOCKET" {
			args[i] = path
		}
	}
	c := exec.Command(name, args...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for range 3000 {
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close()
			return path
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not listen", name)
	return ""
}

func TestClientWithNbdkit(t *testing.T) {
	for name, o := range map[string]nbd.ClientOptions{"structured": {}, "simple replies": {SimpleReplies: true}} {
		t.Run(name, func(t *testing.T) {
			path := foreign(t, "nbdkit", "-f", "-U", "SOCKET", "memory", "16M")
			want := make([]byte, 16<<20)
			c := dial(t, path, o)
			nbdtest.Read(t, c, want)
			nbdtest.Write(t, c, want)
		})
	}
	t.Run("TLS", func(t *testing.T) {
		pki := newCerts(t)
		path := foreign(t, "nbdkit", "-f", "-U", "SOCKET", "--tls=require", "--tls-verify-peer", "--tls-certificates="+pki.dir, "memory", "1M")
		nbdtest.Write(t, dial(t, path, nbd.ClientOptions{TLS: pki.client}), make([]byte, 1<<20))
		_, err := nbd.Dial(t.Context(), "unix", path, nbd.ClientOptions{})
		wantKind(t, err, nbd.KindTLSRequired)
	})
	t.Run("small blocks only", func(t *testing.T) {
		path := foreign(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=512",
			"blocksize-maximum=64k", "blocksize-error-policy=error")
		c := dial(t, path, nbd.ClientOptions{})
		want := make([]byte, 1<<20)
		copy(want[512:], pattern(300<<10))
		if err := c.WriteAt(t.Context(), want[512:512+300<<10], 512); err != nil {
			t.Fatal(err)
		}
		nbdtest.Read(t, c, want)
	})
	t.Run("errors", func(t *testing.T) {
		path := foreign(t, "nbdkit", "-f", "-U", "SOCKET", "--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=100%")
		c := dial(t, path, nbd.ClientOptions{})
		if err := c.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, nbd.ENOSPC) {
			t.Errorf("write: %v", err)
		}
	})
}

// The dirty bitmap of a qcow2 is what incremental backups of machines read.
func TestClientWithQemuBitmap(t *testing.T) {
	need(t, "qemu-img", "qemu-io")
	image := filepath.Join(t.TempDir(), "d.qcow2")
	tool(t, "qemu-img", "create", "-f", "qcow2", image, "64M")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", image)
	tool(t, "qemu-img", "bitmap", "--add", "-g", "65536", image, "b0")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 2 8M 64k", "-c", "write -P 3 40M 130k", image)
	path := foreign(t, "qemu-nbd", "-t", "-r", "-k", "SOCKET", "-f", "qcow2", "-B", "b0", image)
	c := dial(t, path, nbd.ClientOptions{MetaContexts: []string{"qemu:dirty-bitmap:b0"}})
	if got := c.MetaContexts(); len(got) != 2 {
		t.Fatalf("contexts %v", got)
	}
	var dirty [][2]int64
	at := int64(0)
	err := c.BlockStatus(t.Context(), "qemu:dirty-bitmap:b0", 0, c.Size(), func(n int64, flags uint32) bool {
		if flags&1 != 0 {
			dirty = append(dirty, [2]int64{at, n})
		}
		at += n
		return true
	})
	if err != nil || at != c.Size() || fmt.Sprint(dirty) != fmt.Sprint([][2]int64{{8 << 20, 65536}, {40 << 20, 196608}}) {
		t.Errorf("dirty %v up to %d: %v", dirty, at, err)
	}
	want := make([]byte, 64<<20)
	for _, w := range []struct {
		b      byte
		off, n int
	}{{1, 0, 1 << 20}, {2, 8 << 20, 65536}, {3, 40 << 20, 130 << 10}} {
		copy(want[w.off:], bytes.Repeat([]byte{w.b}, w.n))
	}
	nbdtest.Read(t, c, want)
}

func TestClientWithQemu(t *testing.T) {
	need(t, "qemu-img")
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "d")
			tool(t, "qemu-img", "create", "-f", format, image, "16M")
			path := foreign(t, "qemu-nbd", "-t", "-e", "4", "-k", "SOCKET", "-f", format, "--discard=unmap", image)
			want := make([]byte, 16<<20)
			nbdtest.Write(t, dial(t, path, nbd.ClientOptions{}), want)
			nbdtest.Read(t, dial(t, path, nbd.ClientOptions{SimpleReplies: true}), want)
		})
	}
}
