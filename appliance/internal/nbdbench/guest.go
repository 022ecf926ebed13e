package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coffer/nbd"
)

const (
	// guestMarker is what the guest says when it is up.
	guestMarker = "GUEST-BOOT-OK"
	// guestPatience is how long a boot may take, under emulation on a busy machine.
	guestPatience = 10 * time.Minute
)

// bootFrom starts a guest on a disk and waits until it is up. Then the guest is switched off.
func bootFrom(ctx context.Context, uri string) (time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, guestPatience)
	defer stop()
	var fault strings.Builder
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,accel=tcg", "-m", "512", "-drive", "if=none,id=d,format=raw,file="+strings.ReplaceAll(uri, ",", ",,"),
		"-device", "virtio-blk-pci,drive=d", "-smbios", "type=1,serial=mode=ticker", "-serial", "stdio")
	cmd.Stderr = &fault
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	up, said := false, ""
	for lines := bufio.NewScanner(console); !up && lines.Scan(); {
		said = lines.Text()
		up = strings.Contains(said, guestMarker)
	}
	took := time.Since(begun)
	_ = cmd.Process.Kill() // by its handle: it is ours
	_ = cmd.Wait()         // it was killed
	if !up {
		return 0, fmt.Errorf("the guest did not say %s, its last line was %q: %w: %s", guestMarker, said, context.Cause(ctx), fault.String())
	}
	return took, nil
}

// copySparse copies a disk with its holes.
func copySparse(ctx context.Context, to, from string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// written is a file as a device that takes writes.
type written struct{ plain }

var _ nbd.Writer = written{}

func (w written) WriteAt(_ context.Context, b []byte, off int64) error {
	_, err := w.f.WriteAt(b, off)
	return err
}

func (w written) Zero(_ context.Context, off, n int64, _ bool) error {
	return os.NewSyscallError("fallocate", unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
}

func (w written) Trim(ctx context.Context, off, n int64) error { return w.Zero(ctx, off, n, true) }
func (w written) Flush(context.Context) error                  { return w.f.Sync() }

// serve serves one device.
func serve(ctx context.Context, d nbd.Device, l net.Listener) error {
	return nbd.NewServer(only{d}, nbd.ServerOptions{}).Serve(ctx, l)
}

func socketURI(socket string) string { return "nbd+unix:///?socket=" + url.QueryEscape(socket) }

// socketOf takes an address on a unix socket apart.
func socketOf(uri string) (socket, export string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", "", err
	}
	if u.Scheme != "nbd+unix" || u.Query().Get("socket") == "" {
		return "", "", errors.New(uri + " is not on a unix socket")
	}
	return u.Query().Get("socket"), strings.TrimPrefix(u.Path, "/"), nil
}
