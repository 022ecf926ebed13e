package config

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNBDFaults(t *testing.T) {
	c := Default()
	c.NBD = NBD{Listen: "nowhere", Socket: strings.Repeat("x", 200), TLS: "perhaps", Connections: 0, Memory: 1 << 20}
	err := c.Validate()
	if err == nil {
		t.Fatal("valid")
	}
	for _, key := range []string{"nbd.listen", "nbd.socket", "nbd.tls", "nbd.connections", "nbd.memory"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not named: %v", key, err)
		}
	}
	c = Default()
	if c.NBDSocket() != "/var/lib/coffer/run/nbd.sock" {
		t.Errorf("socket %s", c.NBDSocket())
	}
	if c.NBD.Socket = ListenerOff; c.NBDSocket() != "" || c.Validate() != nil {
		t.Errorf("switched off: %q, %v", c.NBDSocket(), c.Validate())
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	for range 2 { // the second finds what a killed appliance left
		l, err := ListenUnix(t.Context(), path, "nbd.socket")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", st, err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_ = c.Close()
			}
		}()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = l.Close()
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path, "nbd.socket"); err == nil || !strings.Contains(err.Error(), "nbd.socket") {
		t.Errorf("a file in its place: %v", err)
	}
}
