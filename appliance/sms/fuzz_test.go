package sms

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// FuzzMessage: no panic, and what decodes encodes to something that decodes to the same.
func FuzzMessage(f *testing.F) {
	for _, m := range samples() {
		f.Add(uint8(m.Type()), Append(nil, m))
	}
	f.Fuzz(func(t *testing.T, typ uint8, b []byte) {
		m, err := Decode(Type(typ), b)
		if err != nil {
			if CodeOf(err) != CodeProtocol {
				t.Errorf("error without the code: %v", err)
			}
			return
		}
		once := Append(nil, m)
		again, err := Decode(Type(typ), once)
		if err != nil {
			t.Fatalf("%v does not decode again: %v", Type(typ), err)
		}
		if twice := Append(nil, again); !bytes.Equal(once, twice) {
			t.Errorf("%v: %x, then %x", Type(typ), once, twice)
		}
	})
}

// FuzzHeader: no panic, and a header that is taken writes back to the same bytes.
func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, header{Stream: 3, Seq: 9, Type: TypeFrame, Length: MaxPayload, Rest: 5}, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		var b [HeaderLen]byte
		copy(b[:], p)
		h, err := parseHeader(&b)
		if err != nil {
			return
		}
		if back := appendHeader(nil, h, nil); !bytes.Equal(back[:crcOffset], b[:crcOffset]) {
			t.Errorf("%x came back as %x", b, back)
		}
	})
}

// FuzzConn feeds a connection whatever bytes: it ends with a cause, quickly, and memory stays flat.
func FuzzConn(f *testing.F) {
	packet := func(stream, seq uint32, m Message) []byte {
		p := Append(nil, m)
		return append(appendHeader(nil, header{Stream: stream, Seq: seq, Type: m.Type(), Length: uint32(len(p))}, p), p...)
	}
	f.Add([]byte{})
	f.Add(packet(0, 0, &ping{}))
	f.Add(append(packet(1, 0, &open{StreamLane}), packet(1, 1, &Query{ID: 1})...))
	all := []byte{}
	all = append(all, packet(1, 0, &open{StreamLane})...)
	for i, m := range samples() {
		all = append(all, packet(1, uint32(1+i), m)...)
	}
	f.Add(all)
	part := appendHeader(nil, header{Stream: 1, Seq: 1, Type: TypeFrame, Length: MaxPayload, Rest: 8 << 20}, nil)
	f.Add(append(packet(1, 0, &open{StreamLane}), part...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		x, y := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, y) }()
		c := NewConn(x, ApplianceSide, Options{})
		ctx, cancel := context.WithCancel(context.Background())
		read := make(chan struct{})
		go func() { // a consumer that reads some of it
			defer close(read)
			for {
				s, err := c.Accept(ctx)
				if err != nil {
					return
				}
				if r, err := s.Recv(ctx, ClassQuery); err == nil {
					_, _ = Decode(r.Type, r.Payload)
					r.Release()
				}
				s.Close("", "")
			}
		}()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_ = y.SetWriteDeadline(time.Now().Add(2 * time.Second))
		_, _ = y.Write([]byte(preamble))
		_, _ = y.Write(stream)
		_ = y.Close()
		<-c.Done()
		runtime.ReadMemStats(&after)
		cancel()
		<-read
		c.Close("", "")
		if c.Err() == nil {
			t.Error("no cause")
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20+64*uint64(len(stream)) {
			t.Errorf("%d bytes allocated for %d", used, len(stream))
		}
	})
}
