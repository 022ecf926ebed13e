package ingest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"coffer/appliance/sms"
)

// agentConn is the connection of an authenticated client.
type agentConn struct {
	srv    *Server
	conn   *sms.Conn
	client string
	cert   *x509.Certificate
	hello  sms.Hello
	since  time.Time
	log    *slog.Logger
}

// handle serves one connection from its TLS handshake to its end, and logs why it ended.
func (s *Server) handle(ctx context.Context, nc *tls.Conn) {
	log := s.opts.Logger.With("peer", nc.RemoteAddr().String())
	first, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := nc.HandshakeContext(first); err != nil {
		_ = nc.Close()
		log.Warn("agent connection refused: TLS handshake failed", "cause", err)
		return
	}
	state := nc.ConnectionState()
	certs := state.PeerCertificates
	if len(certs) > 0 && len(state.VerifiedChains) == 0 {
		_ = nc.Close()
		log.Error("agent connection refused: the TLS configuration does not verify client certificates")
		return
	}
	if serve := s.opts.Protocols[state.NegotiatedProtocol]; serve != nil {
		cancel()
		if len(certs) == 0 {
			_ = nc.Close()
			log.Warn("connection refused: only an enrolled agent may speak this protocol", "protocol", state.NegotiatedProtocol)
			return
		}
		if err := sms.WriteThrough(nc.NetConn()); err != nil {
			_ = nc.Close()
			log.Warn("connection lost", "protocol", state.NegotiatedProtocol, "cause", err)
			return
		}
		serve(ctx, nc)
		return
	}
	opts := sms.Options{Budget: s.budget, KeepAlive: s.opts.KeepAlive, DeadAfter: s.opts.DeadAfter}
	if len(certs) == 0 {
		opts.MaxStreams = 1
	}
	conn := sms.NewConn(nc, sms.ApplianceSide, opts)
	stop := context.AfterFunc(ctx, func() { conn.Close(sms.CodeShutdown, "the appliance stops") })
	defer stop()
	defer conn.Close(sms.CodeShutdown, "over") // waits for the connection's goroutines; the first cause stays
	if len(certs) == 0 {
		s.enrol(first, conn, log)
		return
	}
	a, err := s.welcome(first, conn, certs[0])
	cancel()
	if err != nil {
		log.Warn("agent connection refused", "certificate", certs[0].Subject.CommonName, "cause", err)
		closeWith(conn, err)
		return
	}
	a.log = log.With("client", a.client)
	a.serve(ctx)
}

// closeWith closes a connection and tells the peer an error, as far as it is meant for it.
func closeWith(conn *sms.Conn, err error) {
	if e, ok := errors.AsType[*sms.Error](err); ok {
		conn.Close(e.Code, e.Message)
		return
	}
	conn.Close(sms.CodeInternal, "the appliance could not do it; its log says why")
}

// enrol serves a connection without certificate: one enrolment, nothing else.
func (s *Server) enrol(ctx context.Context, conn *sms.Conn, log *slog.Logger) {
	var e sms.Enrol
	err := conn.Main().RecvMessage(ctx, &e)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = sms.Errorf(sms.CodeTimeout, "no enrolment within %v", handshakeTimeout)
		} else if sms.CodeOf(err) == sms.CodeProtocol {
			err = sms.Errorf(sms.CodeAuth, "a connection without client certificate can only enrol: %w", err)
		}
		log.Warn("agent connection refused: no certificate and no enrolment", "cause", err)
		closeWith(conn, err)
		return
	}
	res, err := s.opts.Enroller.Enrol(ctx, e, conn.RemoteAddr())
	if err == nil {
		err = conn.Main().Send(ctx, &res)
	}
	if err != nil {
		log.Warn("enrolment refused", "hostname", e.Hostname, "cause", err)
		closeWith(conn, authError(err))
		return
	}
	log.Info("client enrolled", "client", res.Client, "hostname", e.Hostname)
	select { // the agent closes when it has the certificate
	case <-conn.Done():
	case <-ctx.Done():
	}
}

// authError hides what is not meant for the peer.
func authError(err error) error {
	if e, ok := errors.AsType[*sms.Error](err); ok {
		return e
	}
	return sms.Errorf(sms.CodeAuth, "refused")
}

// welcome authenticates the client and exchanges hello and welcome.
func (s *Server) welcome(ctx context.Context, conn *sms.Conn, cert *x509.Certificate) (*agentConn, error) {
	client, err := s.opts.Clients.Authenticate(ctx, cert)
	if err != nil {
		if _, ok := errors.AsType[*sms.Error](err); !ok {
			err = sms.Errorf(sms.CodeAuth, "the certificate is not accepted: %w", err)
		}
		return nil, err
	}
	a := &agentConn{srv: s, conn: conn, client: client, cert: cert, since: s.opts.Now()}
	if err := conn.Main().RecvMessage(ctx, &a.hello); err != nil {
		return nil, err
	}
	if a.hello.MinVersion > sms.Version || a.hello.MaxVersion < sms.Version {
		return nil, sms.Errorf(sms.CodeVersion, "the agent speaks versions %d to %d, the appliance %d",
			a.hello.MinVersion, a.hello.MaxVersion, sms.Version)
	}
	w := sms.Welcome{Version: sms.Version, Client: client, Appliance: s.opts.Version, Clock: s.opts.Now()}
	return a, conn.Main().Send(ctx, &w)
}

// serve takes the streams of a connection until it is over.
func (a *agentConn) serve(ctx context.Context) {
	old := a.srv.register(a)
	if old != nil {
		old.conn.Close(sms.CodeReplaced, "a newer connection of this client took over")
	}
	a.log.Info("agent connected", "hostname", a.hello.Hostname, "agent", a.hello.Agent, "os", a.hello.OS, "arch", a.hello.Arch)
	defer a.expectBack()()
	a.srv.opts.Clients.Connected(a.client, a.hello, a.conn.RemoteAddr())
	var streams sync.WaitGroup
	for {
		st, err := a.conn.Accept(ctx)
		if err != nil {
			break
		}
		streams.Go(func() { a.stream(ctx, st) })
	}
	if ctx.Err() != nil {
		a.conn.Close(sms.CodeShutdown, "the appliance stops")
	}
	cause := a.conn.Err()
	a.logEnd(cause)
	if a.srv.unregister(a) {
		a.srv.opts.Clients.Disconnected(a.client, cause)
	}
	streams.Wait()
}

// logEnd writes the one line about the end of a connection.
func (a *agentConn) logEnd(cause error) {
	level := slog.LevelInfo
	if e, ok := errors.AsType[*sms.Error](cause); ok && !e.Remote && e.Code != sms.CodeShutdown && e.Code != sms.CodeReplaced {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, "agent connection closed", "code", sms.CodeOf(cause), "cause", cause)
}

func (s *Server) register(a *agentConn) (old *agentConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.agents[a.client]
	s.agents[a.client] = a
	return old
}

// unregister reports whether a was the client's newest connection.
func (s *Server) unregister(a *agentConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agents[a.client] != a {
		return false
	}
	delete(s.agents, a.client)
	return true
}

// stream serves one stream that the agent has opened.
func (a *agentConn) stream(ctx context.Context, st *sms.Stream) {
	var err error
	switch st.Kind() {
	case sms.StreamRun:
		err = a.serveRun(ctx, st)
	case sms.StreamLane:
		err = a.serveLane(ctx, st)
	case sms.StreamRenew:
		err = a.renew(ctx, st)
	default:
		err = sms.Errorf(sms.CodeProtocol, "the agent opened a stream of %v", st.Kind())
	}
	e, ok := errors.AsType[*sms.Error](err)
	_, old := errors.AsType[ended](err)
	switch {
	case ok && !old && e.Code == sms.CodeProtocol && !e.Remote:
		a.conn.Close(e.Code, e.Message)
	case ok && (old || !e.Remote):
		st.Close(e.Code, e.Message)
	default:
		st.Close("", "")
	}
}

// renew issues a new certificate.
func (a *agentConn) renew(ctx context.Context, st *sms.Stream) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var m sms.Renew
	if err := st.RecvMessage(ctx, &m); err != nil {
		return err
	}
	res, err := a.srv.opts.Enroller.Renew(ctx, a.client, a.cert, m.CSR)
	if err != nil {
		a.log.Warn("renewal of the certificate refused", "cause", err)
		return authError(err)
	}
	a.log.Info("certificate renewed")
	return st.Send(ctx, &res)
}
