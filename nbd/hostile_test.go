package nbd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// short are limits that a test can reach.
var short = nbd.ServerOptions{NegotiationTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxRequest: 1 << 20}

// Clients that break the protocol, stop in the middle or take nothing are dropped, in time; Export.Close is called.
func TestHostileClients(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(r *raw)
		kind nbd.Kind
		most time.Duration
	}{
		{"says nothing", func(r *raw) { r.recv(18) }, nbd.KindTimeout, 5 * time.Second},
		{"half of its flags", func(r *raw) { r.recv(18); r.send([]byte{0, 0}) }, nbd.KindTimeout, 5 * time.Second},
		{"half an option", func(r *raw) { r.greet(3); r.send(optMagic, optGo, uint32(100), "x") }, nbd.KindTimeout, 5 * time.Second},
		{"an option of 4 GiB", func(r *raw) {
			r.greet(3)
			r.send(optMagic, optGo, uint32(1<<32-1))
			r.want(errTooBig)
			r.closed()
		}, nbd.KindProtocol, 0},
		{"wrong option magic", func(r *raw) { r.greet(3); r.send(make([]byte, 16)); r.closed() }, nbd.KindProtocol, 0},
		{"takes no answer", func(r *raw) { r.greet(3); r.option(optList) }, nbd.KindTimeout, 5 * time.Second},
		{"options without end", func(r *raw) {
			r.greet(3)
			for range 1024 {
				r.option(4711)
				r.want(errUnsup)
			}
			r.closed()
		}, nbd.KindProtocol, 0},
		{"wrong request magic", func(r *raw) { r.enter(true, false); r.send(make([]byte, 28)); r.closed() }, nbd.KindProtocol, 0},
		{"half a request", func(r *raw) { r.enter(true, false); r.send(reqMagic, uint16(0)) }, nbd.KindTimeout, 10 * time.Second},
		{"half a write", func(r *raw) { r.enter(true, false); r.request(cmdWrite, 0, 1, 0, 4096, "some") }, nbd.KindTimeout, 10 * time.Second},
		{"half a refused write", func(r *raw) { r.enter(true, false); r.request(cmdWrite, 0, 1, 1<<40, 4096, "some") }, nbd.KindTimeout, 10 * time.Second},
		{"a write of 4 GiB", func(r *raw) { r.enter(true, false); r.request(cmdWrite, 0, 1, 0, 1<<32-1); r.closed() }, nbd.KindProtocol, 0},
		{"takes no reply", func(r *raw) { r.enter(true, false); r.request(cmdRead, 0, 1, 0, 1<<20) }, nbd.KindTimeout, 10 * time.Second},
		{"takes half a reply", func(r *raw) { r.enter(true, false); r.request(cmdRead, 0, 1, 0, 1<<20); r.recv(1000) }, nbd.KindTimeout, 10 * time.Second},
		{"leaves in the middle", func(r *raw) { r.enter(true, false); r.send(reqMagic); _ = r.c.Close() }, nbd.KindDisconnected, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, _ := filled(t, 4<<20)
				open, closed := 0, 0
				e := opened{nbdtest.Exports{"": {Device: d, Close: func() { closed++ }}}, &open}
				r, ended := piped(t, e, short)
				begun := time.Now()
				c.play(r)
				wantKind(t, <-ended, c.kind)
				if lasted := time.Since(begun); lasted > c.most {
					t.Errorf("dropped after %v, want %v", lasted, c.most)
				}
				if open != closed {
					t.Errorf("%d exports opened, %d closed", open, closed)
				}
			})
		})
	}
}

// opened counts.
type opened struct {
	nbdtest.Exports
	n *int
}

func (o opened) Open(ctx context.Context, p nbd.Peer, name string) (nbd.Export, error) {
	x, err := o.Exports.Open(ctx, p, name)
	if err == nil {
		*o.n++
	}
	return x, err
}

// A client may be silent between requests for as long as it likes, unless told otherwise, and slow but steady ones live.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 4<<20)
		r, _ := piped(t, nbdtest.Of("", d), short)
		r.enter(true, false)
		for range 3 {
			time.Sleep(24 * time.Hour)
			r.request(cmdRead, 0, 1, 0, 512)
			if _, e := r.result(); e != 0 {
				t.Fatalf("error %d", e)
			}
		}
		r.request(cmdWrite, 0, 2, 0, 1<<20)
		for range 4 { // all of a MiB within the timeout
			time.Sleep(2 * time.Second)
			r.send(make([]byte, 1<<18))
		}
		if _, e := r.result(); e != 0 {
			t.Errorf("slow write: error %d", e)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		o := short
		o.IdleTimeout = time.Minute
		r, ended := piped(t, nbdtest.Of("", nbdtest.NewMem(4096)), o)
		r.enter(true, false)
		begun := time.Now()
		wantKind(t, <-ended, nbd.KindTimeout)
		if d := time.Since(begun); d != time.Minute {
			t.Errorf("dropped after %v", d)
		}
	})
}

// The memory of all requests stays within the budget: others wait, and nobody is refused.
func TestMemoryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		d, _ := filled(t, 4<<20)
		o := short
		o.MemoryBudget = 4 * size // and each connection may have half
		o.RequireTLS = func(nbd.Peer) bool { return false }
		o.WriteTimeout = time.Hour
		s := nbd.NewServer(nbdtest.Of("", d), o)
		var greedy []*raw
		for range 3 {
			r, _ := pipeTo(t, s)
			r.enter(false, false)
			for h := range uint64(4) {
				r.request(cmdRead, 0, h, 0, size)
			}
			greedy = append(greedy, r)
		}
		synctest.Wait()
		late, _ := pipeTo(t, s)
		late.enter(false, false)
		late.request(cmdRead, 0, 77, 0, 512)
		got := make(chan uint64, 1)
		go func() { h := late.recv(16 + 512); got <- be.Uint64(h[8:]) }()
		synctest.Wait()
		select {
		case <-got:
			t.Error("a read was served with the budget used up")
		default:
		}
		for _, r := range greedy { // each gets all it asked for, in turn
			go func() { _, _ = io.Copy(io.Discard, r.c) }()
		}
		if h := <-got; h != 77 {
			t.Errorf("handle %d", h)
		}
	})
}

func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := short
		o.MaxConns = 2
		o.RequireTLS = func(nbd.Peer) bool { return false }
		s := nbd.NewServer(nbdtest.Of("", nbdtest.NewMem(4096)), o)
		a, endA := pipeTo(t, s)
		a.enter(true, false)
		b, _ := pipeTo(t, s)
		b.enter(true, false)
		_, refused := pipeTo(t, s)
		wantKind(t, <-refused, nbd.KindPolicy)
		_ = a.c.Close()
		<-endA
		c, _ := pipeTo(t, s)
		c.enter(true, false)
	})
}

// Lengths that a client claims cost nothing before their bytes have come.
func TestClaimsCostNothing(t *testing.T) {
	d := nbdtest.NewMem(1 << 20)
	_, path := serve(t, nbdtest.Of("", d), nbd.ServerOptions{MaxRequest: 1 << 16, MemoryBudget: 1})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		for _, hello := range [][]byte{
			pack(uint32(3), optMagic, optGo, uint32(1<<32-1)),
			pack(uint32(3), optMagic, optGo, uint32(8), uint32(1<<32-1), uint32(1<<32-1)),
			pack(uint32(3), optMagic, optStruct, uint32(0), optMagic, optSetMeta, uint32(8), uint32(0), uint32(1<<32-1)),
			pack(uint32(3), optMagic, optExport, uint32(0), reqMagic, uint16(0), cmdWrite, uint64(1), uint64(0), uint32(1<<32-1)),
		} {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(hello); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Log(err)
			}
			_ = c.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c) // until the server has dropped it
			_ = c.Close()
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 100<<20 {
		t.Errorf("%d MiB allocated for 200 connections that only claim", grown>>20)
	}
}

// Two sides that both only send must not wait for each other for ever: the server stops reading when MaxInFlight replies
// are not taken, and drops the client then.
func TestNeverReads(t *testing.T) {
	d, _ := filled(t, 1<<20)
	o := nbd.ServerOptions{WriteTimeout: 200 * time.Millisecond}
	r, ended := piped(t, nbdtest.Of("", d), o)
	r.enter(true, false)
	for {
		if _, err := r.c.Write(pack(reqMagic, uint16(0), cmdRead, uint64(1), uint64(0), uint32(1<<20))); err != nil {
			break
		}
	}
	wantKind(t, <-ended, nbd.KindTimeout)
}
