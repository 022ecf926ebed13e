package ingest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"time"

	"coffer/appliance/sms"
)

// Clients knows the clients of the appliance.
type Clients interface {
	// Authenticate returns the name of the client that a verified certificate belongs to. It refuses revoked certificates
	// and unknown clients.
	Authenticate(ctx context.Context, cert *x509.Certificate) (client string, err error)
	// Connected is called after the Welcome of each new connection, Disconnected when the client's last one is gone.
	Connected(client string, hello sms.Hello, remote net.Addr)
	Disconnected(client string, cause error)
}

// Enroller issues certificates. An *sms.Error goes to the agent as it is; any other is told as sms.CodeAuth without text,
// and logged.
type Enroller interface {
	Enrol(ctx context.Context, e sms.Enrol, remote net.Addr) (sms.EnrolResult, error)
	// Renew issues a new certificate to a client that showed cert.
	Renew(ctx context.Context, client string, cert *x509.Certificate, csr []byte) (sms.EnrolResult, error)
}

// Options of a Server. Clients and Enroller are needed; the zero value of all else means the default.
type Options struct {
	Clients  Clients
	Enroller Enroller
	Logger   *slog.Logger
	// Version of the appliance, told to agents.
	Version string
	// Memory bounds, over all connections, what is buffered of messages beyond each stream's small base window, in bytes.
	Memory int64
	// MaxConns bounds the connections at one time.
	MaxConns int
	// ResumeWindow is for how long a run waits for its agent to come back, or to open it after its order was accepted.
	ResumeWindow time.Duration
	// KeepAlive and DeadAfter: see sms.Options.
	KeepAlive, DeadAfter time.Duration
	Now                  func() time.Time
}

// DefaultResumeWindow is for how long a lost connection leaves its run alive.
const DefaultResumeWindow = 15 * time.Minute

// Server is the appliance's end of all connections. Methods may be called from many goroutines.
type Server struct {
	opts Options
}

// NewServer makes a Server.
func NewServer(opts Options) *Server { return &Server{opts: opts} }

// Serve accepts TCP connections from ln, does the TLS handshake with conf (which asks for a client certificate, see
// tls.VerifyClientCertIfGiven) and serves them, until ctx is done. Then it closes ln and all connections, fails the runs
// that are left, and waits for all goroutines.
func (s *Server) Serve(ctx context.Context, ln net.Listener, conf *tls.Config) error { panic("todo") }

// Presence tells about the connection of a client.
type Presence struct {
	Online bool
	Remote string
	Since  time.Time // of the connection
	Hello  sms.Hello
}

// Presence returns whether a client is connected now.
func (s *Server) Presence(client string) Presence { panic("todo") }

// Send sends an order to a client and waits for its reply: that a backup or restore was accepted, or what the other
// orders answer. CodeOffline when the client is not connected, *sms.Error with Remote when the agent refuses.
func (s *Server) Send(ctx context.Context, client string, o sms.Order) (sms.Reply, error) {
	panic("todo")
}

// Disconnect closes the connection of a client, after its certificate was revoked, say, and fails its runs.
func (s *Server) Disconnect(client, reason string) { panic("todo") }

// CodeOffline is the code of Send's error when a client is not connected.
const CodeOffline sms.Code = "offline"
