package nbd

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
)

// Exports is what a server offers. Which exports a peer sees is the implementation's decision. Methods are called from
// many goroutines.
type Exports interface {
	// List names the exports that the peer may open. An *Error of KindPolicy refuses to tell.
	List(ctx context.Context, p Peer) ([]ExportInfo, error)
	// Open opens an export for one connection; the empty name is the default export. INFO opens and closes at once. Errors:
	// *Error of KindUnknownExport, KindPolicy, KindTLSRequired or KindShutdown; any other error is told to the client as
	// KindUnknownExport with no text, and to the server's logger in full. An implementation that hides an export from a peer
	// answers KindUnknownExport, as for a name that does not exist.
	Open(ctx context.Context, p Peer, name string) (Export, error)
}

// ExportInfo is one line of a list.
type ExportInfo struct {
	Name        string // at most 4096 bytes of UTF-8
	Description string // for people; may be empty
}

// Export is one open export of one connection.
type Export struct {
	Name        string // canonical; what NBD_INFO_NAME answers
	Description string
	Device      Device
	ReadOnly    bool // implied by a Device that is no Writer
	// MultiConn: a Flush or FUA on one connection covers, and makes visible, the writes acknowledged on all others. Set it
	// where all connections share one Device (proto.md, NBD_FLAG_CAN_MULTI_CONN).
	MultiConn bool
	// Close is called once, after the last request of the connection has ended. It may be nil.
	Close func()
}

// Peer is who asks.
type Peer struct {
	Remote   net.Addr
	Unix     bool              // came over a unix socket
	Loopback bool              // came over a loopback address
	TLS      bool              // the connection is encrypted
	Cert     *x509.Certificate // verified by the TLS handshake; nil when there is none
}

// Local tells whether the peer's bytes never leave this machine.
func (p Peer) Local() bool { return p.Unix || p.Loopback }

// Kind says what sort of failure an *Error is.
type Kind uint8

const (
	KindOther         Kind = iota
	KindUnknownExport      // NBD_REP_ERR_UNKNOWN: no such export, as far as this peer may know
	KindPolicy             // NBD_REP_ERR_POLICY: exists, but not for this peer or not now
	KindTLSRequired        // NBD_REP_ERR_TLS_REQD: only after STARTTLS
	KindShutdown           // NBD_REP_ERR_SHUTDOWN: the server is going away
	KindUnsupported        // NBD_REP_ERR_UNSUP, NBD_REP_ERR_PLATFORM
	KindInvalid            // NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_BLOCK_SIZE_REQD
	KindProtocol           // the other side broke the protocol
	KindTimeout            // the other side was too slow
	KindDisconnected       // the connection is gone
)

var kindNames = [...]string{"other", "unknown export", "refused by policy", "TLS required", "shutting down", "not supported",
	"invalid", "protocol violation", "timeout", "disconnected"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %#x", uint8(k))
}

// Error is a failure of a negotiation or of a connection. Failures of single requests are Errnos.
type Error struct {
	Kind Kind
	Op   string // what was being done
	Name string // the export, where there is one
	Err  error  // may be nil
}

func (e *Error) Error() string {
	s := e.Op
	if e.Name != "" {
		s += " " + e.Name
	}
	if s != "" {
		s += ": "
	}
	s += e.Kind.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
