package config

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// DefaultNBDListen is the default of nbd.listen: the port that NBD has by IANA, for the appliance's own machine.
const DefaultNBDListen = "127.0.0.1:10809"

// ListenerOff, as an address or a path, switches a listener off. Part of the file's format.
const ListenerOff = "off"

// Defaults of the keys of the same name.
const (
	DefaultNBDConnections = 256
	DefaultNBDMemory      = 64 << 20
	DefaultNBDReserve     = 512 << 20
)

// NBD is how disks of savesets are served as block devices.
type NBD struct {
	Listen string `toml:"listen"` // host:port; off: no port
	Socket string `toml:"socket"` // empty: <data>/run/nbd.sock; off: none
	TLS    NBDTLS `toml:"tls"`
	// Connections that may be open at a time, and bytes of requests that all of them may have in memory.
	Connections int  `toml:"connections"`
	Memory      Size `toml:"memory"`
	// Reserve is the free space of the data directory's disk that overlays leave alone.
	Reserve Size `toml:"reserve"`
}

// NBDTLS says who must use TLS. Part of the file's format.
type NBDTLS string

// Who must use TLS.
const (
	// NBDTLSRequired: everybody but the appliance's own machine.
	NBDTLSRequired NBDTLS = "required"
	// NBDTLSOffered: nobody. What is read and written then goes over the network in the clear, and who has no certificate sees
	// exports that are for everybody.
	NBDTLSOffered NBDTLS = "offered"
)

// DefaultNBD is the configuration without a section [nbd].
func DefaultNBD() NBD {
	return NBD{Listen: DefaultNBDListen, TLS: NBDTLSRequired, Connections: DefaultNBDConnections, Memory: DefaultNBDMemory, Reserve: DefaultNBDReserve}
}

func (n NBD) validate(fault func(key, format string, args ...any)) {
	if n.Listen != ListenerOff {
		if err := checkAddress(n.Listen); err != nil {
			fault("nbd.listen", "%v", err)
		}
	}
	if s := n.Socket; s != "" && s != ListenerOff && !filepath.IsAbs(s) {
		fault("nbd.socket", "%q is not an absolute path", s)
	}
	if len(n.Socket) > maxSocketPath {
		fault("nbd.socket", "%q is longer than %d bytes, which a unix socket's path may have", n.Socket, maxSocketPath)
	}
	if n.TLS != NBDTLSRequired && n.TLS != NBDTLSOffered {
		fault("nbd.tls", "%q is neither %s nor %s", n.TLS, NBDTLSRequired, NBDTLSOffered)
	}
	if n.Connections < 1 || n.Connections > 65536 {
		fault("nbd.connections", "%d is not between 1 and 65536", n.Connections)
	}
	if n.Memory < 32<<20 {
		fault("nbd.memory", "%s is less than the largest request, 32 MiB", n.Memory)
	}
}

// maxSocketPath is what sockaddr_un has room for (unix(7)).
const maxSocketPath = 107

// NBDSocket is the path of the unix socket; empty: there is none.
func (c Config) NBDSocket() string {
	if c.NBD.Socket == ListenerOff {
		return ""
	}
	return orElse(c.NBD.Socket, filepath.Join(c.Data, "run", "nbd.sock"))
}

// ListenUnix opens the listener of a unix socket that only root, or who runs the appliance, may use. A socket that a killed
// appliance left is replaced; the caller holds the data directory, so that no other appliance has it.
func ListenUnix(ctx context.Context, path, key string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("listen on the unix socket %s (configuration key %q): %w", path, key, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != fs.ModeSocket {
			return fail(fmt.Errorf("there is something else: %v", st.Mode()))
		}
		if err := os.Remove(path); err != nil {
			return fail(err)
		}
	}
	// Nobody may connect before the mode is right: the socket is made under a name of its own.
	tmp := path + ".new"
	if len(tmp) > maxSocketPath {
		tmp = path
	}
	_ = os.Remove(tmp) // of a killed appliance
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return fail(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil && tmp != path {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		return fail(err)
	}
	return l, nil
}
