package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// step is one option and what must be answered, reply by reply. No answers: the connection is closed.
type step struct {
	option  uint32
	data    []byte
	answers []uint32
}

func infoOf(name string, asked ...uint16) []byte {
	return pack(str(name), uint16(len(asked)), asked)
}

func metaOf(name string, queries ...string) []byte {
	b := pack(str(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, str(q)...)
	}
	return b
}

func TestNegotiation(t *testing.T) {
	two := []uint32{repInfo, repInfo, repAck}
	invalid, unknown := []uint32{errInvalid}, []uint32{errUnknown}
	structured := step{optStruct, nil, []uint32{repAck}}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"go", []step{{optGo, infoOf("disk"), two}}},
		{"default export", []step{{optGo, infoOf(""), two}}},
		{"name and description on demand", []step{{optInfo, infoOf("disk", 1, 2, 3), []uint32{repInfo, repInfo, repInfo, repInfo, repAck}}}},
		{"unknown information is not answered", []step{{optInfo, infoOf("disk", 77), two}}},
		{"unknown export, then a known one", []step{{optGo, infoOf("no"), unknown}, {optGo, infoOf("disk"), two}}},
		{"info of unknown export", []step{{optInfo, infoOf("no"), unknown}}},
		{"empty go", []step{{optGo, nil, invalid}}},
		{"name longer than the option", []step{{optGo, pack(uint32(100), "disk", uint16(0)), invalid}}},
		{"name of 2^32-1 bytes", []step{{optGo, pack(uint32(1<<32-1), "disk", uint16(0)), invalid}}},
		{"fewer requests than told", []step{{optGo, pack(str("disk"), uint16(9), uint16(1)), invalid}}},
		{"more than told", []step{{optGo, pack(str("disk"), uint16(0), uint16(1)), invalid}}},
		{"list", []step{{optList, nil, []uint32{repServer, repServer, repAck}}}},
		{"list with data", []step{{optList, []byte("x"), invalid}}},
		{"structured replies with data", []step{{optStruct, []byte("x"), invalid}}},
		{"contexts without structured replies", []step{{optSetMeta, metaOf("disk", "base:allocation"), invalid}, {optLstMeta, metaOf("disk"), invalid}}},
		{"contexts", []step{structured, {optSetMeta, metaOf("disk", "base:allocation"), []uint32{repMeta, repAck}}}},
		{"all contexts", []step{structured, {optLstMeta, metaOf("disk"), []uint32{repMeta, repAck}}}},
		{"contexts of a namespace", []step{structured, {optLstMeta, metaOf("disk", "base:"), []uint32{repMeta, repAck}}}},
		{"setting a namespace selects nothing", []step{structured, {optSetMeta, metaOf("disk", "base:"), []uint32{repAck}}}},
		{"setting nothing", []step{structured, {optSetMeta, metaOf("disk"), []uint32{repAck}}}},
		{"contexts asked twice are one", []step{structured, {optSetMeta, metaOf("disk", "base:allocation", "x-y:z", "base:allocation"), []uint32{repMeta, repAck}}}},
		{"unknown contexts", []step{structured, {optSetMeta, metaOf("disk", "qemu:dirty-bitmap:b"), []uint32{repAck}}}},
		{"contexts of an unknown export", []step{structured, {optSetMeta, metaOf("no", "base:allocation"), unknown}}},
		{"2^32-1 queries", []step{structured, {optSetMeta, pack(str("disk"), uint32(1<<32-1)), invalid}}},
		{"query longer than the option", []step{structured, {optSetMeta, pack(str("disk"), uint32(1), uint32(1<<31), "base"), invalid}}},
		{"extended headers", []step{{11, nil, []uint32{errUnsup}}}},
		{"unknown option with data", []step{{4711, make([]byte, 60000), []uint32{errUnsup}}, {optGo, infoOf("disk"), two}}},
		{"option too long", []step{{4711, make([]byte, 65537), []uint32{errTooBig}}, {}}},
		{"TLS that is not there", []step{{optTLS, nil, []uint32{errPolicy}}, {optGo, infoOf("disk"), two}}},
		{"abort", []step{{optAbort, nil, []uint32{repAck}}, {}}},
		{"abort with data", []step{{optAbort, []byte("why"), []uint32{repAck}}, {}}},
		{"export name of nothing", []step{{optExport, []byte("no"), nil}}},
		{"export name too long", []step{{optExport, bytes.Repeat([]byte("n"), 4097), nil}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, _ := filled(t, 1<<20)
			r, _ := piped(t, nbdtest.Of("disk", d), nbd.ServerOptions{})
			r.greet(3)
			for _, s := range c.steps {
				play(r, s)
			}
		})
	}
}

func play(r *raw, s step) {
	r.t.Helper()
	if s.option != 0 {
		// The server may refuse a long option before it has read it all.
		go func() { _, _ = r.c.Write(pack(optMagic, s.option, uint32(len(s.data)), s.data)) }()
	}
	for i, want := range s.answers {
		if got, data := r.answer(); got != want {
			r.t.Fatalf("option %d, reply %d: %#x %q, want %#x", s.option, i, got, data, want)
		}
	}
	if len(s.answers) == 0 {
		r.closed()
	}
}

func TestExportName(t *testing.T) {
	for flags, zeroes := range map[uint32]int{0: 124, 1: 124, 2: 0, 3: 0} {
		d, _ := filled(t, 1<<20)
		r, _ := piped(t, nbdtest.Of("disk", d), nbd.ServerOptions{})
		r.greet(flags)
		r.option(optExport, "disk")
		b := r.recv(10 + zeroes)
		if be.Uint64(b) != 1<<20 || be.Uint16(b[8:]) != 0x56d || len(bytes.Trim(b[10:], "\x00")) != 0 {
			t.Errorf("client flags %d: size and flags %x", flags, b)
		}
		r.request(0, 0, 7, 4096, 16)
		if b := r.recv(32); !bytes.Equal(b[16:], pattern(1 << 19)[4096:4112]) {
			t.Errorf("client flags %d: read %x", flags, b)
		}
	}
}

// With structured replies refused, a client has neither them nor contexts, and goes on without.
func TestStructuredRepliesRefused(t *testing.T) {
	d, content := filled(t, 1<<20)
	r, _ := piped(t, nbdtest.Of("disk", d), nbd.ServerOptions{SimpleReplies: true})
	r.greet(3)
	play(r, step{optStruct, nil, []uint32{errUnsup}})
	play(r, step{optSetMeta, metaOf("disk", "base:allocation"), []uint32{errInvalid}})
	play(r, step{optGo, infoOf("disk"), []uint32{repInfo, repInfo, repAck}})
	r.request(0, 0, 7, 4096, 16)
	if b := r.recv(32); !bytes.Equal(b[16:], content[4096:4112]) {
		t.Errorf("read %x", b)
	}
}

func TestClientFlags(t *testing.T) {
	r, ended := piped(t, nbdtest.Exports{}, nbd.ServerOptions{})
	r.greet(4)
	r.closed()
	wantKind(t, <-ended, nbd.KindProtocol)
	r, ended = piped(t, nbdtest.Exports{}, nbd.ServerOptions{})
	r.greet(0)
	r.option(optList) // only with fixed newstyle
	r.closed()
	wantKind(t, <-ended, nbd.KindProtocol)
}

func wantKind(t *testing.T, err error, k nbd.Kind) {
	t.Helper()
	var e *nbd.Error
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("%v, want an error of kind %v", err, k)
	}
}

// The flags told must be those of the device: a client may use what is offered, and nothing else.
func TestTransmissionFlags(t *testing.T) {
	mem := nbdtest.NewMem(1 << 20)
	for _, c := range []struct {
		name       string
		e          nbd.Export
		structured bool
		want       uint16
	}{
		{"all", nbd.Export{Device: mem, MultiConn: true}, true, 0x5ed},
		{"simple replies", nbd.Export{Device: mem, MultiConn: true}, false, 0x56d},
		{"read-only", nbd.Export{Device: mem, ReadOnly: true}, true, 0x487},
		{"no writer", nbd.Export{Device: readOnly{mem}}, true, 0x087},
	} {
		r, _ := piped(t, nbdtest.Exports{"": c.e}, nbd.ServerOptions{})
		r.greet(3)
		if c.structured {
			r.option(optStruct)
			r.want(repAck)
		}
		r.option(optInfo, infoOf(""))
		if b := r.want(repInfo); be.Uint16(b) != 0 || be.Uint64(b[2:]) != 1<<20 || be.Uint16(b[10:]) != c.want {
			t.Errorf("%s: %x, want flags %#x", c.name, b, c.want)
		}
	}
}

type sized struct {
	nbd.Device
	min, pref, max uint32
}

func (s sized) BlockSizes() (uint32, uint32, uint32) { return s.min, s.pref, s.max }

func TestBlockSizes(t *testing.T) {
	mem := nbdtest.NewMem(1 << 20)
	for _, c := range []struct {
		name string
		d    nbd.Device
		want []byte // nil: the export cannot be opened
	}{
		{"default", mem, pack(uint32(1), uint32(4096), uint32(1<<20))},
		{"device's", sized{mem, 512, 65536, 131072}, pack(uint32(512), uint32(65536), uint32(131072))},
		{"server's limit", sized{mem, 4096, 4096, 1 << 31}, pack(uint32(4096), uint32(4096), uint32(1<<20))},
		{"no power of two", sized{mem, 513, 4096, 0}, nil},
		{"minimum above preferred", sized{mem, 4096, 512, 0}, nil},
		{"minimum above 64 KiB", sized{mem, 1 << 17, 1 << 17, 0}, nil},
		{"none", sized{mem, 0, 0, 0}, nil},
	} {
		r, _ := piped(t, nbdtest.Exports{"": {Device: c.d}}, nbd.ServerOptions{MaxRequest: 1 << 20})
		r.greet(3)
		r.option(optInfo, infoOf("", 3))
		if c.want == nil {
			r.want(errUnknown)
			continue
		}
		r.want(repInfo)
		if b := r.want(repInfo); be.Uint16(b) != 3 || !bytes.Equal(b[2:], c.want) {
			t.Errorf("%s: %x, want %x", c.name, b, c.want)
		}
		r.want(repAck)
		if m, _, _ := blockSizes(c.d); m > 1 {
			r.option(optGo, infoOf("")) // does not know that it must align
			r.want(errBlock)
		}
	}
}

func blockSizes(d nbd.Device) (uint32, uint32, uint32) {
	if b, ok := d.(nbd.BlockSizer); ok {
		return b.BlockSizes()
	}
	return 1, 4096, 0
}

// Contexts are of one export: GO for another one forgets them.
func TestContextOfOtherExport(t *testing.T) {
	e := nbdtest.Of("disk", nbdtest.NewMem(1<<20))
	r, _ := piped(t, e, nbd.ServerOptions{})
	r.greet(3)
	r.option(optStruct)
	r.want(repAck)
	r.option(optSetMeta, metaOf("disk", "base:allocation"))
	r.want(repMeta)
	r.want(repAck)
	r.option(optGo, infoOf(""))
	r.want(repInfo)
	r.want(repInfo)
	r.want(repAck)
	r.request(7, 0, 1, 0, 4096)
	if _, e := r.result(); e != uint32(nbd.EINVAL) {
		t.Errorf("block status: error %d", e)
	}
}

// gatekeeper tells peers apart.
type gatekeeper struct {
	nbdtest.Exports
	open, closed chan nbd.Peer
}

func (g gatekeeper) Open(ctx context.Context, p nbd.Peer, name string) (nbd.Export, error) {
	switch {
	case name == "broken":
		return nbd.Export{}, errors.New("secret: /var/lib/x is gone")
	case name == "policy":
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindPolicy, Op: "open", Err: errors.New("secret")}
	case p.Cert == nil:
		return nbd.Export{}, &nbd.Error{Kind: nbd.KindTLSRequired, Op: "open", Name: name}
	}
	x, err := g.Exports.Open(ctx, p, name)
	if err != nil {
		return x, err
	}
	g.open <- p
	x.Close = func() { g.closed <- p }
	return x, nil
}

func TestOpenErrors(t *testing.T) {
	g := gatekeeper{Exports: nbdtest.Exports{}}
	for name, want := range map[string]uint32{"broken": errUnknown, "policy": errPolicy, "other": errTLS} {
		r, _ := piped(t, g, nbd.ServerOptions{})
		r.greet(3)
		r.option(optGo, infoOf(name))
		if text := string(r.want(want)); strings.Contains(text, "secret") {
			t.Errorf("%s: the client is told %q", name, text)
		}
	}
}

func startTLS(t *testing.T, r *raw, conf *tls.Config) *raw {
	t.Helper()
	r.option(optTLS)
	r.want(repAck)
	c := tls.Client(r.c, conf)
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return &raw{t: t, c: c}
}

func TestTLS(t *testing.T) {
	pki := newCerts(t)
	g := gatekeeper{nbdtest.Of("disk", nbdtest.NewMem(1<<20)), make(chan nbd.Peer, 9), make(chan nbd.Peer, 9)}
	force := func(nbd.Peer) bool { return true }
	r, ended := piped(t, g, nbd.ServerOptions{TLS: pki.server, RequireTLS: force})
	r.greet(3)
	for _, o := range []uint32{optList, optGo, optInfo, optStruct, optSetMeta, 4711} {
		r.option(o, infoOf("disk"))
		r.want(errTLS)
	}
	r = startTLS(t, r, pki.client)
	r.option(optTLS)
	r.want(errInvalid)
	r.option(optSetMeta, metaOf("disk")) // nothing was agreed on in plain
	r.want(errInvalid)
	r.option(optGo, infoOf("disk"))
	r.want(repInfo)
	r.want(repInfo)
	r.want(repAck)
	if p := <-g.open; !p.TLS || p.Cert == nil || p.Cert.Subject.CommonName != "client" {
		t.Errorf("peer %+v", p)
	}
	r.request(0, 0, 1, 0, 512)
	r.recv(16 + 512)
	r.request(2, 0, 2, 0, 0)
	r.closed()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-g.closed
}

// What was agreed on in plain may have been written by anybody: after STARTTLS it is forgotten.
func TestTLSForgets(t *testing.T) {
	pki := newCerts(t)
	r, _ := piped(t, nbdtest.Of("disk", nbdtest.NewMem(1<<20)), nbd.ServerOptions{TLS: pki.server})
	r.greet(3)
	r.option(optStruct)
	r.want(repAck)
	r = startTLS(t, r, pki.client)
	r.option(optGo, infoOf("disk"))
	if b := r.want(repInfo); be.Uint16(b[10:])&(1<<7) != 0 {
		t.Errorf("DF is offered: structured replies outlived STARTTLS")
	}
}

func TestTLSRefusals(t *testing.T) {
	pki := newCerts(t)
	force := func(nbd.Peer) bool { return true }
	t.Run("export name in plain", func(t *testing.T) {
		r, ended := piped(t, nbdtest.Exports{}, nbd.ServerOptions{TLS: pki.server, RequireTLS: force})
		r.greet(3)
		r.option(optExport, "disk")
		r.closed()
		wantKind(t, <-ended, nbd.KindTLSRequired)
	})
	t.Run("required and not there", func(t *testing.T) {
		r, _ := piped(t, nbdtest.Exports{}, nbd.ServerOptions{RequireTLS: force})
		r.greet(3)
		r.option(optGo, infoOf("disk"))
		r.want(errPolicy)
	})
	t.Run("data behind the option", func(t *testing.T) {
		r, ended := piped(t, nbdtest.Exports{}, nbd.ServerOptions{TLS: pki.server})
		r.greet(3)
		r.send(optMagic, optTLS, uint32(0), "GET /")
		r.closed()
		wantKind(t, <-ended, nbd.KindProtocol)
	})
	t.Run("a client of another authority", func(t *testing.T) {
		r, ended := piped(t, nbdtest.Exports{}, nbd.ServerOptions{TLS: pki.server})
		r.greet(3)
		r.option(optTLS)
		r.want(repAck)
		c := tls.Client(r.c, &tls.Config{InsecureSkipVerify: true, Certificates: newCerts(t).client.Certificates})
		go func() { _ = c.Handshake(); _, _ = c.Read(make([]byte, 1)) }()
		wantKind(t, <-ended, nbd.KindDisconnected)
	})
}

// A *tls.Conn is as good as STARTTLS.
func TestConnectionInTLS(t *testing.T) {
	pki := newCerts(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", pki.server)
	if err != nil {
		t.Fatal(err)
	}
	g := gatekeeper{nbdtest.Of("disk", nbdtest.NewMem(1<<20)), make(chan nbd.Peer, 9), make(chan nbd.Peer, 9)}
	serveOn(t, l, g, nbd.ServerOptions{RequireTLS: func(nbd.Peer) bool { return true }})
	conn, err := tls.Dial("tcp", l.Addr().String(), pki.client)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nbd.NewClient(t.Context(), conn, nbd.ClientOptions{Export: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	if p := <-g.open; !p.TLS || p.Cert == nil || !p.Loopback {
		t.Errorf("peer %+v", p)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
