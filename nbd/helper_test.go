package nbd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

var be = binary.BigEndian

// cleanupTime bounds what a test waits for a server to end.
const cleanupTime = 30 * time.Second

// serve runs a server on a unix socket until the test ends, and returns the socket's path.
func serve(t *testing.T, e nbd.Exports, o nbd.ServerOptions) (*nbd.Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, e, o), path
}

func serveOn(t *testing.T, l net.Listener, e nbd.Exports, o nbd.ServerOptions) *nbd.Server {
	t.Helper()
	s := nbd.NewServer(e, o)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// piped runs a server on one end of a pipe and returns the other, and how the connection ended.
func piped(t *testing.T, e nbd.Exports, o nbd.ServerOptions) (*raw, <-chan error) {
	t.Helper()
	if o.RequireTLS == nil {
		o.RequireTLS = func(nbd.Peer) bool { return false }
	}
	near, far := net.Pipe()
	s, ended := nbd.NewServer(e, o), make(chan error, 1)
	go func() { ended <- s.ServeConn(context.Background(), far) }()
	t.Cleanup(func() { _ = near.Close() })
	return &raw{t: t, c: near}, ended
}

// raw speaks the protocol byte by byte.
type raw struct {
	t *testing.T
	c net.Conn
}

func (r *raw) send(parts ...any) {
	r.t.Helper()
	if _, err := r.c.Write(pack(parts...)); err != nil {
		r.t.Fatalf("send: %v", err)
	}
}

// pack lays values out in network order.
func pack(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		default:
			var err error
			if b, err = binary.Append(b, be, v); err != nil {
				panic(err)
			}
		}
	}
	return b
}

func (r *raw) recv(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.c, b); err != nil {
		r.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return b
}

// closed expects the end of the connection.
func (r *raw) closed() {
	r.t.Helper()
	if n, err := io.Copy(io.Discard, r.c); n != 0 || err != nil && !errors.Is(err, io.ErrClosedPipe) {
		r.t.Fatalf("%d bytes more, %v; want the connection closed", n, err)
	}
}

const (
	optMagic   = uint64(0x49484156454F5054)
	optExport  = uint32(1)
	optAbort   = uint32(2)
	optList    = uint32(3)
	optTLS     = uint32(5)
	optInfo    = uint32(6)
	optGo      = uint32(7)
	optStruct  = uint32(8)
	optLstMeta = uint32(9)
	optSetMeta = uint32(10)

	repAck     = uint32(1)
	repServer  = uint32(2)
	repInfo    = uint32(3)
	repMeta    = uint32(4)
	errUnsup   = uint32(1<<31 + 1)
	errPolicy  = uint32(1<<31 + 2)
	errInvalid = uint32(1<<31 + 3)
	errTLS     = uint32(1<<31 + 5)
	errUnknown = uint32(1<<31 + 6)
	errBlock   = uint32(1<<31 + 8)
	errTooBig  = uint32(1<<31 + 9)

	reqMagic    = uint32(0x25609513)
	simpleMagic = uint32(0x67446698)
	chunkMagic  = uint32(0x668e33ef)
)

// greet takes the server's greeting and answers.
func (r *raw) greet(flags uint32) {
	r.t.Helper()
	r.recv(18)
	r.send(flags)
}

func (r *raw) option(o uint32, parts ...any) {
	r.t.Helper()
	data := pack(parts...)
	r.send(optMagic, o, uint32(len(data)), data)
}

// answer takes one reply.
func (r *raw) answer() (rep uint32, data []byte) {
	r.t.Helper()
	h := r.recv(20)
	return be.Uint32(h[12:]), r.recv(int(be.Uint32(h[16:])))
}

func (r *raw) want(rep uint32) []byte {
	r.t.Helper()
	got, data := r.answer()
	if got != rep {
		r.t.Fatalf("reply %#x %q, want %#x", got, data, rep)
	}
	return data
}

func str(s string) []byte { return pack(uint32(len(s)), s) }

// enter goes to the transmission phase of the default export.
func (r *raw) enter(structured, status bool) {
	r.t.Helper()
	r.greet(3)
	if structured {
		r.option(optStruct)
		r.want(repAck)
	}
	if status {
		r.option(optSetMeta, str(""), uint32(1), str("base:allocation"))
		r.want(repMeta)
		r.want(repAck)
	}
	r.option(optGo, str(""), uint16(1), uint16(3))
	for {
		rep, data := r.answer()
		if rep == repAck {
			return
		}
		if rep != repInfo {
			r.t.Fatalf("GO: reply %#x %q", rep, data)
		}
	}
}

func (r *raw) request(cmd, flags uint16, handle, off uint64, n uint32, payload ...any) {
	r.t.Helper()
	r.send(pack(reqMagic, flags, cmd, handle, off, n), pack(payload...))
}

// chunk is one structured reply chunk.
type chunk struct {
	flags, kind uint16
	handle      uint64
	data        []byte
}

func (r *raw) chunk() chunk {
	r.t.Helper()
	h := r.recv(20)
	if be.Uint32(h) != chunkMagic {
		r.t.Fatalf("chunk magic %#x", be.Uint32(h))
	}
	return chunk{be.Uint16(h[4:]), be.Uint16(h[6:]), be.Uint64(h[8:]), r.recv(int(be.Uint32(h[16:])))}
}

// result is the error of the next reply, of either form, without payload.
func (r *raw) result() (handle uint64, errno uint32) {
	r.t.Helper()
	h := r.recv(16)
	switch be.Uint32(h) {
	case simpleMagic:
		return be.Uint64(h[8:]), be.Uint32(h[4:])
	case chunkMagic:
		data := r.recv(int(be.Uint32(r.recv(4))))
		if be.Uint16(h[6:])&(1<<15) != 0 {
			return be.Uint64(h[8:]), be.Uint32(data)
		}
		return be.Uint64(h[8:]), 0
	}
	r.t.Fatalf("reply magic %#x", be.Uint32(h))
	return 0, 0
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// filled is a device of size bytes with data in its first half; the second is a hole.
func filled(t *testing.T, size int) (*nbdtest.Mem, []byte) {
	t.Helper()
	d := nbdtest.NewMem(int64(size))
	if err := d.WriteAt(t.Context(), pattern(size/2), 0); err != nil {
		t.Fatal(err)
	}
	return d, d.Bytes()
}

// readOnly hides that a device can be written.
type readOnly struct{ nbd.Device }

// certs is an authority with a server's and a client's certificate, also as the files that gnutls clients want.
type certs struct {
	dir            string
	server, client *tls.Config
}

func newCerts(t *testing.T) certs {
	t.Helper()
	dir := t.TempDir()
	caKey, ca := issue(t, dir, "ca", nil, nil)
	serverKey, server := issue(t, dir, "server", ca, caKey)
	clientKey, client := issue(t, dir, "client", ca, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	pair := func(c *x509.Certificate, k *ecdsa.PrivateKey) []tls.Certificate {
		return []tls.Certificate{{Certificate: [][]byte{c.Raw}, PrivateKey: k}}
	}
	return certs{dir,
		&tls.Config{Certificates: pair(server, serverKey), ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool},
		&tls.Config{Certificates: pair(client, clientKey), RootCAs: pool, ServerName: "localhost"}}
}

func issue(t *testing.T, dir, name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ca == nil {
		tmpl.IsCA, tmpl.ExtKeyUsage, tmpl.DNSNames, tmpl.IPAddresses = true, nil, nil, nil
		tmpl.KeyUsage = x509.KeyUsageCertSign
		ca, caKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+"-cert.pem"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", secret)
	return key, c
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pipe() (near, far net.Conn) { return net.Pipe() }
