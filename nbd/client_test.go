package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"coffer/nbd"
	"coffer/nbd/nbdtest"
)

func dial(t *testing.T, path string, o nbd.ClientOptions) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "unix", path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Client and server together keep the contract of a device, however they talk.
func TestClientContract(t *testing.T) {
	pki := newCerts(t)
	for name, c := range map[string]struct {
		s nbd.ServerOptions
		c nbd.ClientOptions
	}{
		"structured":     {},
		"simple replies": {c: nbd.ClientOptions{SimpleReplies: true}},
		"TLS":            {s: nbd.ServerOptions{TLS: pki.server}, c: nbd.ClientOptions{TLS: pki.client}},
		"small requests": {s: nbd.ServerOptions{MaxRequest: 65536, MaxInFlight: 1}, c: nbd.ClientOptions{MaxInFlight: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			d, want := filled(t, 8<<20)
			_, path := serve(t, nbdtest.Of("disk", d), c.s)
			c.c.Export = "disk"
			client := dial(t, path, c.c)
			nbdtest.Read(t, client, want)
			nbdtest.Write(t, client, want)
			if !bytes.Equal(d.Bytes(), want) {
				t.Error("the device has other bytes than the client reads")
			}
		})
	}
}

func TestMem(t *testing.T) {
	d, want := filled(t, 1<<20+100)
	nbdtest.Read(t, d, want)
	nbdtest.Write(t, d, want)
}

// Reads that the server would refuse as unaligned are widened.
func TestClientAligns(t *testing.T) {
	d, want := filled(t, 1<<20)
	_, path := serve(t, nbdtest.Of("", sized{readOnly{d}, 4096, 4096, 65536}), nbd.ServerOptions{})
	c := dial(t, path, nbd.ClientOptions{})
	if a, b, m := c.BlockSizes(); a != 4096 || b != 4096 || m != 65536 {
		t.Errorf("block sizes %d, %d, %d", a, b, m)
	}
	nbdtest.Read(t, c, want)
}

func TestClientFacts(t *testing.T) {
	d, _ := filled(t, 1<<20)
	e := nbdtest.Of("disk", d)
	e["ro"] = nbd.Export{Device: readOnly{d}}
	_, path := serve(t, e, nbd.ServerOptions{})
	c := dial(t, path, nbd.ClientOptions{Export: "disk", MetaContexts: []string{"qemu:dirty-bitmap:b"}})
	if c.ReadOnly() || !c.MultiConn() || c.Size() != 1<<20 || len(c.MetaContexts()) != 1 || c.MetaContexts()[0] != nbd.ContextAllocation {
		t.Errorf("read-only %v, multi-conn %v, size %d, contexts %v", c.ReadOnly(), c.MultiConn(), c.Size(), c.MetaContexts())
	}
	err := c.BlockStatus(t.Context(), "qemu:dirty-bitmap:b", 0, 1, nil)
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("status of a context that was not granted: %v", err)
	}
	ro := dial(t, path, nbd.ClientOptions{Export: "ro"})
	if !ro.ReadOnly() || ro.MultiConn() {
		t.Errorf("read-only %v, multi-conn %v", ro.ReadOnly(), ro.MultiConn())
	}
	for name, f := range map[string]func() error{
		"write": func() error { return ro.WriteAt(t.Context(), []byte("x"), 0) },
		"zero":  func() error { return ro.Zero(t.Context(), 0, 1, true) },
		"trim":  func() error { return ro.Trim(t.Context(), 0, 1) },
	} {
		if err := f(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, 1<<20 + 1}, {1 << 20, 1}, {1<<63 - 1, 1}} {
		if err := c.ReadAt(t.Context(), make([]byte, r[1]), r[0]); !errors.Is(err, nbd.EINVAL) {
			t.Errorf("read of %d bytes at %d: %v", r[1], r[0], err)
		}
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := nbd.List(t.Context(), conn, nbd.ClientOptions{})
	if err != nil || len(list) != 3 || list[1].Name != "disk" || list[1].Description == "" {
		t.Errorf("list %v, %v", list, err)
	}
}

// The server's word on a failed request arrives, and only that request fails.
func TestClientErrors(t *testing.T) {
	d, _ := filled(t, 1<<20)
	d.Before = func(_ context.Context, op string, off, _ int64) error {
		switch {
		case op == "write":
			return nbd.ENOSPC
		case op == "read" && off == 4096:
			return errors.New("bad sector")
		}
		return nil
	}
	_, path := serve(t, nbdtest.Of("", d), nbd.ServerOptions{})
	for _, simple := range []bool{false, true} {
		c := dial(t, path, nbd.ClientOptions{SimpleReplies: simple})
		if err := c.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, nbd.ENOSPC) {
			t.Errorf("write: %v", err)
		}
		if err := c.ReadAt(t.Context(), make([]byte, 512), 4096); !errors.Is(err, nbd.EIO) {
			t.Errorf("read: %v", err)
		}
		if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Errorf("read elsewhere: %v", err)
		}
	}
}

func TestClientOpenErrors(t *testing.T) {
	pki := newCerts(t)
	g := gatekeeper{Exports: nbdtest.Exports{}}
	_, path := serve(t, g, nbd.ServerOptions{TLS: pki.server})
	_, plain := serve(t, g, nbd.ServerOptions{})
	for _, c := range []struct {
		path string
		o    nbd.ClientOptions
		want nbd.Kind
	}{
		{path, nbd.ClientOptions{Export: "broken"}, nbd.KindUnknownExport},
		{path, nbd.ClientOptions{Export: "policy"}, nbd.KindPolicy},
		{path, nbd.ClientOptions{Export: "disk"}, nbd.KindTLSRequired},
		{path, nbd.ClientOptions{Export: "disk", TLS: pki.client}, nbd.KindUnknownExport},
		{path, nbd.ClientOptions{TLS: newCerts(t).client}, nbd.KindDisconnected},
		{plain, nbd.ClientOptions{TLS: pki.client}, nbd.KindPolicy},
		{path + "-not-there", nbd.ClientOptions{}, nbd.KindDisconnected},
	} {
		_, err := nbd.Dial(t.Context(), "unix", c.path, c.o)
		wantKind(t, err, c.want)
	}
}

// A call whose context ends gives its buffer back at once, and the connection serves on.
func TestClientCancel(t *testing.T) {
	d, want := filled(t, 1<<20)
	gate := make(chan struct{})
	var reads atomic.Int32
	d.Before = func(_ context.Context, op string, off, _ int64) error {
		if op == "read" && off == 0 {
			reads.Add(1)
			<-gate
		}
		return nil
	}
	_, path := serve(t, nbdtest.Of("", d), nbd.ServerOptions{})
	c := dial(t, path, nbd.ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	p := make([]byte, 4096)
	ended := make(chan error, 1)
	go func() { ended <- c.ReadAt(ctx, p, 0) }()
	for reads.Load() == 0 {
		if err := c.ReadAt(t.Context(), make([]byte, 512), 512); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled read: %v", err)
	}
	clear(p) // ours again
	close(gate)
	for range 100 {
		if err := c.ReadAt(t.Context(), p, 4096); err != nil || !bytes.Equal(p, want[4096:8192]) {
			t.Fatalf("read behind the cancelled one: %v", err)
		}
	}
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read with an ended context: %v", err)
	}
}

// A connection that is lost fails all calls, those in flight and those to come, with the same error.
func TestClientLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := filled(t, 1<<20)
		d.Before = func(ctx context.Context, op string, _, _ int64) error {
			if op == "read" {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		s := nbd.NewServer(nbdtest.Of("", d), nbd.ServerOptions{RequireTLS: func(nbd.Peer) bool { return false }})
		near, far := pipe()
		go func() { _ = s.ServeConn(context.Background(), far) }()
		c, err := nbd.NewClient(t.Context(), near, nbd.ClientOptions{MaxInFlight: 4})
		if err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				wantKind(t, c.ReadAt(context.Background(), make([]byte, 512), 0), nbd.KindDisconnected)
			})
		}
		synctest.Wait()
		_ = far.Close()
		calls.Wait()
		<-c.Done()
		wantKind(t, c.Err(), nbd.KindDisconnected)
		wantKind(t, c.Flush(context.Background()), nbd.KindDisconnected)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Servers that lie: the client drops them, and never writes outside of a caller's buffer.
func TestHostileServers(t *testing.T) {
	chunkOf := func(flags, kind uint16, handle uint64, data ...any) []byte {
		b := pack(data...)
		return pack(chunkMagic, flags, kind, handle, uint32(len(b)), b)
	}
	for _, c := range []struct {
		name  string
		reply []byte
		want  error // nil: the connection is dropped
	}{
		{"wrong magic", pack(uint32(1), make([]byte, 12)), nil},
		{"unknown handle", chunkOf(1, 0, 99), nil},
		{"simple reply to a read", pack(simpleMagic, uint32(0), uint64(1), make([]byte, 4096)), nil},
		{"too little", chunkOf(1, 1, 1, uint64(4096), make([]byte, 100)), nil},
		{"nothing", chunkOf(1, 0, 1), nil},
		{"none that is not the last", chunkOf(0, 0, 1), nil},
		{"none with data", chunkOf(1, 0, 1, uint32(0)), nil},
		{"too much", chunkOf(1, 1, 1, uint64(4096), make([]byte, 5000)), nil},
		{"before the range", chunkOf(1, 1, 1, uint64(4095), make([]byte, 10)), nil},
		{"behind the range", chunkOf(1, 1, 1, uint64(8191), make([]byte, 10)), nil},
		{"offset 2^64-1", chunkOf(1, 1, 1, uint64(1<<64-1), make([]byte, 10)), nil},
		{"the same twice", append(chunkOf(0, 1, 1, uint64(4096), make([]byte, 4096)), chunkOf(1, 1, 1, uint64(4096), make([]byte, 4096))...), nil},
		{"data of nothing", chunkOf(1, 1, 1, uint64(4096)), nil},
		{"a hole of nothing", chunkOf(1, 2, 1, uint64(4096), uint32(0)), nil},
		{"a hole too long", chunkOf(1, 2, 1, uint64(4096), uint32(1<<32-1)), nil},
		{"a hole of other form", chunkOf(1, 2, 1, uint64(4096)), nil},
		{"block status to a read", chunkOf(1, 5, 1, uint32(1), uint32(1), uint32(0)), nil},
		{"an unknown chunk", chunkOf(1, 77, 1), nil},
		{"an error of no number", chunkOf(1, 1<<15|1, 1, uint32(0), uint16(0)), nil},
		{"an error too short", chunkOf(1, 1<<15|1, 1, uint32(5)), nil},
		{"a message longer than its chunk", chunkOf(1, 1<<15|1, 1, uint32(5), uint16(9), "x"), nil},
		{"an error of 4 GiB", pack(chunkMagic, uint16(1), uint16(1<<15|1), uint64(1), uint32(1<<32-1)), nil},
		{"data of 4 GiB", pack(chunkMagic, uint16(1), uint16(1), uint64(1), uint32(1<<32-1), uint64(4096)), nil},
		{"an error", chunkOf(1, 1<<15|1, 1, uint32(28), uint16(2), "no"), nbd.ENOSPC},
		{"an error with an offset", chunkOf(1, 1<<15|2, 1, uint32(5), uint16(0), uint64(4096)), nbd.EIO},
		{"an unknown error chunk", chunkOf(1, 1<<15|77, 1, uint32(12), uint16(0), "more"), nbd.ENOMEM},
		{"data and an error", append(chunkOf(0, 1, 1, uint64(4096), make([]byte, 100)), chunkOf(1, 1<<15|1, 1, uint32(5), uint16(0))...), nbd.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, r := scripted(t, true)
				go func() {
					r.recv(28)
					_, _ = r.c.Write(c.reply)
				}()
				whole := make([]byte, 12288)
				err := client.ReadAt(context.Background(), whole[4096:8192], 4096)
				if c.want == nil {
					<-client.Done()
					wantKind(t, client.Err(), nbd.KindProtocol)
				} else if client.Err() != nil || !errors.Is(err, c.want) {
					t.Errorf("%v, connection %v; want %v", err, client.Err(), c.want)
				}
				if err == nil || len(bytes.Trim(whole[:4096], "\x00")) > 0 || len(bytes.Trim(whole[8192:], "\x00")) > 0 {
					t.Errorf("%v; or bytes outside of the buffer changed", err)
				}
			})
		})
	}
}

// scripted is a client whose server is the test, in the transmission phase of a writable export of 1 MiB.
func scripted(t *testing.T, structured bool) (*nbd.Client, *raw) {
	t.Helper()
	near, far := pipe()
	r := &raw{t: t, c: far}
	t.Cleanup(func() { _ = far.Close() })
	go func() {
		r.send("NBDMAGIC", "IHAVEOPT", uint16(3))
		r.recv(4)
		if structured {
			r.reply(optStruct, repAck)
			r.reply(optSetMeta, repMeta, uint32(7), "base:allocation")
			r.send(uint64(0x3e889045565a9), optSetMeta, repAck, uint32(0))
		}
		r.reply(optGo, repInfo, uint16(0), uint64(1<<20), uint16(0x5ed))
		r.send(uint64(0x3e889045565a9), optGo, repAck, uint32(0))
	}()
	c, err := nbd.NewClient(context.Background(), near, nbd.ClientOptions{SimpleReplies: !structured})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, r
}

// reply takes an option and sends the first reply.
func (r *raw) reply(o, rep uint32, data ...any) {
	h := r.recv(16)
	if got := be.Uint32(h[8:]); got != o {
		r.t.Errorf("option %d, want %d", got, o)
	}
	r.recv(int(be.Uint32(h[12:])))
	b := pack(data...)
	r.send(uint64(0x3e889045565a9), o, rep, uint32(len(b)), b)
}

func TestHostileBlockStatus(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		kind nbd.Kind // 0: an Errno
		want []int64
	}{
		"two extents, the last too long": {pack(uint32(7), uint32(512), uint32(3), uint32(1<<31), uint32(0)), 0, []int64{512, 3584}},
		"none":                           {pack(uint32(7)), nbd.KindProtocol, nil},
		"half an extent":                 {pack(uint32(7), uint32(512)), nbd.KindProtocol, nil},
		"an extent of nothing":           {pack(uint32(7), uint32(0), uint32(3)), nbd.KindProtocol, nil},
		"only another context":           {pack(uint32(9), uint32(4096), uint32(3)), 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, r := scripted(t, true)
				go func() {
					r.recv(28)
					_, _ = r.c.Write(pack(chunkMagic, uint16(1), uint16(5), uint64(1), uint32(len(c.data)), c.data))
				}()
				var got []int64
				err := client.Extents(context.Background(), 0, 4096, func(n int64, _ nbd.ExtentFlags) bool { got = append(got, n); return true })
				switch {
				case c.kind != 0:
					wantKind(t, err, c.kind)
				case c.want == nil && !errors.Is(err, nbd.EIO), c.want != nil && err != nil, len(got) != len(c.want):
					t.Errorf("extents %v, %v; want %v", got, err, c.want)
				}
			})
		})
	}
}

// A server that stops in the middle of a reply is given up; one that takes its time to begin is not.
func TestServerStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, r := scripted(t, true)
		go func() { r.recv(28); r.send(chunkMagic) }()
		wantKind(t, client.ReadAt(context.Background(), make([]byte, 512), 0), nbd.KindTimeout)
	})
}

// Servers of other ages: no fixed newstyle, no GO, no structured replies.
func TestOldServers(t *testing.T) {
	for name, play := range map[string]func(r *raw){
		"newstyle, not fixed": func(r *raw) {
			r.send("NBDMAGIC", "IHAVEOPT", uint16(0))
			r.recv(4 + 16 + 4)
			r.send(uint64(1<<20), uint16(1), make([]byte, 124))
		},
		"no GO": func(r *raw) {
			r.send("NBDMAGIC", "IHAVEOPT", uint16(3))
			r.recv(4)
			r.reply(optStruct, errUnsup)
			r.reply(optGo, errUnsup)
			r.recv(16 + 4)
			r.send(uint64(1<<20), uint16(1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pipe()
			go play(&raw{t: t, c: far})
			c, err := nbd.NewClient(t.Context(), near, nbd.ClientOptions{Export: "disk"})
			if err != nil {
				t.Fatal(err)
			}
			if c.Size() != 1<<20 || c.ReadOnly() || len(c.MetaContexts()) != 0 {
				t.Errorf("size %d, read-only %v, contexts %v", c.Size(), c.ReadOnly(), c.MetaContexts())
			}
			_ = far.Close()
			_ = c.Close()
		})
	}
}

func TestNoServer(t *testing.T) {
	for name, c := range map[string]struct {
		hello []byte
		kind  nbd.Kind
	}{
		"another protocol": {[]byte("SSH-2.0-OpenSSH_9.2 and more"), nbd.KindProtocol},
		"oldstyle":         {pack("NBDMAGIC", uint64(0x00420281861253), make([]byte, 136)), nbd.KindUnsupported},
		"half a greeting":  {[]byte("NBDM"), nbd.KindDisconnected},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pipe()
			go func() { _, _ = far.Write(c.hello); _ = far.Close() }()
			_, err := nbd.NewClient(t.Context(), near, nbd.ClientOptions{})
			wantKind(t, err, c.kind)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		near, _ := pipe()
		_, err := nbd.NewClient(t.Context(), near, nbd.ClientOptions{})
		wantKind(t, err, nbd.KindTimeout)
	})
}
