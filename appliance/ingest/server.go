package ingest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
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

// Defaults of Options.
const (
	// DefaultResumeWindow is for how long a lost connection leaves its run alive.
	DefaultResumeWindow = 15 * time.Minute
	// DefaultMemory is what the data windows of all connections may grow into, in bytes.
	DefaultMemory = 64 << 20
	// DefaultMaxConns is how many connections there may be at a time.
	DefaultMaxConns = 1024

	// handshakeTimeout is how long TLS and the first message may take together.
	handshakeTimeout = 15 * time.Second
)

// Options of a Server. Clients and Enroller are needed; the zero value of all else means the default.
type Options struct {
	Clients  Clients
	Enroller Enroller
	Logger   *slog.Logger
	// Protocols get connections that have a verified client certificate and negotiated another protocol than SMS (ALPN), by its
	// name. The function owns the connection and returns when it has ended; ctx ends with the server.
	Protocols map[string]func(ctx context.Context, conn *tls.Conn)
	// Version of the appliance, told to agents.
	Version string
	// Memory bounds, over all connections, what is buffered of messages beyond each stream's small base window, in bytes.
	Memory int64
	// MaxConns bounds the connections at one time.
	MaxConns int
	// ResumeWindow is for how long a run waits for its agent to come back, or to open it after its order was accepted.
	ResumeWindow time.Duration
	// ReturnGrace is for how long a run waits for an agent that is connected again.
	ReturnGrace time.Duration
	// KeepAlive and DeadAfter: see sms.Options.
	KeepAlive, DeadAfter time.Duration
	Now                  func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Memory <= 0 {
		o.Memory = DefaultMemory
	}
	if o.MaxConns <= 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.ResumeWindow <= 0 {
		o.ResumeWindow = DefaultResumeWindow
	}
	if o.ReturnGrace <= 0 {
		o.ReturnGrace = DefaultReturnGrace
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Server is the appliance's end of all connections. Methods may be called from many goroutines.
type Server struct {
	opts   Options
	budget *sms.Budget
	frames sync.Pool // of *dedup.FrameBuffer

	mu sync.Mutex
	// mu guards all below.
	agents map[string]*agentConn // by client, the newest connection
	runs   map[sms.Token]*Run    // those that are over stay for the resume window, to answer an agent that comes late
	conns  int
}

// NewServer makes a Server.
func NewServer(opts Options) *Server {
	opts = opts.withDefaults()
	return &Server{opts: opts, budget: sms.NewBudget(opts.Memory), agents: map[string]*agentConn{}, runs: map[sms.Token]*Run{}}
}

// Serve accepts TCP connections from ln, does the TLS handshake with conf (which asks for a client certificate, see
// tls.VerifyClientCertIfGiven) and serves them, until ctx is done. Then it closes ln and all connections, fails the runs
// that are left, and waits for all goroutines.
func (s *Server) Serve(ctx context.Context, ln net.Listener, conf *tls.Config) error {
	conf = conf.Clone()
	conf.DynamicRecordSizingDisabled = true // large records from the first one on: bulk data is what this carries
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				cancel()
				s.failRuns(sms.Errorf(sms.CodeShutdown, "the appliance was stopped"))
				conns.Wait()
				return nil
			}
			s.opts.Logger.Warn("accept an agent's connection", "error", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of file descriptors, most likely
			case <-ctx.Done():
			}
			continue
		}
		if !s.admit() {
			s.opts.Logger.Warn("agent connection refused: too many connections", "peer", nc.RemoteAddr(), "limit", s.opts.MaxConns)
			_ = nc.Close()
			continue
		}
		conns.Go(func() {
			defer s.leave()
			s.handle(ctx, tls.Server(sms.Buffered(nc), conf))
		})
	}
}

func (s *Server) admit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns >= s.opts.MaxConns {
		return false
	}
	s.conns++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	s.conns--
	s.mu.Unlock()
}

// failRuns ends all runs.
func (s *Server) failRuns(err error) {
	s.mu.Lock()
	var runs []*Run
	for _, r := range s.runs {
		runs = append(runs, r)
	}
	s.mu.Unlock()
	for _, r := range runs {
		r.stop(err)
	}
}

// Presence tells about the connection of a client.
type Presence struct {
	Online bool
	Remote string
	Since  time.Time // of the connection
	Hello  sms.Hello
}

// Presence returns whether a client is connected now.
func (s *Server) Presence(client string) Presence {
	a := s.agent(client)
	if a == nil {
		return Presence{}
	}
	return Presence{Online: true, Remote: a.conn.RemoteAddr().String(), Since: a.since, Hello: a.hello}
}

func (s *Server) agent(client string) *agentConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agents[client]
}

// CodeOffline is the code of Send's error when a client is not connected.
const CodeOffline sms.Code = "offline"

// Send sends an order to a client and waits for its reply: that a backup or restore was accepted, or what the other
// orders answer. CodeOffline when the client is not connected, *sms.Error with Remote when the agent refuses.
func (s *Server) Send(ctx context.Context, client string, o sms.Order) (sms.Reply, error) {
	var reply sms.Reply
	if err := o.Validate(); err != nil {
		return reply, err
	}
	a := s.agent(client)
	if a == nil {
		return reply, sms.Errorf(CodeOffline, "client %s is not connected", client)
	}
	st, err := a.conn.Open(sms.StreamOrder)
	if err != nil {
		return reply, sms.Errorf(CodeOffline, "client %s is not connected: %w", client, err)
	}
	if err = st.Send(ctx, &o); err == nil {
		err = st.RecvMessage(ctx, &reply)
	}
	if err != nil {
		st.Close(sms.CodeCancelled, "the appliance gave the order up")
		return reply, fmt.Errorf("order %s to client %s: %w", o.Kind, client, err)
	}
	st.Close("", "")
	return reply, nil
}

// Disconnect closes the connection of a client, after its certificate was revoked, say, and fails its runs.
func (s *Server) Disconnect(client, reason string) {
	cause := sms.Errorf(sms.CodeAuth, "client %s was disconnected: %s", client, reason)
	s.mu.Lock()
	a := s.agents[client]
	var runs []*Run
	for _, r := range s.runs {
		if r.opts.Client == client {
			runs = append(runs, r)
		}
	}
	s.mu.Unlock()
	for _, r := range runs {
		r.stop(cause)
	}
	if a != nil {
		a.conn.Close(sms.CodeAuth, reason)
	}
}
