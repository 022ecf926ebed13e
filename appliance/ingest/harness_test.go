package ingest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup"
	"coffer/dedup/blob"
	"coffer/dedup/keys"
	"coffer/dedup/vfs"
)

// authority is a certificate authority for tests: the real one is not this package's.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{cert, key}
}

// issue makes a certificate of the authority for a public key.
func (a *authority) issue(name string, pub any) ([]byte, error) {
	serial, _ := crand.Int(crand.Reader, big.NewInt(1<<60))
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	return x509.CreateCertificate(crand.Reader, tmpl, a.cert, pub, a.key)
}

func (a *authority) pair(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.issue(name, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// site is an appliance with a store, and what its clients are.
type site struct {
	t      testing.TB
	ca     *authority
	store  *dedup.Store
	server *ingest.Server
	addr   string
	logs   *lockedBuffer

	mu        sync.Mutex
	revoked   map[string]bool
	enrolment string // the secret that Enrol accepts, once
	connected chan string
}

// lockedBuffer collects log lines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func testKey(t testing.TB) keys.Source {
	t.Helper()
	data, err := keys.NewKeyFile(bytes.NewReader(bytes.Repeat([]byte{7}, 256)))
	if err != nil {
		t.Fatal(err)
	}
	src, err := keys.KeyFile(data)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func newStore(t testing.TB) *dedup.Store {
	t.Helper()
	fsys := vfs.NewMem()
	b, err := blob.OpenDir(fsys, "/store")
	if err != nil {
		t.Fatal(err)
	}
	s, err := dedup.Create(t.Context(), dedup.Options{Blob: b, FS: fsys, SpoolDir: "/spool", IndexDir: filepath.Join(t.TempDir(), "index"),
		Key: testKey(t), IndexMemory: 8 << 20, LocalityMemory: 8 << 20, FrameMemory: 8 << 20, NodeMemory: 8 << 20, Reserve: -1,
		ContainerSize: 4 << 20, Owner: "test", IndexReserve: 1, IndexFree: func(string) (int64, error) { return 1 << 40, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// newSite starts an appliance. change may alter its options.
func newSite(t testing.TB, change func(*ingest.Options)) *site {
	t.Helper()
	s := &site{t: t, ca: newAuthority(t), store: newStore(t), logs: &lockedBuffer{}, revoked: map[string]bool{},
		connected: make(chan string, 1000)}
	opts := ingest.Options{Clients: s, Enroller: s, Version: "test", Logger: slog.New(slog.NewTextHandler(s.logs, nil))}
	if change != nil {
		change(&opts)
	}
	s.server = ingest.NewServer(opts)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.cert)
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.ca.pair(t, "appliance")},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.server.Serve(ctx, ln, conf); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Log(s.logs.String())
		}
	})
	return s
}

func (s *site) Authenticate(_ context.Context, cert *x509.Certificate) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked[cert.Subject.CommonName] {
		return "", sms.Errorf(sms.CodeAuth, "the certificate of %s is revoked", cert.Subject.CommonName)
	}
	return cert.Subject.CommonName, nil
}

func (s *site) Connected(client string, _ sms.Hello, _ net.Addr) {
	select {
	case s.connected <- client:
	default:
	}
}

func (s *site) Disconnected(string, error) {}

func (s *site) Enrol(_ context.Context, e sms.Enrol, _ net.Addr) (sms.EnrolResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.enrolment == "" || string(e.Secret) != s.enrolment {
		return sms.EnrolResult{}, errors.New("unknown token")
	}
	s.enrolment = ""
	return s.sign(e.Hostname, e.CSR)
}

func (s *site) Renew(_ context.Context, client string, _ *x509.Certificate, csr []byte) (sms.EnrolResult, error) {
	return s.sign(client, csr)
}

func (s *site) sign(client string, csr []byte) (sms.EnrolResult, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return sms.EnrolResult{}, err
	}
	der, err := s.ca.issue(client, req.PublicKey)
	return sms.EnrolResult{Client: client, Certificate: der, CA: s.ca.cert.Raw}, err
}

// dial makes TLS connections to addr, with a certificate or, for "", without.
func (s *site) dial(addr, client string) func(context.Context) (net.Conn, error) {
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.cert)
	conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, DynamicRecordSizingDisabled: true}
	if client != "" {
		conf.Certificates = []tls.Certificate{s.ca.pair(s.t, client)}
	}
	return func(ctx context.Context) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		tc := tls.Client(sms.Buffered(nc), conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		return tc, nil
	}
}

// orderFunc is an uplink.Orders.
type orderFunc func(context.Context, sms.Order) (sms.Reply, error)

func (f orderFunc) Order(ctx context.Context, o sms.Order) (sms.Reply, error) { return f(ctx, o) }

func acceptAll(context.Context, sms.Order) (sms.Reply, error) { return sms.Reply{}, nil }

// agent starts a link of a client through addr. One client should have one at a time.
func (s *site) agent(addr, client string, change func(*uplink.Options)) (link *uplink.Link, stop func()) {
	s.t.Helper()
	opts := uplink.Options{Dial: s.dial(addr, client), Orders: orderFunc(acceptAll), Hello: sms.Hello{Hostname: client, OS: "linux"},
		MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond}
	if change != nil {
		change(&opts)
	}
	l := uplink.NewLink(opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	s.t.Cleanup(stop)
	return l, stop
}

// sink is an ingest.Sink that commits into the site's store.
type sink struct {
	run *dedup.Run

	mu          sync.Mutex
	notices     []sms.Notice
	progress    sms.Progress
	opened      int
	interrupted int
	commitErr   error
	committed   dedup.Manifest
}

func (k *sink) Opened(bool) {
	k.mu.Lock()
	k.opened++
	k.mu.Unlock()
}

func (k *sink) Interrupted(error, time.Time) {
	k.mu.Lock()
	k.interrupted++
	k.mu.Unlock()
}

func (k *sink) Progress(p sms.Progress) {
	k.mu.Lock()
	k.progress = p
	k.mu.Unlock()
}

func (k *sink) Notice(n sms.Notice) {
	k.mu.Lock()
	k.notices = append(k.notices, n)
	k.mu.Unlock()
}

func (k *sink) Commit(ctx context.Context, c sms.Commit) (sms.CommitResult, error) {
	if k.commitErr != nil {
		return sms.CommitResult{}, k.commitErr
	}
	m, err := k.run.Commit(ctx, dedup.Draft{Root: c.Root, Side: c.Side, Client: "web1", Task: "t", TaskType: sms.TaskPath,
		RequestedLevel: "FULL", Level: "FULL", Reason: "requested", Started: c.Started, Finished: c.Finished})
	if err != nil {
		return sms.CommitResult{}, err
	}
	k.mu.Lock()
	k.committed = m
	k.mu.Unlock()
	return sms.CommitResult{SavesetID: m.ID.String(), Stored: m.Stored}, nil
}

// backup registers a backup run of a client.
func (s *site) backup(client string, parent *dedup.Manifest) (*ingest.Run, *sink) {
	s.t.Helper()
	opts := dedup.RunOptions{ID: fmt.Sprintf("run-%d", time.Now().UnixNano())}
	if parent != nil {
		opts.Parents = []dedup.SavesetID{parent.ID}
	}
	run, err := s.store.Begin(s.t.Context(), opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = run.Abort(context.Background(), "test over") })
	k := &sink{run: run}
	d := s.store.Domain()
	o := ingest.RunOptions{ID: opts.ID, Client: client, Sink: k, Domain: d.ID, Key: d.Key, Chunking: d.Chunking, Store: ingest.FromRun(run)}
	if parent != nil {
		o.Parent = &ingest.Parent{Root: parent.Root, Side: parent.Side, Started: parent.Started}
		o.View = s.view(parent.ID)
	}
	r, err := s.server.StartRun(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return r, k
}

func (s *site) view(id dedup.SavesetID) *dedup.View {
	s.t.Helper()
	v, err := s.store.View(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = v.Close() })
	return v
}

// restore registers a restore run of a client.
func (s *site) restore(client string, m dedup.Manifest) *ingest.Run {
	s.t.Helper()
	d := s.store.Domain()
	r, err := s.server.StartRun(ingest.RunOptions{ID: "restore", Client: client, Sink: &sink{}, Domain: d.ID, Key: d.Key,
		Chunking: d.Chunking, Root: m.Root, View: s.view(m.ID)})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// proxy passes TCP connections on, and cuts them.
type proxy struct {
	ln    net.Listener
	to    string
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	cuts  int
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		_ = ln.Close()
		p.cut()
	})
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go p.pass(nc)
		}
	}()
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

func (p *proxy) pass(a net.Conn) {
	defer a.Close()
	b, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer b.Close()
	p.mu.Lock()
	p.conns[a], p.conns[b] = struct{}{}, struct{}{}
	p.mu.Unlock()
	go func() {
		_, _ = io.Copy(a, b)
		_ = a.Close()
	}()
	_, _ = io.Copy(b, a)
	p.mu.Lock()
	delete(p.conns, a)
	delete(p.conns, b)
	p.mu.Unlock()
}

// cut breaks all connections, with a reset, so that what is on the way is lost.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
	}
	if len(p.conns) > 0 {
		p.cuts++
	}
	clear(p.conns)
}
