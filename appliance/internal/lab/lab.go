// Package lab brings up counterparts for tests that nobody here wrote: a libvirtd with its QEMU in private namespaces, a small
// bootable guest that checks itself, an sshd. They need root and some Debian packages (LAB_DEPS of the Makefile), listen on
// loopback or unix sockets, and end with their test.
package lab

import (
	"bytes"
	"embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"coffer/appliance/internal/lab/debian"
)

//go:embed *.sh
var scripts embed.FS

// Need skips the test where a program is lacking, or root; with COFFER_REQUIRE_LAB it fails.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	var missing []string
	if os.Getuid() != 0 {
		missing = append(missing, "root")
	}
	for _, p := range programs {
		if look(p) == "" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return
	}
	text := "needs " + strings.Join(missing, ", ")
	if os.Getenv("COFFER_REQUIRE_LAB") != "" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// Long skips the test unless COFFER_LONG asks for long ones ("1"), or short forms of them ("short").
func Long(t testing.TB) (short bool) {
	t.Helper()
	switch os.Getenv("COFFER_LONG") {
	case "":
		t.Skip("long: set COFFER_LONG=1, or short")
	case "short":
		return true
	}
	return false
}

// look finds a program, in the administrator's directories, too.
func look(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	return ""
}

// Dir makes a directory with a short path, for unix sockets lie in it. It goes with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "cl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// script writes a script of ours into a directory, and returns its path.
func script(t testing.TB, dir, name string) string {
	t.Helper()
	b, err := scripts.ReadFile(name)
	path := filepath.Join(dir, name)
	if err == nil {
		err = os.WriteFile(path, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a program and returns what it printed on standard output.
func run(t testing.TB, env []string, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &fault, append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out.String(), fault.String())
	}
	return out.String()
}

// GuestTools are the programs that Guest needs.
var guestTools = []string{"syslinux", "mcopy", "mformat", "mke2fs", "cpio", "sfdisk", "qemu-img", "busybox", "apt-get", "openssl"}

// Guest makes the disk of a small bootable guest (see mkguest.sh for what it does) and returns its path. Format is raw or
// qcow2.
func Guest(t testing.TB, dir, name, format, mode string) string {
	t.Helper()
	Need(t, guestTools...)
	cache := filepath.Join(os.TempDir(), "coffer-lab-kernel")
	unlock := lock(t, cache+".lock") // the kernel is fetched once
	defer unlock()
	path := filepath.Join(dir, name)
	run(t, nil, "/bin/bash", script(t, dir, "mkguest.sh"), "-o", path, "-f", format, "-m", mode, "-c", cache)
	return path
}

// Debian puts the disk of a Debian guest (see package debian) into a directory, and returns its path. Its format is raw.
func Debian(t testing.TB, dir, name string) string {
	t.Helper()
	Need(t, debian.Programs...)
	path := filepath.Join(dir, name)
	if err := debian.Disk(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// lock takes a lock among all test programs.
func lock(t testing.TB, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// Eventually waits until done says so.
func Eventually(t testing.TB, what string, patience time.Duration, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// SSHD is an sshd of this machine for one test.
type SSHD struct {
	Port                string
	KeyFile, KnownHosts string
}

// StartSSHD starts an sshd on loopback that lets root in by a key. enter begins its command line: see Libvirt.Enter.
func StartSSHD(t testing.TB, enter ...string) *SSHD {
	t.Helper()
	Need(t, "sshd", "ssh", "ssh-keygen")
	dir := Dir(t)
	s := &SSHD{KeyFile: filepath.Join(dir, "key"), KnownHosts: filepath.Join(dir, "known_hosts")}
	for _, name := range []string{"host", "key"} {
		run(t, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // what sshd wants of its packaging
		t.Fatal(err)
	}
	for range 5 { // another program may take the port between
		if s.start(t, dir, enter) {
			return s
		}
	}
	t.Fatal("sshd does not start")
	return nil
}

func (s *SSHD) start(t testing.TB, dir string, enter []string) bool {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.Port, _ = net.SplitHostPort(ln.Addr().String())
	_ = ln.Close()
	conf := filepath.Join(dir, "sshd.conf")
	host, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err == nil {
		err = os.WriteFile(s.KnownHosts, fmt.Appendf(nil, "[127.0.0.1]:%s %s", s.Port, host), 0o600)
	}
	if err == nil {
		err = os.WriteFile(conf, fmt.Appendf(nil, "Port %s\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
			s.Port, filepath.Join(dir, "host"), filepath.Join(dir, "key.pub")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	line := append(slices.Clone(enter), look("sshd"), "-D", "-e", "-f", conf)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop := func() { _ = cmd.Process.Kill(); <-ended }
	for {
		select {
		case <-ended:
			return false
		default:
		}
		if c, err := net.DialTimeout("tcp", "127.0.0.1:"+s.Port, time.Second); err == nil {
			_ = c.Close()
			t.Cleanup(stop)
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
}
