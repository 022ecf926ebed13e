package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

const (
	cmdRead, cmdWrite, cmdDisc, cmdFlush, cmdTrim, cmdCache, cmdZero, cmdStatus = uint16(0), uint16(1), uint16(2), uint16(3), uint16(4), uint16(5), uint16(6), uint16(7)

	flagFUA, flagNoHole, flagDF, flagOne = uint16(1), uint16(2), uint16(4), uint16(8)
)

// Every request that breaks a rule gets its error, and the connection lives on.
func TestRequests(t *testing.T) {
	const size = 1 << 20
	const max = 1 << 18
	for _, c := range []struct {
		name       string
		cmd, flags uint16
		off        uint64
		n          uint32
		rw, ro     nbd.Errno
	}{
		{"read", cmdRead, 0, 0, 512, 0, 0},
		{"read to the end", cmdRead, 0, size - 1, 1, 0, 0},
		{"read past the end", cmdRead, 0, size - 1, 2, nbd.EINVAL, nbd.EINVAL},
		{"read at the end", cmdRead, 0, size, 1, nbd.EINVAL, nbd.EINVAL},
		{"read nothing", cmdRead, 0, size, 0, 0, 0},
		{"read at 2^64-1", cmdRead, 0, 1<<64 - 1, 2, nbd.EINVAL, nbd.EINVAL},
		{"read at 2^63", cmdRead, 0, 1 << 63, 512, nbd.EINVAL, nbd.EINVAL},
		{"longest read", cmdRead, 0, 0, max, 0, 0},
		{"too long a read", cmdRead, 0, 0, max + 1, nbd.EINVAL, nbd.EINVAL},
		{"too long a read in one chunk", cmdRead, flagDF, 0, max + 1, nbd.EOVERFLOW, nbd.EOVERFLOW},
		{"read with FUA", cmdRead, flagFUA, 0, 512, 0, nbd.EINVAL},
		{"read with NO_HOLE", cmdRead, flagNoHole, 0, 512, nbd.EINVAL, nbd.EINVAL},
		{"read with unknown flag", cmdRead, 1 << 9, 0, 512, nbd.EINVAL, nbd.EINVAL},
		{"write", cmdWrite, 0, 0, 512, 0, nbd.EPERM},
		{"write FUA", cmdWrite, flagFUA, 0, 512, 0, nbd.EINVAL},
		{"write nothing", cmdWrite, 0, 0, 0, 0, nbd.EPERM},
		{"write past the end", cmdWrite, 0, size - 1, 2, nbd.ENOSPC, nbd.EPERM},
		{"longest write", cmdWrite, 0, 0, max, 0, nbd.EPERM},
		{"too long a write", cmdWrite, 0, 0, max + 1, nbd.EINVAL, nbd.EPERM},
		{"write with DF", cmdWrite, flagDF, 0, 512, nbd.EINVAL, nbd.EINVAL},
		{"flush", cmdFlush, 0, 0, 0, 0, 0},
		{"flush of a range", cmdFlush, 0, 0, 512, nbd.EINVAL, nbd.EINVAL},
		{"trim", cmdTrim, 0, 0, size, 0, nbd.EPERM},
		{"trim past the end", cmdTrim, 0, 0, size + 1, nbd.EINVAL, nbd.EPERM},
		{"zero", cmdZero, flagNoHole | flagFUA, 0, size, 0, nbd.EINVAL},
		{"zero read-only", cmdZero, 0, 0, size, 0, nbd.EPERM},
		{"zero past the end", cmdZero, 0, 4096, size, nbd.ENOSPC, nbd.EPERM},
		{"zero, fast", cmdZero, 1 << 4, 0, 512, nbd.EINVAL, nbd.EINVAL},
		{"cache", cmdCache, 0, 0, size, 0, 0},
		{"cache past the end", cmdCache, 0, 1, size, nbd.EINVAL, nbd.EINVAL},
		{"status", cmdStatus, 0, 0, size, 0, 0},
		{"status of nothing", cmdStatus, 0, 0, 0, nbd.EINVAL, nbd.EINVAL},
		{"status past the end", cmdStatus, 0, 512, size, nbd.EINVAL, nbd.EINVAL},
		{"unknown", 77, 0, 0, 512, nbd.EINVAL, nbd.EINVAL},
	} {
		for _, ro := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, read-only %v", c.name, ro), func(t *testing.T) {
				d, _ := filled(t, size)
				r, _ := piped(t, nbdtest.Exports{"": {Device: d, ReadOnly: ro}}, nbd.ServerOptions{MaxRequest: max})
				r.enter(true, true)
				var payload []byte
				if c.cmd == cmdWrite {
					payload = make([]byte, c.n)
				}
				r.request(c.cmd, c.flags, 42, c.off, c.n, payload)
				want := c.rw
				if ro {
					want = c.ro
				}
				if h, e := r.result(); h != 42 || e != uint32(want) {
					t.Errorf("handle %d, error %d; want %d", h, e, want)
				}
				r.request(cmdRead, 0, 43, 0, 1)
				if h, e := r.result(); h != 43 || e != 0 {
					t.Errorf("next read: handle %d, error %d", h, e)
				}
			})
		}
	}
}

// Without structured replies the commands and flags that need them are unknown.
func TestSimpleRequests(t *testing.T) {
	d, want := filled(t, 1<<20)
	r, _ := piped(t, nbdtest.Of("", d), nbd.ServerOptions{})
	r.enter(false, false)
	r.request(cmdRead, 0, 1, 4096, 8192)
	if h := r.recv(16); be.Uint32(h) != simpleMagic || be.Uint32(h[4:]) != 0 || be.Uint64(h[8:]) != 1 {
		t.Fatalf("reply %x", h)
	}
	if !bytes.Equal(r.recv(8192), want[4096:4096+8192]) {
		t.Error("other bytes")
	}
	for _, q := range []struct{ cmd, flags uint16 }{{cmdRead, flagDF}, {cmdStatus, 0}} {
		r.request(q.cmd, q.flags, 2, 0, 512)
		if h := r.recv(16); be.Uint32(h) != simpleMagic || be.Uint32(h[4:]) != uint32(nbd.EINVAL) {
			t.Errorf("command %d flags %d: reply %x", q.cmd, q.flags, h)
		}
	}
}

func TestAlignment(t *testing.T) {
	d, _ := filled(t, 1<<20)
	r, _ := piped(t, nbdtest.Of("", sized{d, 512, 4096, 0}), nbd.ServerOptions{})
	r.enter(true, true)
	for _, c := range []struct {
		off  uint64
		n    uint32
		want nbd.Errno
	}{{512, 512, 0}, {511, 512, nbd.EINVAL}, {512, 511, nbd.EINVAL}} {
		r.request(cmdRead, 0, 1, c.off, c.n)
		if _, e := r.result(); e != uint32(c.want) {
			t.Errorf("%d bytes at %d: error %d, want %d", c.n, c.off, e, c.want)
		}
	}
}

// collect takes the chunks of one read and puts them in place.
func (r *raw) collect(off uint64, n int) (data []byte, kinds []uint16) {
	r.t.Helper()
	data = bytes.Repeat([]byte{0xee}, n)
	for {
		c := r.chunk()
		kinds = append(kinds, c.kind)
		switch c.kind {
		case 1:
			copy(data[be.Uint64(c.data)-off:], c.data[8:])
		case 2:
			at := be.Uint64(c.data) - off
			clear(data[at : at+uint64(be.Uint32(c.data[8:]))])
		}
		if c.flags&1 != 0 {
			return data, kinds
		}
	}
}

func TestSparseRead(t *testing.T) {
	const size = 8 << 20
	d := nbdtest.NewMem(size)
	for _, off := range []int64{0, 1 << 20, 4<<20 - 4096, size - 4096} {
		if err := d.WriteAt(t.Context(), pattern(4096), off); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := piped(t, nbdtest.Of("", d), nbd.ServerOptions{})
	r.enter(true, true)
	for _, c := range []struct {
		off   uint64
		n     uint32
		flags uint16
		kinds []uint16
	}{
		{0, size, 0, []uint16{1, 2, 1, 2, 1, 2, 1}},
		{4096, 1 << 19, 0, []uint16{2}},
		{4096, 1 << 19, flagDF, []uint16{1}},
		{0, size, flagDF, []uint16{1}},
		{4096, 4096, 0, []uint16{1}}, // too short to ask the map
		{1<<20 - 65536, 65536 + 100, 0, []uint16{2, 1}},
	} {
		r.request(cmdRead, c.flags, 1, c.off, c.n)
		data, kinds := r.collect(c.off, int(c.n))
		if fmt.Sprint(kinds) != fmt.Sprint(c.kinds) {
			t.Errorf("%d bytes at %d, flags %d: chunks %v, want %v", c.n, c.off, c.flags, kinds, c.kinds)
		}
		if !bytes.Equal(data, d.Bytes()[c.off:c.off+uint64(c.n)]) {
			t.Errorf("%d bytes at %d, flags %d: other bytes", c.n, c.off, c.flags)
		}
	}
}

// A long read comes in chunks, and a failure in the middle is an error chunk behind those that were sent.
func TestFragments(t *testing.T) {
	d, want := filled(t, 16<<20)
	failing := errors.New("a bad place")
	bad := int64(-1)
	d.Before = func(_ context.Context, op string, off, n int64) error {
		if op == "read" && bad >= off && bad < off+n {
			return failing
		}
		return nil
	}
	r, _ := piped(t, nbdtest.Of("", readOnly{d}), nbd.ServerOptions{})
	r.enter(true, false)
	r.request(cmdRead, 0, 1, 100, 6<<20)
	if data, kinds := r.collect(100, 6<<20); len(kinds) != 3 || !bytes.Equal(data, want[100:100+6<<20]) {
		t.Errorf("chunks %v", kinds)
	}
	bad = 3 << 20
	r.request(cmdRead, 0, 2, 0, 6<<20)
	if _, kinds := r.collect(0, 6<<20); fmt.Sprint(kinds) != fmt.Sprint([]uint16{1, 1<<15 | 1}) {
		t.Errorf("chunks %v", kinds)
	}
}

// lending lends pieces of its second MiB, has to be read elsewhere, and fails at a bad place.
type lending struct {
	readOnly
	data  []byte
	piece int64
	bad   int64
}

func (l lending) Lend(_ context.Context, off, n int64) ([]byte, error) {
	switch {
	case off <= l.bad && l.bad < off+n && off >= l.bad-l.piece:
		return nil, errors.New("a bad place")
	case off < 1<<20 || off >= 2<<20:
		return nil, nil
	}
	n = min(n, l.piece, 2<<20-off)
	return l.data[off : off+n], nil
}

// What is lent is sent as it is; what is not is read; a failure in the middle is an error chunk.
func TestLentReads(t *testing.T) {
	d, want := filled(t, 4<<20)
	reads := 0
	d.Before = func(_ context.Context, op string, _, _ int64) error {
		if op == "read" {
			reads++
		}
		return nil
	}
	r, _ := piped(t, nbdtest.Of("", lending{readOnly{d}, want, 300_000, 1<<20 + 700_000}), nbd.ServerOptions{MaxRequest: 1 << 20, MemoryBudget: 4 << 20})
	r.enter(true, false)
	for _, c := range []struct {
		off    uint64
		n      uint32
		flags  uint16
		chunks string
		reads  int
	}{
		{1 << 20, 200_000, 0, "[1]", 0},
		{1 << 20, 350_000, 0, "[1 1]", 1}, // the rest is too short to be lent
		{1 << 20, 400_000, 0, "[1 1]", 0},
		{1 << 20, 400_000, flagDF, "[1]", 1},
		{1<<20 + 1, 4096, 0, "[1]", 1},
		{500_000, 200_000, 0, "[1]", 1},
		{2 << 20, 1 << 20, 0, "[1]", 1},
		{1 << 20, 1 << 20, 0, fmt.Sprint([]uint16{1, 1, 1<<15 | 1}), 0},
	} {
		reads = 0
		r.request(cmdRead, c.flags, 1, c.off, c.n)
		data, kinds := r.collect(c.off, int(c.n))
		if fmt.Sprint(kinds) != c.chunks || reads != c.reads {
			t.Errorf("%d bytes at %d, flags %d: chunks %v, %d reads; want %s, %d", c.n, c.off, c.flags, kinds, reads, c.chunks, c.reads)
		}
		if kinds[len(kinds)-1] == 1 && !bytes.Equal(data, want[c.off:c.off+uint64(c.n)]) {
			t.Errorf("%d bytes at %d, flags %d: other bytes", c.n, c.off, c.flags)
		}
	}
}

func TestBlockStatus(t *testing.T) {
	d := nbdtest.NewMem(64 << 20)
	for off := int64(0); off < d.Size(); off += 8192 {
		if err := d.WriteAt(t.Context(), []byte{1}, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Trim(t.Context(), 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	r, _ := piped(t, nbdtest.Of("", d), nbd.ServerOptions{})
	r.enter(true, true)
	status := func(flags uint16, off uint64, n uint32) []byte {
		r.request(cmdStatus, flags, 5, off, n)
		c := r.chunk()
		if c.kind != 5 || c.flags != 1 || be.Uint32(c.data) != 1 {
			t.Fatalf("chunk %+v", c)
		}
		return c.data[4:]
	}
	if b := status(flagOne, 100, 64<<20-100); !bytes.Equal(b, pack(uint32(1<<20-100), uint32(3))) {
		t.Errorf("one extent: %x", b)
	}
	if b := status(0, 1<<20-4096, 4096+4096+1); !bytes.Equal(b, pack(uint32(4096), uint32(3), uint32(4096), uint32(0), uint32(1), uint32(3))) {
		t.Errorf("three extents: %x", b)
	}
	if b := status(0, 0, 64<<20); len(b) != 2048*8 {
		t.Errorf("%d bytes of descriptors; the limit is 2048", len(b))
	}
}

// FUA is a flush after the write, or the device's own.
func TestFUA(t *testing.T) {
	d := nbdtest.NewMem(1 << 20)
	r, _ := piped(t, nbdtest.Of("", d), nbd.ServerOptions{})
	r.enter(true, false)
	for i, cmd := range []uint16{cmdWrite, cmdZero, cmdTrim} {
		var payload []byte
		if cmd == cmdWrite {
			payload = make([]byte, 512)
		}
		r.request(cmd, 0, 1, 0, 512, payload)
		r.result()
		r.request(cmd, flagFUA, 1, 0, 512, payload)
		if _, e := r.result(); e != 0 || d.Flushes() != int64(i+1) {
			t.Errorf("command %d: error %d, %d flushes", cmd, e, d.Flushes())
		}
	}
	own := &fuaMem{Mem: nbdtest.NewMem(1 << 20)}
	r, _ = piped(t, nbdtest.Of("", own), nbd.ServerOptions{})
	r.enter(true, false)
	r.request(cmdWrite, flagFUA, 1, 0, 3, "abc")
	if _, e := r.result(); e != 0 || own.fua != 1 || own.Flushes() != 0 || string(own.Bytes()[:3]) != "abc" {
		t.Errorf("error %d, %d FUA writes, %d flushes", e, own.fua, own.Flushes())
	}
}

type fuaMem struct {
	*nbdtest.Mem
	fua int
}

func (f *fuaMem) WriteFUA(ctx context.Context, p []byte, off int64) error {
	f.fua++
	return f.WriteAt(ctx, p, off)
}

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want nbd.Errno
	}{
		{nil, 0},
		{errors.New("anything"), nbd.EIO},
		{fmt.Errorf("write: %w", nbd.EOVERFLOW), nbd.EOVERFLOW},
		{fmt.Errorf("write: %w", syscall.ENOSPC), nbd.ENOSPC},
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, nbd.ENOSPC},
		{syscall.EFBIG, nbd.ENOSPC},
		{fs.ErrPermission, nbd.EPERM},
		{syscall.EROFS, nbd.EPERM},
		{fs.ErrInvalid, nbd.EINVAL},
		{errors.ErrUnsupported, nbd.ENOTSUP},
		{syscall.ENOMEM, nbd.ENOMEM},
		{context.Canceled, nbd.ESHUTDOWN},
		{&nbd.Error{Kind: nbd.KindShutdown}, nbd.ESHUTDOWN},
		{&nbd.Error{Kind: nbd.KindDisconnected}, nbd.EIO},
		{nbd.Errno(4711), nbd.EIO},
		{nbd.Errno(0), nbd.EIO},
	} {
		if got := nbd.ErrnoOf(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	if !errors.Is(fmt.Errorf("x: %w", nbd.ENOSPC), syscall.ENOSPC) || !errors.Is(nbd.EPERM, fs.ErrPermission) || errors.Is(nbd.EIO, syscall.ENOSPC) {
		t.Error("errors.Is finds the wrong system errors")
	}
}

// A slow request does not hold up those behind it, up to MaxInFlight; replies come as they are ready.
func TestOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		gate := make(chan struct{})
		var running atomic.Int32
		d.Before = func(_ context.Context, op string, off, n int64) error {
			if op == "read" && off == 0 {
				running.Add(1)
				<-gate
			}
			return nil
		}
		r, _ := piped(t, nbdtest.Of("", d), nbd.ServerOptions{MaxInFlight: 4})
		r.enter(true, false)
		for h := range uint64(3) {
			r.request(cmdRead, 0, h, 0, 512)
			synctest.Wait()
		}
		r.request(cmdRead, 0, 100, 4096, 512)
		if h, e := r.result(); h != 100 || e != 0 {
			t.Errorf("handle %d, error %d", h, e)
		}
		r.request(cmdRead, 0, 3, 0, 512)
		synctest.Wait()
		go r.request(cmdRead, 0, 4, 0, 512)
		synctest.Wait()
		if n := running.Load(); n != 4 {
			t.Errorf("%d requests being served, want 4", n)
		}
		close(gate)
		seen := map[uint64]bool{}
		for range 5 {
			h, _ := r.result()
			seen[h] = true
		}
		if len(seen) != 5 {
			t.Errorf("replies to %v", seen)
		}
	})
}

// DISC waits for what is in flight, and Export.Close comes after it.
func TestDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		gate := make(chan struct{})
		d.Before = func(ctx context.Context, op string, _, _ int64) error {
			if op == "write" {
				<-gate
			}
			return ctx.Err()
		}
		closed := false
		r, ended := piped(t, nbdtest.Exports{"": {Device: d, Close: func() { closed = true }}}, nbd.ServerOptions{})
		r.enter(true, false)
		r.request(cmdWrite, 0, 9, 0, 3, "abc")
		r.request(cmdDisc, 0, 0, 0, 0)
		synctest.Wait()
		if closed {
			t.Error("the export was closed with a request in flight")
		}
		close(gate)
		if h, e := r.result(); h != 9 || e != 0 {
			t.Errorf("handle %d, error %d", h, e)
		}
		r.closed()
		if err := <-ended; err != nil || !closed {
			t.Errorf("%v, closed %v", err, closed)
		}
	})
}

// A client that goes away without leave ends what it asked for.
func TestClientGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		d.Before = func(ctx context.Context, op string, _, _ int64) error {
			if op != "read" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		r, ended := piped(t, nbdtest.Of("", d), nbd.ServerOptions{})
		r.enter(true, false)
		r.request(cmdRead, 0, 9, 0, 512)
		synctest.Wait()
		_ = r.c.Close()
		wantKind(t, <-ended, nbd.KindDisconnected)
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		gate := make(chan struct{})
		d.Before = func(context.Context, string, int64, int64) error { <-gate; return nil }
		s := nbd.NewServer(nbdtest.Of("", d), nbd.ServerOptions{RequireTLS: func(nbd.Peer) bool { return false }})
		r, ended := pipeTo(t, s)
		r.enter(true, false)
		r.request(cmdRead, 0, 1, 0, 512)
		haggling, cut := pipeTo(t, s)
		haggling.greet(3)
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(context.Background()) }()
		synctest.Wait()
		if err := <-cut; err == nil {
			t.Error("a negotiation outlived the shutdown")
		}
		close(gate)
		if h, e := r.result(); h != 1 || e != 0 {
			t.Errorf("what was in flight: handle %d, error %d", h, e)
		}
		r.closed()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
		_, late := pipeTo(t, s)
		wantKind(t, <-late, nbd.KindShutdown)
	})
}

// A shutdown whose time is over cuts connections.
func TestShutdownCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		d.Before = func(ctx context.Context, op string, _, _ int64) error {
			if op != "read" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		s := nbd.NewServer(nbdtest.Of("", d), nbd.ServerOptions{RequireTLS: func(nbd.Peer) bool { return false }})
		r, ended := pipeTo(t, s)
		r.enter(true, false)
		r.request(cmdRead, 0, 1, 0, 512)
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("shutdown: %v", err)
		}
		<-ended
	})
}

func pipeTo(t *testing.T, s *nbd.Server) (*raw, <-chan error) {
	t.Helper()
	near, far := pipe()
	ended := make(chan error, 1)
	go func() { ended <- s.ServeConn(context.Background(), far) }()
	t.Cleanup(func() { _ = near.Close() })
	return &raw{t: t, c: near}, ended
}
