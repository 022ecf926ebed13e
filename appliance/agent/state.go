package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coffer/appliance/internal/durable"
	"coffer/appliance/pki"
	"coffer/appliance/sms"
)

// Files of the state directory.
const (
	identityFile = "identity.pem" // key, certificate and the appliance's authority, 0600
	serverFile   = "server"       // the appliance's address
)

const (
	dialTimeout = 20 * time.Second
	maxServer   = 1 << 10 // bytes of an address
)

// state is what the state directory holds.
type state struct {
	identity *pki.Identity
	server   string
}

// ErrNotEnrolled says that the state directory has no identity.
var ErrNotEnrolled = errors.New("this client is not enrolled: get a token with \"coffer client add NAME\", then run \"coffer-agent enrol\"")

func loadState(dir string) (state, error) {
	id, err := pki.LoadIdentity(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("%s: %w", dir, ErrNotEnrolled)
	}
	if err != nil {
		return state{}, err
	}
	server, err := os.ReadFile(filepath.Join(dir, serverFile))
	if err != nil {
		return state{}, fmt.Errorf("read the appliance's address: %w", err)
	}
	if len(server) > maxServer {
		return state{}, fmt.Errorf("read the appliance's address: %s is %d bytes long", serverFile, len(server))
	}
	return state{identity: id, server: strings.TrimSpace(string(server))}, nil
}

// save writes the state: the address first, so that an identity is never without one.
func (s state) save(dir string) error {
	if err := durable.WriteFile(filepath.Join(dir, serverFile), []byte(s.server+"\n"), 0o644); err != nil {
		return err
	}
	return s.identity.Save(filepath.Join(dir, identityFile))
}

// withPort adds the port of agents where an address has none.
func withPort(server string) string {
	if _, _, err := net.SplitHostPort(server); err == nil {
		return server
	}
	return net.JoinHostPort(strings.Trim(server, "[]"), DefaultPort)
}

// dial makes a TLS connection in the form that sms wants.
func dial(ctx context.Context, server string, conf *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	conf.DynamicRecordSizingDisabled = true // large records: a backup is no web page
	conn := tls.Client(sms.Buffered(tcp), conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = tcp.Close()
		return nil, fmt.Errorf("connect to %s: %w", server, err)
	}
	return conn, nil
}
