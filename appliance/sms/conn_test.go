package sms

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pair connects two Conns over loopback TCP.
func pair(t testing.TB, opts Options) (agent, appliance *Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan net.Conn, 1)
	go func() {
		nc, _ := ln.Accept()
		got <- nc
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	agent, appliance = NewConn(nc, AgentSide, opts), NewConn(<-got, ApplianceSide, opts)
	t.Cleanup(func() {
		agent.Close(CodeShutdown, "test over")
		appliance.Close(CodeShutdown, "test over")
	})
	return agent, appliance
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// streams opens a stream on a and accepts it on b.
func streams(t testing.TB, a, b *Conn, kind StreamKind) (x, y *Stream) {
	t.Helper()
	x, err := a.Open(kind)
	if err != nil {
		t.Fatal(err)
	}
	y, err = b.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return x, y
}

func TestMessagesOfAllSizesComeThrough(t *testing.T) {
	a, b := pair(t, Options{})
	ctx := testContext(t)
	x, y := streams(t, a, b, StreamLane)
	sizes := []int{8, 100, MaxPayload - 1, MaxPayload, MaxPayload + 1, DataWindow, 3 << 20, maxFrame, 1, 0, maxFrame}
	go func() {
		for i, n := range sizes {
			if err := x.SendBuffer(ctx, TypeFrame, pattern(n, byte(i))); err != nil {
				t.Error(err)
			}
		}
		x.Close("", "")
	}()
	for i, n := range sizes {
		r, err := y.Recv(ctx, ClassData)
		if err != nil {
			t.Fatal(err)
		}
		if want := pattern(n, byte(i)); !bytes.Equal(r.Payload, want.B) {
			t.Fatalf("message %d of %d bytes came with %d", i, n, len(r.Payload))
		}
		r.Release()
	}
	if _, err := y.Recv(ctx, ClassData); err != io.EOF {
		t.Fatalf("got %v, want io.EOF", err)
	}
}

func pattern(n int, k byte) *Buffer {
	b := NewBuffer(n)
	b.B = b.B[:n]
	for i := range b.B {
		b.B[i] = byte(i>>8) ^ byte(i) ^ k
	}
	return b
}

func TestCloseTellsThePeerWhyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, b := NewConn(x, AgentSide, Options{}), NewConn(y, ApplianceSide, Options{})
		defer a.Close(CodeShutdown, "test over")
		start := time.Now()
		b.Close(CodeAuth, "revoked")
		<-a.Done()
		if err := a.Err(); CodeOf(err) != CodeAuth {
			t.Errorf("the peer ended with %v", err)
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("it took %v", d)
		}
	})
}
