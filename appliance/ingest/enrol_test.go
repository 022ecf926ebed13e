package ingest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"coffer/appliance/agent/uplink"
	"coffer/appliance/ingest"
	"coffer/appliance/sms"
	"coffer/dedup/digest"
	"coffer/dedup/frame"
)

// spy is a run that fails the test when a certain chunk comes.
type spy struct {
	uplink.Run
	t      testing.TB
	secret digest.Digest
}

func (s spy) Fetch(ctx context.Context, items []uplink.FetchItem, emit func(frame.Frame) error) error {
	return s.Run.Fetch(ctx, items, func(f frame.Frame) error {
		for _, r := range f.Refs {
			if r.Digest == s.secret {
				s.t.Error("a neighbour came along")
			}
		}
		return emit(f)
	})
}

// flush writes what a connection has buffered.
func flush(nc net.Conn) {
	if f, ok := nc.(*tls.Conn).NetConn().(interface{ Flush() error }); ok {
		_ = f.Flush()
	}
}

func newCSR(t testing.TB, name string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(crand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

func TestEnrolment(t *testing.T) {
	s := newSite(t, nil)
	s.enrolment = "the secret"
	ctx := testContext(t)
	enrol := func(secret string) (sms.EnrolResult, error) {
		nc, err := s.dial(s.addr, "")(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, csr := newCSR(t, "web1")
		return uplink.Enrol(ctx, nc, sms.Enrol{Secret: []byte(secret), CSR: csr, Hostname: "web1"})
	}
	if _, err := enrol("a guess"); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("a wrong secret got %v", err)
	}
	res, err := enrol("the secret")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(res.Certificate)
	if err != nil || cert.Subject.CommonName != "web1" || res.Client != "web1" {
		t.Errorf("got %+v (%v)", res, err)
	}
	if _, err := enrol("the secret"); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("a used secret got %v", err)
	}
	if !strings.Contains(s.logs.String(), "enrolment refused") {
		t.Error("no log line tells of the refusals")
	}
}

func TestConnectionWithoutCertificateCanOnlyEnrol(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	for name, m := range map[string]sms.Message{"hello": &sms.Hello{MinVersion: 1, MaxVersion: 1}, "renew": &sms.Renew{}} {
		nc, err := s.dial(s.addr, "")(ctx)
		if err != nil {
			t.Fatal(err)
		}
		conn := sms.NewConn(nc, sms.AgentSide, sms.Options{})
		if err := conn.Main().Send(ctx, m); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Main().Recv(ctx, sms.ClassOrder); sms.CodeOf(err) != sms.CodeAuth {
			t.Errorf("%s got %v", name, err)
		}
		conn.Close("", "")
	}
}

func TestRevokedCertificateIsRefused(t *testing.T) {
	s := newSite(t, nil)
	s.revoked["web1"] = true
	l := uplink.NewLink(uplink.Options{Dial: s.dial(s.addr, "web1"), Orders: orderFunc(acceptAll)})
	if err := l.Run(testContext(t)); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("the link ended with %v", err)
	}
	if _, err := l.Open(t.Context(), sms.NewToken()); sms.CodeOf(err) != sms.CodeAuth {
		t.Errorf("open on a link that has ended: %v", err)
	}
	if !strings.Contains(s.logs.String(), "is revoked") {
		t.Errorf("no log line tells of it:\n%s", s.logs)
	}
}

func TestDisconnectFailsTheRuns(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	link, _ := s.agent(s.addr, "web1", nil)
	r, _ := s.backup("web1", nil)
	res := wait(ctx, r)
	run, err := link.Open(ctx, r.Token())
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	s.mu.Lock()
	s.revoked["web1"] = true
	s.mu.Unlock()
	s.server.Disconnect("web1", "its certificate was revoked")
	if got := <-res; sms.CodeOf(got.Err) != sms.CodeAuth {
		t.Errorf("the run ended with %v", got.Err)
	}
	select {
	case <-run.Done():
	case <-ctx.Done():
		t.Error("the session goes on")
	}
}

func TestRenewal(t *testing.T) {
	s := newSite(t, nil)
	link, _ := s.agent(s.addr, "web1", nil)
	_, csr := newCSR(t, "web1")
	res, err := link.Renew(testContext(t), csr)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err := x509.ParseCertificate(res.Certificate); err != nil || cert.Subject.CommonName != "web1" {
		t.Errorf("got %+v (%v)", res, err)
	}
}

func TestOrders(t *testing.T) {
	s := newSite(t, nil)
	ctx := testContext(t)
	if _, err := s.server.Send(ctx, "web1", sms.Order{Kind: sms.OrderStat, Stat: &sms.StatOrder{}}); sms.CodeOf(err) != ingest.CodeOffline {
		t.Errorf("an order to an offline client got %v", err)
	}
	given := make(chan struct{})
	s.agent(s.addr, "web1", func(o *uplink.Options) {
		o.Orders = orderFunc(func(ctx context.Context, o sms.Order) (sms.Reply, error) {
			switch o.Kind {
			case sms.OrderStat:
				return sms.Reply{Stat: &sms.StatReply{Files: []sms.FileInfo{{Path: o.Stat.Paths[0], Exists: true}}}}, nil
			case sms.OrderBrowse:
				<-ctx.Done()
				close(given)
				return sms.Reply{}, ctx.Err()
			}
			return sms.Reply{}, sms.Errorf(sms.CodeUnknownOrder, "no such order")
		})
	})
	<-s.connected
	if p := s.server.Presence("web1"); !p.Online || p.Hello.Hostname != "web1" || p.Remote == "" {
		t.Errorf("presence %+v", p)
	}
	path := sms.Path("/a/\xff")
	reply, err := s.server.Send(ctx, "web1", sms.Order{Kind: sms.OrderStat, Stat: &sms.StatOrder{Paths: []sms.Path{path}}})
	if err != nil || reply.Stat == nil || !reply.Stat.Files[0].Exists || reply.Stat.Files[0].Path != path {
		t.Errorf("got %+v, %v", reply, err)
	}
	if _, err = s.server.Send(ctx, "web1", sms.Order{Kind: "dance"}); sms.CodeOf(err) != sms.CodeUnknownOrder {
		t.Errorf("an unknown order got %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err = s.server.Send(short, "web1", sms.Order{Kind: sms.OrderBrowse, Browse: &sms.BrowseOrder{}}); err == nil {
		t.Error("an order that hangs came back")
	}
	select {
	case <-given:
	case <-ctx.Done():
		t.Error("the agent does not learn that the order was given up")
	}
}
