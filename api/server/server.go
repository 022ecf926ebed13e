package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
)

// Options configure a server. The zero value of each works but for TLS.
type Options struct {
	// TLS is the server's certificate and its chain up to the CA, which clients pin. GetCertificate may be used for
	// renewal without a restart. Required: there is no plain HTTP.
	TLS *tls.Config
	// Logger takes a line per failed call, and per call at debug level.
	Logger *slog.Logger
}

// Server serves the REST API of one backend.
type Server struct{}

// New makes a server.
func New(b Backend, o Options) (*Server, error) { panic("todo") }

// Serve answers calls on the listener, wrapping it in TLS, until ctx ends; then it lets calls finish for a while, ends
// event streams, and returns nil. It closes the listener.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error { panic("todo") }
