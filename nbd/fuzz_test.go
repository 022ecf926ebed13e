package nbd_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

// script is a connection whose other side says what it was given and then leaves, and hears what it is told.
type script struct {
	mu   sync.Mutex
	says []byte
	told int64
	end  chan struct{}
	once sync.Once
}

func newScript(says []byte) *script { return &script{says: says, end: make(chan struct{})} }

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.says) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.says)
	s.says = s.says[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told += int64(len(p))
	return len(p), nil
}

func (s *script) Close() error                     { s.once.Do(func() { close(s.end) }); return nil }
func (s *script) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer gives the server a client's whole byte stream. It must end, with every export closed, keep its device's size,
// and say no more than was asked for.
func FuzzServer(f *testing.F) {
	hello := func(o uint32, data []byte) []byte { return pack(uint32(3), optMagic, o, uint32(len(data)), data) }
	requests := pack(reqMagic, uint16(0), cmdRead, uint64(1), uint64(512), uint32(512),
		reqMagic, flagFUA, cmdWrite, uint64(2), uint64(0), uint32(3), "abc",
		reqMagic, uint16(0), cmdZero, uint64(3), uint64(0), uint32(1<<16),
		reqMagic, flagOne, cmdStatus, uint64(4), uint64(0), uint32(1<<16),
		reqMagic, uint16(0), cmdTrim, uint64(5), uint64(0), uint32(1<<16),
		reqMagic, uint16(0), cmdFlush, uint64(6), uint64(0), uint32(0),
		reqMagic, uint16(0), cmdDisc, uint64(7), uint64(0), uint32(0))
	f.Add([]byte{})
	f.Add(append(hello(optExport, nil), requests...))
	f.Add(append(append(hello(optStruct, nil), pack(optMagic, optSetMeta, uint32(27), metaOf("", "base:allocation"),
		optMagic, optGo, uint32(6), infoOf(""))...), requests...))
	f.Add(hello(optTLS, nil))
	f.Add(hello(optList, nil))
	f.Fuzz(func(t *testing.T, says []byte) {
		d := nbdtest.NewMem(1 << 16)
		open, closed := 0, 0
		e := opened{nbdtest.Exports{"": {Device: d, Close: func() { closed++ }}}, &open}
		s := newScript(says)
		server := nbd.NewServer(e, nbd.ServerOptions{MaxRequest: 1 << 16, MemoryBudget: 1 << 18, MaxInFlight: 4})
		_ = server.ServeConn(context.Background(), s) // most end in an error
		if open != closed {
			t.Errorf("%d exports opened, %d closed", open, closed)
		}
		if d.Size() != 1<<16 {
			t.Errorf("the device has %d bytes now", d.Size())
		}
		// Each request of 28 bytes is answered by at most the longest read and its headers, each option by some 200 bytes.
		if most := int64(1024 + len(says)/16*200 + len(says)/28*(1<<16+1000)); s.told > most {
			t.Errorf("%d bytes said in answer to %d", s.told, len(says))
		}
	})
}

// FuzzClient gives the client a server's whole byte stream: no panic, no hang, nothing outside of the buffer.
func FuzzClient(f *testing.F) {
	ack := func(o uint32) []byte { return pack(uint64(0x3e889045565a9), o, repAck, uint32(0)) }
	greeting := pack("NBDMAGIC", "IHAVEOPT", uint16(3))
	opened := append(append(append(append([]byte(nil), greeting...), ack(optStruct)...),
		pack(uint64(0x3e889045565a9), optSetMeta, repMeta, uint32(19), uint32(7), "base:allocation", ack(optSetMeta),
			uint64(0x3e889045565a9), optGo, repInfo, uint32(12), uint16(0), uint64(1<<20), uint16(0x5ed))...), ack(optGo)...)
	f.Add(opened)
	f.Add(append(opened, pack(chunkMagic, uint16(0), uint16(1), uint64(1), uint32(8+100), uint64(0), make([]byte, 100),
		chunkMagic, uint16(1), uint16(2), uint64(1), uint32(12), uint64(100), uint32(412),
		chunkMagic, uint16(1), uint16(5), uint64(2), uint32(12), uint32(7), uint32(4096), uint32(3))...))
	f.Add(append(opened, pack(chunkMagic, uint16(1), uint16(1<<15|1), uint64(1), uint32(8), uint32(5), uint16(2), "no")...))
	f.Fuzz(func(t *testing.T, says []byte) {
		ctx := context.Background()
		c, err := nbd.NewClient(ctx, newScript(says), nbd.ClientOptions{})
		if err != nil {
			return
		}
		p := make([]byte, 512+2*4096)
		_ = c.ReadAt(ctx, p[4096:4096+512], 0) // whatever the server says
		for i, b := range p {
			if b != 0 && (i < 4096 || i >= 4096+512) {
				t.Fatalf("byte %d outside of the buffer was written", i)
			}
		}
		covered := int64(0)
		_ = c.Extents(ctx, 0, 4096, func(n int64, _ nbd.ExtentFlags) bool { covered += n; return true })
		if covered > 4096 {
			t.Errorf("%d bytes of extents for 4096", covered)
		}
		_ = c.Close()
		<-c.Done()
	})
}
