package config

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.StoreDir() != "/var/lib/coffer/store" || c.KeyFile() != "/var/lib/coffer/keys/store.key" || c.MountDir() != "/var/lib/coffer/mnt" {
		t.Errorf("places: %s %s %s", c.StoreDir(), c.KeyFile(), c.MountDir())
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cofferd.toml")
	write(t, path, `
data = "/srv/coffer"
memory = "512 MiB"
[rest]
listen = "127.0.0.1:8443"
[store]
key_file = "/etc/coffer/store.key"
container_size = "2MiB"
reserve = 1048576
[log]
level = "debug"
[nbd]
listen = "off"
socket = "/run/nbd.sock"
tls = "offered"
`)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Data != "/srv/coffer" || c.Memory != 512<<20 || c.Store.ContainerSize != 2<<20 || c.Store.Reserve != 1<<20 ||
		c.REST.Listen != "127.0.0.1:8443" || c.SMS.Listen != DefaultSMSListen || c.Log.Format != "text" ||
		c.NBD.Listen != ListenerOff || c.NBDSocket() != "/run/nbd.sock" || c.NBD.TLS != NBDTLSOffered || c.NBD.Connections != DefaultNBDConnections {
		t.Errorf("read %+v", c)
	}
}

func TestUnknownKeysNameKeyAndFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cofferd.toml")
	write(t, path, "dta = \"/x\"\n[rest]\nport = 3\n")
	_, err := Load(path)
	if err == nil {
		t.Fatal("unknown keys are accepted")
	}
	for _, want := range []string{`"dta"`, `"rest.port"`, path} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	for _, bad := range []string{"data = ", "memory = \"many\"", "memory = -1", "memory = true"} {
		write(t, path, bad)
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestValidateReportsEveryFault(t *testing.T) {
	c := Default()
	c.Data = "relative"
	c.REST.Listen, c.SMS.Listen = "nowhere", ":99999"
	c.Log.Level, c.Log.Format = "loud", "xml"
	c.Store.Dir, c.Store.KeyFile = "/s", "/s/key"
	c.Store.ContainerSize, c.Store.Unlock = 1, "door"
	err := c.Validate()
	for _, key := range []string{"data", "rest.listen", "sms.listen", "log.level", "log.format", "store.key_file", "store.container_size", "store.unlock"} {
		if err == nil || !strings.Contains(err.Error(), `"`+key+`"`) {
			t.Errorf("%s is not reported: %v", key, err)
		}
	}
	c = Default()
	c.SMS = c.REST
	c.Mount.Dir = "/var/lib"
	err = c.Validate()
	for _, key := range []string{"sms.listen", "mount.dir"} {
		if err == nil || !strings.Contains(err.Error(), `"`+key+`"`) {
			t.Errorf("%s is not reported: %v", key, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "17": 17, "1 KiB": 1 << 10, "3MiB": 3 << 20, "2 GiB": 2 << 30, "1TiB": 1 << 40} {
		var s Size
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
		var back Size
		if err := back.Set(s.String()); err != nil || back != s {
			t.Errorf("%q prints as %q", text, s)
		}
	}
	for _, bad := range []string{"", "x", "-1", "1 MB", "9999999999 GiB"} {
		var s Size
		if s.Set(bad) == nil {
			t.Errorf("%q is accepted as %d", bad, s)
		}
	}
}

func TestDataDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := OpenData(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenData(path); !errors.Is(err, ErrDataInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenData(path); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(path, "version"), versionPrefix+"2\n")
	if _, err = OpenData(path); !errors.Is(err, ErrNewerData) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("newer directory: %v", err)
	}
	write(t, filepath.Join(path, "version"), "something else\n")
	if _, err = OpenData(path); err == nil || errors.Is(err, ErrNewerData) {
		t.Errorf("foreign version file: %v", err)
	}
	foreign := t.TempDir()
	write(t, filepath.Join(foreign, "thesis.tex"), "")
	if _, err := OpenData(foreign); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("a directory of somebody else: %v", err)
	}
	half := t.TempDir() // a first start that was cut short
	if err := os.MkdirAll(filepath.Join(half, "catalog"), 0o700); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenData(half); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTakenPortNamesItsOwner(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("%s: %v", addr, err)
			continue
		}
		_, err = ListenTCP(t.Context(), l.Addr().String(), "rest.listen")
		if err == nil {
			t.Fatal("a taken port is given twice")
		}
		comm, _ := os.ReadFile("/proc/self/comm")
		for _, want := range []string{strings.TrimSpace(string(comm)), "pid", `"rest.listen"`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not say %s: %v", want, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := ListenTCP(t.Context(), "256.0.0.1:1", "sms.listen"); err == nil || !strings.Contains(err.Error(), "sms.listen") {
		t.Errorf("bad address: %v", err)
	}
	if owner := portOwner(t.TempDir(), "80"); !strings.Contains(owner, "another process") {
		t.Errorf("owner without /proc: %s", owner)
	}
}
