package config

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ListenTCP opens the listener of one configuration key. When the port is taken, the error names the process that has
// it, as far as /proc tells, and the key to change.
func ListenTCP(ctx context.Context, addr, key string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err == nil {
		return l, nil
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("listen on %s: the port is taken by %s: stop that process or choose another address with the configuration key %q: %w",
			addr, portOwner("/proc", port), key, err)
	}
	return nil, fmt.Errorf("listen on %s (configuration key %q): %w", addr, key, err)
}

// portOwner names the process that listens on a TCP port: from /proc/net/tcp to the socket's inode to the process that
// has it open.
func portOwner(proc, port string) string {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "another process"
	}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		for _, inode := range listeningInodes(filepath.Join(proc, table), uint16(n)) {
			if owner := inodeOwner(proc, inode); owner != "" {
				return owner
			}
		}
	}
	return "another process (of another user, or in another namespace)"
}

// listeningInodes returns the socket inodes that listen on the port.
func listeningInodes(path string, port uint16) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const listening = "0A" // TCP_LISTEN in include/net/tcp_states.h
	var inodes []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != listening {
			continue
		}
		_, hexPort, _ := strings.Cut(fields[1], ":")
		raw, err := hex.DecodeString(hexPort)
		if err == nil && len(raw) == 2 && uint16(raw[0])<<8|uint16(raw[1]) == port {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// inodeOwner finds the process that has the socket open: "nginx (pid 4711)".
func inodeOwner(proc, inode string) string {
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	want := "socket:[" + inode + "]"
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
	}
	return ""
}
