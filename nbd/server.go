package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"
)

// ServerOptions bound a server. The zero value works: no TLS offered, and required of peers that are not local (who then
// get nothing); the limits are the defaults named below.
type ServerOptions struct {
	// TLS is the server's side of STARTTLS: certificate, and what is asked of client certificates. nil offers none.
	TLS *tls.Config
	// RequireTLS tells whether a peer gets nothing before STARTTLS. nil: whoever is not Local.
	RequireTLS func(Peer) bool

	MaxConns     int   // connections at once, of all listeners; further ones are closed at once. 0: 256
	MaxInFlight  int   // requests being served at once per connection; further ones wait in the socket. 0: 16
	MaxRequest   int   // bytes of one read or write: what is told as maximum block size. 0: 32 MiB
	MemoryBudget int64 // bytes of payload held for all connections; requests wait for their share. 0: 256 MiB

	NegotiationTimeout time.Duration // from accept to the transmission phase. 0: 30 s
	WriteTimeout       time.Duration // a client that takes no byte of a reply, or sends none of a begun request, for so long is dropped. 0: 60 s
	IdleTimeout        time.Duration // a client with no request for so long is dropped. 0: never; dead hosts are found by TCP keep-alive

	Logger *slog.Logger // nil: none
}

// Server serves exports on any number of listeners and connections.
type Server struct {
	exports Exports
	o       ServerOptions
}

// NewServer returns a server with nothing to do yet.
func NewServer(e Exports, o ServerOptions) *Server { return &Server{exports: e, o: o} }

// Serve accepts connections until the context ends or Shutdown is called, closes the listener, and returns when the
// connections it accepted have ended. It returns nil then, else the listener's error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return errors.ErrUnsupported }

// ServeConn serves one connection until it ends, and closes it. A *tls.Conn is taken as encrypted already, its handshake
// done or not: its verified certificate is the peer's, and STARTTLS is refused. The result is nil when the client took its
// leave; else an *Error says why the connection ended.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) error { return errors.ErrUnsupported }

// Shutdown ends the server: no new connections; options and requests that arrive from now on are answered with
// ESHUTDOWN, those in flight are finished, then connections are closed. When the context ends first, they are cut.
func (s *Server) Shutdown(ctx context.Context) error { return errors.ErrUnsupported }
