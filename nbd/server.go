package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// ServerOptions bound a server. The zero value works: no TLS offered, and required of peers that are not local (who then
// get nothing); the limits are the defaults named below.
type ServerOptions struct {
	// TLS is the server's side of STARTTLS: certificate, and what is asked of client certificates. nil offers none.
	TLS *tls.Config
	// RequireTLS tells whether a peer gets nothing before STARTTLS. nil: whoever is not Local.
	RequireTLS func(Peer) bool
	// SimpleReplies refuses structured replies, and with them metadata contexts, as servers of old do.
	SimpleReplies bool

	MaxConns     int   // connections at once, however they came; further ones are closed at once. 0: 256
	MaxInFlight  int   // requests being served at once per connection; further ones wait in the socket. 0: 32
	MaxRequest   int   // bytes of one read or write, at least 64 KiB: what is told as maximum block size. 0: 32 MiB
	MemoryBudget int64 // bytes of payload held for all connections, at least 4 MaxRequest; requests wait for their share. 0: 256 MiB

	NegotiationTimeout time.Duration // from accept to the transmission phase. 0: 30 s
	// WriteTimeout ends a client that takes no part of a reply, or sends none of a begun request, for so long: at least
	// half of it and at most all of it per MiB. 0: 60 s
	WriteTimeout time.Duration
	// IdleTimeout ends a client that asks nothing for so long. 0: never; dead hosts are found by TCP keep-alive.
	IdleTimeout time.Duration

	Logger *slog.Logger // nil: none
}

func (o ServerOptions) withDefaults() ServerOptions {
	if o.RequireTLS == nil {
		o.RequireTLS = func(p Peer) bool { return !p.Local() }
	}
	set(&o.MaxConns, 256)
	set(&o.MaxInFlight, 32)
	set(&o.MaxRequest, defaultMaxRequest)
	o.MaxRequest = min(max(o.MaxRequest, maxMinimumBlock), 1<<30)
	set(&o.MemoryBudget, 256<<20)
	o.MemoryBudget = max(o.MemoryBudget, 4<<classOf(o.MaxRequest))
	set(&o.NegotiationTimeout, 30*time.Second)
	set(&o.WriteTimeout, time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func set[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Server serves exports on any number of listeners and connections.
type Server struct {
	exports Exports
	o       ServerOptions
	log     *slog.Logger
	memory  *memory
	stop    chan struct{} // closed by Shutdown

	mu      sync.Mutex // guards what follows
	conns   map[*serving]struct{}
	stopped bool
	idle    chan struct{} // closed when stopped and without connections
}

// serving is a connection that the server has.
type serving struct {
	cut func()
	mu  sync.Mutex    // guards t
	t   *transmission // nil: in negotiation
}

// NewServer returns a server with nothing to do yet.
func NewServer(e Exports, o ServerOptions) *Server {
	o = o.withDefaults()
	return &Server{exports: e, o: o, log: o.Logger, memory: newMemory(o.MemoryBudget), stop: make(chan struct{}),
		conns: map[*serving]struct{}{}, idle: make(chan struct{})}
}

// Serve accepts connections until the context ends or Shutdown is called, closes the listener, and returns when the
// connections it accepted have ended: cut where the context ended. It returns nil then, else the listener's error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // Accept tells
	go func() {
		select {
		case <-s.stop:
			_ = l.Close() // Accept tells
		case <-ctx.Done():
		}
	}()
	for pause := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			conns.Go(func() { s.serveAccepted(ctx, c) })
		case ctx.Err() != nil:
			return nil
		case s.stopping():
			conns.Wait() // before the context ends
			return nil
		case !exhausted(err):
			return err
		default:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("nbd accept", "err", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// exhausted tells errors of Accept that pass from those that do not.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) serveAccepted(ctx context.Context, c net.Conn) {
	peer, begun := c.RemoteAddr(), time.Now()
	err := s.ServeConn(ctx, c)
	s.log.Debug("nbd connection ended", "peer", peer, "lasted", time.Since(begun), "err", err)
}

// ServeConn serves one connection until it ends, and closes it. A *tls.Conn is taken as encrypted already, its handshake
// done or not: its verified certificate is the peer's, and STARTTLS is refused. The result is nil when the client took its
// leave or the server stops; else an *Error says why the connection ended.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.Close() // its outcome is known by then
	v := &serving{cut: cancel}
	if err := s.enter(v); err != nil {
		return err
	}
	defer s.leave(v)
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // wakes reads and writes
	peer, err := s.meet(ctx, c)
	if err != nil {
		return err
	}
	n := newSession(s, c, peer)
	defer func() { _ = n.conn.Close() }() // takes leave of TLS
	e, err := n.negotiate(ctx)
	if err != nil {
		var known *Error
		if !errors.As(err, &known) {
			err = &Error{Kind: kindOf(err), Op: "negotiate", Err: err}
		}
		return err
	}
	if e == nil {
		return nil
	}
	defer e.close()
	t := newTransmission(ctx, n, e)
	if !v.transmit(t, s) {
		t.stop()
	}
	return t.run()
}

// meet finds out who the peer is.
func (s *Server) meet(ctx context.Context, c net.Conn) (Peer, error) {
	p := Peer{Remote: c.RemoteAddr()}
	switch a := p.Remote.(type) {
	case *net.UnixAddr:
		p.Unix = true
	case *net.TCPAddr:
		p.Loopback = a.IP.IsLoopback()
	}
	conn, ok := c.(*tls.Conn)
	if !ok {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.NegotiationTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return p, &Error{Kind: KindDisconnected, Op: "TLS handshake", Err: err}
	}
	return withTLS(p, conn), nil
}

func (s *Server) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *Server) enter(v *serving) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return &Error{Kind: KindShutdown, Op: "accept"}
	case len(s.conns) >= s.o.MaxConns:
		return &Error{Kind: KindPolicy, Op: "accept", Err: errors.New("too many connections")}
	}
	s.conns[v] = struct{}{}
	return nil
}

func (s *Server) leave(v *serving) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, v)
	if s.stopped && len(s.conns) == 0 {
		close(s.idle)
	}
}

// transmit makes the transmission known to Shutdown; false when that was called already.
func (v *serving) transmit(t *transmission, s *Server) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.t = t
	return !s.stopping()
}

// Shutdown ends the server: no new connections, and negotiations are cut; no more requests are read, those that were are
// finished and answered, then the connections are closed. A client sees a server that went away, and may come back. When the context ends first, connections are cut, and its error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
		if len(s.conns) == 0 {
			close(s.idle)
		}
	}
	var all []*serving
	for v := range s.conns {
		all = append(all, v)
	}
	s.mu.Unlock()
	for _, v := range all {
		v.mu.Lock()
		if v.t != nil {
			v.t.stop()
		} else {
			v.cut()
		}
		v.mu.Unlock()
	}
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
	}
	for _, v := range all {
		v.cut()
	}
	<-s.idle
	return ctx.Err()
}
